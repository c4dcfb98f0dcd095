"""Runs of tiny pictures, and a backbone whose features are read from them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Pictures

from dsd_jax.infer.evaluate.cases import Case, Picture
from dsd_jax.infer.evaluate.features import Family, Input, Kind, Prepared
from dsd_jax.infer.evaluate.runs import Image, Run, write_run
from dsd_jax.toy import score as toy
from dsd_jax.toy.judge import Seen

SIDE = 32


def save(pixels: np.ndarray, path: Path) -> str:
    """Writes a picture, and gives its digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Pictures.fromarray(pixels).save(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def plain(colour: Sequence[int]) -> np.ndarray:
    """A picture of one colour."""
    return np.full((SIDE, SIDE, 3), colour, np.uint8)


def true_picture(root: Path, name: str, pixels: np.ndarray, mask: np.ndarray | None = None):
    """A picture of a benchmark, with its mask."""
    path = root / "bench" / f"{name}.png"
    sha256 = save(pixels, path)
    if mask is None:
        return Picture(path, sha256)
    save(mask.astype(np.uint8) * 255, root / "bench" / f"{name}.mask.png")
    return Picture(path, sha256, root / "bench" / f"{name}.mask.png")


def made_run(root: Path, method: str, cases: Sequence[Case], images: dict[str, np.ndarray]) -> Run:
    """A run whose images are given by `case` or `case_sample`."""
    made = []
    for name, pixels in images.items():
        case, _, sample = name.partition("_")
        path = root / method / "images" / f"{name}.png"
        made.append(Image(case, int(sample or 0), path, save(pixels, path)))
    return write_run(root / method, method, cases, made, {})


def toy_cases(root: Path, count: int) -> list[Case]:
    """Cases of the toy world with a mask of the reference and a second true picture."""
    cases = []
    for own in toy.make_cases(count):
        mask = Seen(**vars(own.subject), **vars(own.before), error=0.0).mask()
        reference = true_picture(root, f"{own.id}-reference", own.reference(), mask)
        target = true_picture(root, f"{own.id}-target", own.ideal())
        cases.append(Case(own.id, "toy", own.id, own.text, (reference,), (target,), tags=own.tags))
    return cases


class Colours:
    """A backbone whose feature of a picture is the mean of its colour; it counts its inputs."""

    batch, digest, texts = 2, "colours", True

    def __init__(self, family: Family = "dino") -> None:
        self.family, self.name, self.seen = family, "colours", 0

    def prepare(self, given: Input, pictures: Sequence[Pictures.Image]) -> Prepared:
        if given.kind == "text":
            return given.text
        if given.kind == "patches":
            return np.asarray(pictures[0], np.float32)[::8, ::8]
        if given.kind == "inside":
            return np.asarray(pictures[0], np.float32)[::8, ::8, 0] > 127
        return np.asarray(pictures[0], np.float32).mean((0, 1))

    def run(self, kind: Kind, prepared: Sequence[Prepared], /) -> np.ndarray:
        self.seen += len(prepared)
        if kind == "text":
            words = {"red": [1, 0, 0], "green": [0, 1, 0]}
            return np.asarray([words[str(text)] for text in prepared], np.float32)
        return np.stack(prepared)
