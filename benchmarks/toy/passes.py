"""Measures on the toy world what fewer passes of the transformer cost.

    python -m benchmarks.toy.passes [--cases 300] [--steps 28] [--trials 60] [--student FOLDER]
        [--distilled FOLDER] [--few_steps FOLDER]

Every row sees the cases and the noise of `study.py`. The first is the released sampler: Euler, with
true guidance from the third step on. `passes` counts passes of the whole transformer for an image;
a step of a mask that runs the first block alone counts as the share of the blocks that it runs.
`latent error` is the distance of the final latents, both frames, from those of the first row.
Masks are searched on cases that are not scored. `--distilled` and `--few_steps` are exports of runs
that distil the student, on the quickstart's pairs of the task that is scored here:

    dsd train distill --base_path toy --lora_path dsd_jax/toy/lora --output_dir RUN
        --data QUICKSTART/making/dataset --tasks identity=1 --height 32 --width 64
        --lora.rank 30 --lora.targets all --batch_size 16 --steps 1500 --base_dtype float32
        --remat none --no_scan_layers --max_sequence_length 16 --mesh.data -1 --mesh.fsdp 1
        --distill.i_guidance 2 --optimizer.learning_rate 5e-4 --optimizer.schedule cosine
        [--distill.mask 10101010]
    dsd convert lora RUN FOLDER
"""

import argparse
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from benchmarks.results import save
from benchmarks.toy.study import BATCH, AnyScore, intervals, load
from dsd_jax.config import FluxConfig
from dsd_jax.convert.lora.read import read_lora
from dsd_jax.convert.open import open_transformer
from dsd_jax.errors import UserError
from dsd_jax.images import open_frame
from dsd_jax.infer import Pipeline
from dsd_jax.infer.find_mask import find_mask
from dsd_jax.infer.prepared import Prepared, prepare
from dsd_jax.infer.sampler import Method
from dsd_jax.infer.settings import Settings
from dsd_jax.quickstart.inputs import IMAGE_SCALE
from dsd_jax.toy.folder import toy_flux_path, toy_lora_path
from dsd_jax.toy.score import Case, make_cases, score
from dsd_jax.toy.world import PANEL

SECTIONS = {
    "": (
        "Fewer passes on the toy world",
        """The student that ships, with true guidance except where it is distilled or not guided.
*Passes* of the whole transformer for an image, seconds for an image on this processor, which had
other work, too, distance of the final latents from those of the first row, and scores with 95 %
bootstrap intervals over cases. A *mask* was searched on other cases. *Distilled*: one pass makes
what guidance makes of three. The toy's pictures are so small that a few plain steps do for them,
too: the error of the latents tells the choices apart, their scores hardly do. The plot:
[toy_passes.png](toy_passes.png).""",
    ),
}

PLOT = Path(__file__).parents[2] / "docs" / "toy_passes.png"
KEPT = 3  # guidance is computed in every third step
SEARCHED = 8  # cases that masks are searched on


Model = Literal["student", "distilled", "few_steps"]


@dataclasses.dataclass(frozen=True)
class Choice:
    """A way of sampling.

    Attributes:
        name: Its name in the table.
        settings: Its settings.
        full: Steps that run all blocks, by a mask that is searched; 0 for all, without a mask.
        model: The model it samples with: the student, or what was distilled from it.
    """

    name: str
    settings: Settings
    full: int = 0
    model: Model = "student"


