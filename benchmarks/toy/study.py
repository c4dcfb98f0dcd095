"""Scores customisers on the toy world: before and after training, curated or not, guided.

    dsd quickstart --output_dir outputs/quickstart
    python -m benchmarks.toy.study outputs/quickstart [--cases 300]

Every row of the table sees the same cases with the same noise: subjects that nothing was trained
on, each in one scene, asked for in another. `identity`: shape, both colours and marking are right;
`prompt`: background and place are; `copied`: background and place of the reference were kept.
Intervals are 95 % by bootstrap over cases. The student without curation is trained here, with the
steps of the quickstart, on the same grids, with every pair that the judge was asked about. The
sweep over guidance scales uses the quickstart's student.
"""

import argparse
import dataclasses
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.results import save
from dsd_jax.cli import main as dsd
from dsd_jax.config import FLOAT32
from dsd_jax.convert.hub import TOY
from dsd_jax.data.make.folder import begun_folder
from dsd_jax.data.make.stages import JUDGEMENTS
from dsd_jax.infer import Pipeline
from dsd_jax.quickstart.depths import DEPTHS
from dsd_jax.quickstart.inputs import IMAGE_SCALE, MAKING, TEXT_TOKENS, Budget
from dsd_jax.quickstart.run import student_steps
from dsd_jax.quickstart.steps import Step, run_steps
from dsd_jax.quickstart.torch_check import largest_difference
from dsd_jax.toy.folder import toy_flux_path, toy_lora_path
from dsd_jax.toy.score import Case, Guided, Relit, Score, make_cases, score, summarise
from dsd_jax.toy.world import PANEL

SECTIONS = {
    "": (
        "Self-distillation on the toy world",
        """The same cases and noise for every row: a subject that nothing was trained on, shown in
one scene and asked for in another. *Identity*: shape, both colours and marking are right;
*prompt*: background and place are; *both*: all of them; *copied*: background and place of the
reference were kept. Means with 95 % bootstrap intervals over cases. The teacher gets the text
alone, which does not name the subject. *Not curated*: the same budget on every pair that was put
before the judge. Goals: identity and prompt 0.80 after the quickstart, 0.95 after the longer run
(285 of 300), with at most 0.02 copied; subjects seen and held out within 0.05.""",
    ),
    "guidance": (
        "True guidance on the toy world",
        "Image and text scale of the student; the plot: [toy_guidance.png](toy_guidance.png).",
    ),
}

PLOT = Path(__file__).parents[2] / "docs" / "toy_guidance.png"
SWEEP = (1.0, 1.5, 2.0, 3.0)
BATCH = 50
AnyScore = Score | Relit | Guided


def load(export: Path | None) -> Pipeline:
    """Opens the toy teacher, or a student by its folder: an export, or one LoRA file."""
    if export is None:
        return Pipeline.load(TOY, precision=FLOAT32)
    transformer = export / "transformer"  # with the condition embedding, if there is one
    return Pipeline.load(
        TOY,
        model_path=transformer if transformer.is_dir() else None,
        lora_path=export,
        max_sequence_length=TEXT_TOKENS,
        precision=FLOAT32,
    )


def scores_of(
    pipe: Pipeline,
    cases: Sequence[Case],
    steps: int,
    *,
    i_guidance: float = IMAGE_SCALE,
    t_guidance: float = 1.0,
    texts: Sequence[str] | None = None,
) -> list[AnyScore]:
    """Scores every case; a pipeline without condition gets the text alone, unguided.

    Args:
        pipe: The pipeline.
        cases: The cases.
        steps: Sampling steps.
        i_guidance, t_guidance: Scales of true guidance.
        texts: Words to ask by, in place of those of the cases.
    """
    conditional = pipe.transformer_config.condition_embed
    scales = {"i_guidance": i_guidance, "t_guidance": t_guidance} if conditional else {}
    words = [case.text for case in cases] if texts is None else texts
    scores = []
    for start in range(0, len(cases), BATCH):
        part = cases[start : start + BATCH]
        made = pipe(
            words[start : start + BATCH],
            [Image.fromarray(case.reference()) for case in part] if conditional else None,
            seed=[case.seed for case in part],
            batch_size=BATCH,
            height=PANEL,
            width=2 * PANEL if conditional else PANEL,
            steps=steps,
            **scales,
        )
        scores += [score(c, np.asarray(image)) for c, image in zip(part, made, strict=True)]
    return scores


def intervals(scores: Sequence[AnyScore]) -> dict[str, str]:
    """The metrics of a line of a table."""
    return {metric: str(interval) for metric, interval in summarise(scores).items()}


