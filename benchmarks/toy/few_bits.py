"""Measures what weights in 16, 8 and 4 bits cost on the toy world, beside the sampler's own error.

    dsd quickstart --output_dir outputs/quickstart
    python -m benchmarks.toy.few_bits [--cases 300] [--steps 16] [--student FOLDER]
        [--quickstart outputs/quickstart] [--train_steps 2000]

Every row sees the cases and the noise of `study.py`, with true guidance. `latent error` is that of
the final latents, both frames, relative to float32 weights at the same number of steps; the row
with half the steps shows what the sampler itself leaves. `identity` and so on as in `study.py`.
With `--quickstart` it also trains two students on the datasets of a finished quickstart, from the
same seed: one on the base in float32, one on the base in int8. What is trained stays in that
folder, and a second start goes on with it.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.results import save
from benchmarks.toy.study import BATCH, AnyScore, budget_of, intervals, train, with_datasets
from dsd_jax.config import BFLOAT16, FLOAT32
from dsd_jax.convert.hub import TOY
from dsd_jax.infer import Pipeline
from dsd_jax.infer.options import LoadOptionsDict
from dsd_jax.quickstart.inputs import IMAGE_SCALE, TEXT_TOKENS
from dsd_jax.toy.folder import toy_lora_path
from dsd_jax.toy.score import Case, make_cases, score
from dsd_jax.toy.world import PANEL
from dsd_jax.train.metrics import read_metrics

SECTIONS = {
    "": (
        "Weights in few bits on the toy world",
        """The student that ships, with true guidance: final latents relative to those of float32
weights, and scores with 95 % bootstrap intervals over cases. *int8* and *int4* hold the kernels of
the transformer's blocks so, and those of T5 in int8; their products are in float32, and the LoRA
stays beside them. *bfloat16* rounds all weights and all of the computation.""",
    ),
    "training": (
        "Training on weights in few bits, on the toy world",
        """Students of equal steps, pairs and seed, whose frozen base is held in float32 or in int8
while they are trained; both are sampled with the base in float32. *Loss*: mean of the last hundred
lines of the log.""",
    ),
}

KINDS: dict[str, LoadOptionsDict] = {
    "float32": {"precision": FLOAT32},
    "bfloat16": {"precision": BFLOAT16},
    "int8": {"precision": FLOAT32, "weights": "int8"},
    "int4": {"precision": FLOAT32, "weights": "int4"},
}
TRAINED = ("float32", "int8")
LAST = 100  # lines of the log whose losses are averaged

Rows = list[dict[str, Any]]


def load(student: Path, kind: str) -> Pipeline:
    """Opens the student, an export or the shipped one, with weights of a kind."""
    transformer = student / "transformer"
    return Pipeline.load(
        TOY,
        model_path=transformer if transformer.is_dir() else None,
        lora_path=student,
        max_sequence_length=TEXT_TOKENS,
        **KINDS[kind],
    )


def paint(pipe: Pipeline, cases: Sequence[Case], steps: int) -> tuple[np.ndarray, list[AnyScore]]:
    """Final latents and scores of all cases."""
    latents, scores = [], []
    for start in range(0, len(cases), BATCH):
        part = cases[start : start + BATCH]
        made = pipe(
            [case.text for case in part],
            [Image.fromarray(case.reference()) for case in part],
            seed=[case.seed for case in part],
            batch_size=BATCH,
            height=PANEL,
            width=2 * PANEL,
            steps=steps,
            i_guidance=IMAGE_SCALE,
        )
        latents.append(made.latents)
        scores += [score(c, np.asarray(image)) for c, image in zip(part, made, strict=True)]
    return np.concatenate(latents), scores


def trained(quickstart: Path, kind: str, steps: int) -> Path:
    """Trains a student with its base held in weights of a kind; returns its folder."""
    folder = with_datasets(quickstart, quickstart / "few_bits" / f"{kind}-{steps}")
    budget = dataclasses.replace(budget_of(quickstart), train_steps=steps)
    train(folder, budget, *([] if kind == "float32" else ["--weights", kind]))
    return folder


def training_rows(quickstart: Path, cases: Sequence[Case], train_steps: int, steps: int) -> Rows:
    """The scores of students that were trained on weights of each kind."""
    rows: Rows = []
    for kind in TRAINED:
        folder = trained(quickstart, kind, train_steps)
        losses = [row["loss"] for row in read_metrics(folder / "run") if "loss" in row]
        _, scores = paint(load(folder / "export", "float32"), cases, steps)
        loss = f"{float(np.mean(losses[-LAST:])):.4f}"
        rows.append({"base in training": kind, "loss": loss, **intervals(scores)})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Samples, prints and saves; about three minutes for 60 cases on two quiet cores."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--student", type=Path, default=None, help="default: the one that ships")
    parser.add_argument("--quickstart", type=Path, default=None, help="to train on its datasets")
    parser.add_argument("--train_steps", type=int, default=2000)
    given = parser.parse_args()
    cases, student = make_cases(given.cases), given.student or toy_lora_path()
    rows: Rows = []
    exact = np.zeros(0)
    for kind, steps in (*((kind, given.steps) for kind in KINDS), ("float32", given.steps // 2)):
        latents, scores = paint(load(student, kind), cases, steps)
        if not rows:
            exact = latents
        error = float(np.linalg.norm(latents - exact) / np.linalg.norm(exact))
        row = {"weights": kind, "steps": steps, "latent error": f"{error:.4f}"}
        rows.append({**row, **intervals(scores)})
        print(rows[-1], flush=True)
    if given.student is None:
        save(__file__, rows, cases=given.cases, image_guidance=IMAGE_SCALE)
    if given.quickstart is not None:
        rows = training_rows(given.quickstart, cases, given.train_steps, given.steps)
        own = {"cases": given.cases, "training_steps": given.train_steps}
        save(__file__, rows, "training", **own, image_guidance=IMAGE_SCALE)


if __name__ == "__main__":
    main()
