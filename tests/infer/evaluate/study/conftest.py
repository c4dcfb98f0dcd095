"""Runs of three methods on six cases, and studies of them."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from dsd_jax.infer.evaluate.cases import Case, Picture
from dsd_jax.infer.evaluate.runs import Image, Run, write_run
from dsd_jax.infer.evaluate.study.build import StudySettings, build_study

METHODS = ("first-method", "second-method", "third-method")


def picture(path: Path, seed: int, side: int) -> str:
    """Writes a picture of noise with metadata; returns its digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    exif = Pillow.Exif()
    exif[0x010E] = f"made by {path.parent.name}"
    Pillow.fromarray(pixels).save(path, exif=exif, icc_profile=b"profile of " + path.name.encode())
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    root = tmp_path_factory.mktemp("runs")
    cases = []
    for number in range(6):
        path = root / "bench" / f"{number}.png"
        reference = Picture(path, picture(path, number, 32))
        cases.append(
            Case(
                f"case-{number}",
                "jsonl",
                f"subject-{number // 2}",
                f"<b>prompt {number}</b> & more",
                (reference,),
                category=("animal", "object", "object")[number // 2],
                prompt_class=("photo", "style")[number % 2],
                tags={"size": "small"},
            )
        )
    made = []
    for place, method in enumerate(METHODS):
        images = []
        for number, case in enumerate(cases):
            path = root / method / f"{case.id}.png"
            # Every method has a size of its own, which must not tell it.
            digest = picture(path, 100 * place + number + 50, (32, 24, 16)[place])
            images.append(Image(case.id, 0, path, digest))
        made.append(write_run(root / "runs" / method, method, cases, images, {}))
    return made


@pytest.fixture(scope="session")
def studies(runs: list[Run], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A study of each mode."""
    root = tmp_path_factory.mktemp("studies")
    for mode in ("likert", "pair", "same"):
        build_study(runs, root / mode, StudySettings(mode, cases=6, minutes=5, raters=6))
    return {mode: root / mode for mode in ("likert", "pair", "same")}