def choices(steps: int, folders: Mapping[Model, Path]) -> Iterator[Choice]:
    """Each choice alone, then stacks of them, with the models that there are."""
    base = Settings(height=PANEL, width=2 * PANEL, steps=steps, i_guidance=IMAGE_SCALE)
    half, third = dataclasses.replace(base, steps=steps // 2), steps // 3
    every = dataclasses.replace(base, guidance_every=KEPT)
    second = dataclasses.replace(base, solver="dpmpp_2m", steps=third)
    yield Choice("Euler", base)
    yield Choice("Euler, fewer steps", half)
    yield Choice("Euler, fewer steps", dataclasses.replace(base, steps=third))
    yield Choice("Euler, fewer steps", dataclasses.replace(base, steps=steps // 7))
    for number in (steps, steps // 7):
        plain = dataclasses.replace(base, steps=number, i_guidance=1.0)
        yield Choice("Euler, not guided", plain)
    yield Choice(f"guidance every {KEPT}", every)
    yield Choice("DPM-Solver++", dataclasses.replace(second, steps=steps // 2))
    yield Choice("DPM-Solver++", second)
    yield Choice("mask", base, full=steps // 2)
    yield Choice("mask", base, full=third)
    yield Choice(f"mask, guidance every {KEPT}", every, full=third)
    yield Choice(
        f"DPM-Solver++, guidance every {KEPT}", dataclasses.replace(second, guidance_every=KEPT)
    )
    if "distilled" in folders:
        for own in (base, half, dataclasses.replace(base, steps=third)):
            plain = dataclasses.replace(own, i_guidance=1.0)
            yield Choice("distilled", plain, model="distilled")
        one = dataclasses.replace(second, i_guidance=1.0)
        yield Choice("distilled, DPM-Solver++", one, model="distilled")
        masked = dataclasses.replace(base, i_guidance=1.0)
        yield Choice("distilled, mask", masked, full=third, model="distilled")
    if "few_steps" in folders:
        adapter, _ = read_lora(folders["few_steps"], open_transformer(toy_flux_path()).config)
        need = adapter.distilled
        if need is None or need.mask is None:
            raise UserError(f"{folders['few_steps']} was not distilled with a step mask")
        few = dataclasses.replace(base, i_guidance=1.0, steps=need.steps, step_mask=need.mask)
        yield Choice("distilled to few steps", few, model="few_steps")


def passes_of(settings: Settings, config: FluxConfig) -> float:
    """Passes of the whole transformer for an image."""
    method = Method(guidance_every=settings.guidance_every, masked=settings.mask is not None)
    kinds = method.kinds(settings.steps, true_guidance=settings.true_guidance, mask=settings.mask)
    first = 1 / (config.double_depth + config.single_depth)
    costs = {"guided": 3.0, "reused": first}
    return sum(costs.get(kind, 1.0) for kind in kinds)


def prepared(pipe: Pipeline, cases: Sequence[Case], settings: Settings) -> Prepared:
    """The images of cases."""
    checked = pipe.check(settings, two_frames=True)
    pictures = [Image.fromarray(case.reference()) for case in cases]
    return prepare(
        pipe.tokenizers,
        [case.text for case in cases],
        [open_frame(picture, PANEL, PANEL) for picture in pictures],
        np.asarray([case.seed for case in cases], np.uint32),
        checked,
    )


def paint(
    pipe: Pipeline, cases: Sequence[Case], settings: Settings
) -> tuple[np.ndarray, list[AnyScore], float]:
    """Final latents, scores, and seconds for an image once all is compiled."""
    latents, scores, seconds = [], [], []
    for start in range(0, len(cases), BATCH):
        part = cases[start : start + BATCH]
        began = time.perf_counter()
        made = pipe.run(prepared(pipe, part, settings), batch_size=BATCH)
        seconds.append((time.perf_counter() - began) / len(part))
        latents.append(made.latents)
        scores += [score(c, np.asarray(image)) for c, image in zip(part, made, strict=True)]
    return np.concatenate(latents), scores, min(seconds)


def masked(pipe: Pipeline, choice: Choice, trials: int) -> Settings:
    """The settings of a choice, with a mask that is searched for them."""
    if not choice.full:
        return choice.settings
    others = make_cases(SEARCHED, seed=1)
    found = find_mask(pipe, prepared(pipe, others, choice.settings), choice.full, trials)
    return dataclasses.replace(choice.settings, step_mask=found.mask)


def plot(rows: Sequence[dict[str, Any]]) -> None:
    """Identity and latent error over passes, a line for each choice."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, both = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for number, name in enumerate(dict.fromkeys(row["choice"] for row in rows)):
        own = sorted((row for row in rows if row["choice"] == name), key=itemgetter("passes"))
        for axes, metric in zip(both, ("identity", "latent error"), strict=True):
            values = [float(row[metric].split()[0]) for row in own]
            style = {"color": f"C{number}", "marker": "os^"[number // 10]}
            axes.plot([row["passes"] for row in own], values, **style, alpha=0.7, label=name)
    for axes in both:
        axes.set(xscale="log", xlabel="passes for an image")
        axes.set_xticks(ticks := [4, 8, 16, 32, 80], [str(tick) for tick in ticks])
        axes.minorticks_off()
    both[0].set(ylabel="identity, from 0.9", ylim=(0.9, 1.005))
    both[1].set(ylabel="distance of the latents from those of 80 passes")
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(PLOT, dpi=120)


def main() -> None:
    """Samples, prints, saves and plots."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--trials", type=int, default=60, help="masks that each search tries")
    parser.add_argument("--student", type=Path, default=toy_lora_path())
    parser.add_argument("--distilled", type=Path, help="export of a distillation")
    parser.add_argument("--few_steps", type=Path, help="export of one with a step mask")
    parser.add_argument("--try", dest="trial", action="store_true", help="print, and save nothing")
    given = parser.parse_args()
    cases, rows = make_cases(given.cases), []
    folders: dict[Model, Path] = {
        name: folder for name in get_args(Model) if (folder := getattr(given, name)) is not None
    }
    pipes = {name: load(folder) for name, folder in folders.items()}
    exact = np.zeros(0)
    for choice in choices(given.steps, folders):
        pipe = pipes[choice.model]
        settings = masked(pipe, choice, given.trials)
        latents, scores, seconds = paint(pipe, cases, settings)
        exact = exact if rows else latents
        error = float(np.linalg.norm(latents - exact) / np.linalg.norm(exact))
        rows.append(
            {
                "choice": choice.name,
                "steps": settings.steps,
                "passes": round(passes_of(settings, pipe.transformer_config), 1),
                "seconds": f"{seconds:.3f}",
                "latent error": f"{error:.4f}",
                **intervals(scores),
                "mask": settings.step_mask or "",
            }
        )
        print(rows[-1], flush=True)
    if not given.trial:
        save(__file__, rows, cases=given.cases, image_guidance=IMAGE_SCALE)
        plot(rows)


if __name__ == "__main__":
    main()