def budget_of(folder: Path) -> Budget:
    """The amounts that a quickstart made."""
    return Budget(**json.loads((folder / "budget.json").read_text()))


def with_datasets(quickstart: Path, folder: Path) -> Path:
    """Makes a folder for another student of the quickstart's datasets, which it links to."""
    folder.mkdir(parents=True, exist_ok=True)
    for made in (MAKING, "encoded", DEPTHS, f"encoded-{DEPTHS}"):
        if not (folder / made).is_symlink():
            (folder / made).symlink_to((quickstart / made).resolve())
    return folder


def train(folder: Path, budget: Budget, *flags: str) -> Path:
    """Trains a student on the datasets in a folder, as the quickstart does; returns its export."""
    export = folder / "export"
    if not export.exists():
        run_steps(student_steps(folder, budget, flags), dsd, print)
    return export


def train_uncurated(folder: Path) -> Path:
    """Trains a student on the quickstart's grids without the judge; returns its export."""
    own = folder / "uncurated"
    export = own / "export"
    if export.exists():
        return export
    shutil.rmtree(own, ignore_errors=True)
    shutil.copytree(folder / "making", own / "making")
    for name in ("making.toml", "captions.csv", "lights.toml"):
        shutil.copy(folder / name, own / name)
    for name in ("caption", "dataset"):
        shutil.rmtree(own / "making" / name)
    parts = begun_folder(own / "making")
    for part in range(parts.count):
        rows = [
            dataclasses.replace(row, status="kept", verdict="yes", reason=None)
            for row in parts.read(JUDGEMENTS, part)
        ]
        parts.write(JUDGEMENTS, part, rows)
    making = str(own / "making.toml")
    packing = [
        Step("Describe every pair", ["data", "caption", making]),
        Step("Pack the pairs", ["data", "pack", making]),
    ]
    run_steps(packing, dsd, print)
    return train(own, budget_of(folder))


def plot(rows: Sequence[dict[str, Any]]) -> None:
    """Identity and prompt following over the image scale, a line per text scale."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, both = plt.subplots(1, 2, figsize=(8, 3.5), layout="constrained", sharey=True)
    for axes, metric in zip(both, ("identity", "prompt"), strict=True):
        for text in SWEEP:
            own = [row for row in rows if row["t_guidance"] == text]
            scales = [row["i_guidance"] for row in own]
            values = [float(row[metric].split()[0]) for row in own]
            axes.plot(scales, values, "o-", alpha=0.7, label=f"text scale {text:g}")
        axes.set(xlabel="image scale", title=metric, ylim=(0, 1.05))
    both[0].legend(fontsize=8)
    figure.savefig(PLOT, dpi=120)


def main() -> None:
    """Scores all; about 15 minutes on two cores, training without curation included."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("quickstart", type=Path)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--sweep_cases", type=int, default=100)
    parser.add_argument("--steps", type=int, default=16)
    given = parser.parse_args()
    cases = make_cases(given.cases)
    export, steps = given.quickstart / "export", given.steps
    seen = make_cases(given.cases, held_out=False)
    student, longer = load(export), load(toy_lora_path())
    rows = []
    for name, pipe, own in (
        ("teacher, text alone", load(None), cases),
        ("student, quickstart", student, cases),
        ("student, quickstart, subjects seen in training", student, seen),
        ("student, not curated", load(train_uncurated(given.quickstart)), cases),
        ("student, longer run that ships", longer, cases),
        ("student, longer run that ships, subjects seen in training", longer, seen),
    ):
        scores = scores_of(pipe, own, steps)
        same = sum(s.identity for s in scores)
        rows.append({"model": name, "cases": len(own), "same subject": same, **intervals(scores)})
        print(rows[-1], flush=True)
    worst = largest_difference(
        toy_flux_path(), export, cases[:8], steps=steps, max_sequence_length=TEXT_TOKENS
    )
    save(
        __file__,
        rows,
        sampling_steps=steps,
        image_guidance=IMAGE_SCALE,
        largest_pixel_difference_in_pytorch=worst,
    )
    few = cases[: given.sweep_cases]
    sweep = []
    for text, image in itertools.product(SWEEP, SWEEP):
        scores = scores_of(student, few, steps, i_guidance=image, t_guidance=text)
        scales = {"i_guidance": image, "t_guidance": text}
        sweep.append({**scales, "cases": len(few), **intervals(scores)})
    save(__file__, sweep, "guidance", sampling_steps=steps)
    plot(sweep)


if __name__ == "__main__":
    main()
