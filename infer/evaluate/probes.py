"""Pictures with known answers: a judge of "the same subject?" must be right about each of them.

They are made from the references of a benchmark. A yes is due to every harmless change of a picture
and to other pictures of the subject; a no to every other subject, also on the same background and
with a text or a frame that asks for a yes (visual tricks raise scores, arXiv 2505.15249).
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from dsd_jax.errors import UserError
from dsd_jax.files import file_sha256
from dsd_jax.images import open_image, save_image
from dsd_jax.infer.evaluate.audit import EXPECTED, PROBE
from dsd_jax.infer.evaluate.benches.registry import BENCHES
from dsd_jax.infer.evaluate.cases import Case, Picture, read_cases
from dsd_jax.infer.evaluate.runs import Image as RunImage
from dsd_jax.infer.evaluate.runs import Run, write_run

__all__ = ["METHOD", "Probe", "write_probes"]

METHOD = "probes"
_QUALITY, _BRIGHTER = 30, 1.3
_CLAIM = "the same subject"


class Probe(NamedTuple):
    """A picture with a known answer.

    Attributes:
        kind: Name of the kind.
        expected: Whether it shows the subject of the reference.
        picture: The picture.
    """

    kind: str
    expected: Literal["yes", "no"]
    picture: Image.Image


def write_probes(source: Path, folder: Path, count: int, seed: int) -> Run:
    """Makes probes of drawn subjects, as the run of a method called `probes`.

    Probes that need masks or further pictures are made where a case has them.

    Args:
        source: Cases file.
        folder: Folder of the run.
        count: Number of subjects.
        seed: Seed of all choices.

    Raises:
        UserError: There are fewer subjects, or a picture or the folder cannot be used.
    """
    rng = np.random.default_rng(seed)
    subjects: dict[str, Case] = {}
    for case in read_cases(source):
        subjects.setdefault(case.subject, case)
    if not 0 < count <= len(subjects):
        raise UserError(f"--count is {count}, but {source} has {len(subjects)} subjects")
    everyone = list(subjects.values())
    cases, images = [], []
    for place in rng.permutation(len(everyone))[:count]:
        case = everyone[place]
        for probe in _probes(case, _another(case, everyone, rng), rng):
            made = Case(
                id=f"{case.id}-{probe.kind}",
                bench=case.bench,
                subject=case.subject,
                prompt=case.prompt,
                references=case.references[:1],
                category=case.category,
                prompt_index=case.prompt_index,
                prompt_class=case.prompt_class,
                subject_text=case.subject_text,
                tags={PROBE: probe.kind, EXPECTED: probe.expected},
            )
            path = folder / "images" / f"{made.id}.png"
            save_image(probe.picture, path)
            cases.append(made)
            images.append(RunImage(made.id, 0, path, file_sha256(path)))
    return write_run(folder, METHOD, cases, images, {"cases": str(source), "seed": seed})


def _another(case: Case, everyone: Sequence[Case], rng: np.random.Generator) -> Case | None:
    """Another subject of the same category, if there is one."""
    others = [
        each for each in everyone if each.subject != case.subject and each.category == case.category
    ]
    return others[rng.integers(len(others))] if others else None


def _probes(case: Case, other: Case | None, rng: np.random.Generator) -> Iterator[Probe]:
    reference = open_image(case.reference.path)
    yield Probe("identical", "yes", reference)
    yield Probe("mirrored", "yes", ImageOps.mirror(reference))
    yield Probe("recompressed", "yes", _recompressed(reference))
    yield Probe("brightened", "yes", ImageEnhance.Brightness(reference).enhance(_BRIGHTER))
    for again in case.targets[:1]:
        yield Probe("another-picture", "yes", open_image(again.path))
    if other is not None:
        stranger = open_image(other.reference.path)
        yield Probe("other-subject", "no", stranger)
        yield Probe("other-subject-with-text", "no", _with_text(stranger))
        yield Probe("other-subject-framed", "no", _framed(stranger))
        if case.reference.mask is not None and other.reference.mask is not None:
            pasted = _on_background(case.reference, other.reference)
            yield Probe("other-subject-same-background", "no", pasted)
    for name, bench in BENCHES.items():
        if name != case.bench or bench.changed is None:
            continue
        for number, picture in bench.changed(case, rng):
            yield Probe(f"{number}-attributes-changed", "no" if number else "yes", picture)


def _recompressed(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return open_image(file.getvalue())


def _with_text(picture: Image.Image) -> Image.Image:
    """The picture with a claim across its lower edge."""
    changed = picture.copy()
    draw = ImageDraw.Draw(changed)
    size = max(picture.width // 12, 4)
    top = picture.height - 2 * size
    draw.rectangle((0, top, picture.width, picture.height), fill="white")
    draw.text((picture.width // 2, top + size), _CLAIM, "black", anchor="mm", font_size=size)
    return changed


def _framed(picture: Image.Image) -> Image.Image:
    """The picture in a golden frame."""
    border = max(min(picture.size) // 16, 1)
    inner = picture.resize((picture.width - 2 * border, picture.height - 2 * border))
    return ImageOps.expand(inner, border, "#c9a227")


def _on_background(reference: Picture, other: Picture) -> Image.Image:
    """The other subject where the subject of the reference stood.

    The place is filled with the blurred surroundings first.

    Raises:
        UserError: A mask is empty.
    """
    picture, place = _masked(reference)
    stranger, cut = _masked(other)
    left, top, right, bottom = place.getbbox() or (0, 0, 0, 0)
    box = cut.getbbox()
    if box is None or right == left:
        raise UserError(f"the mask of {other.path if box is None else reference.path} is empty")
    radius = max(min(picture.size) // 32, 1)
    hole = place.filter(ImageFilter.MaxFilter(2 * radius + 1))
    around = np.asarray(ImageOps.invert(hole), np.float32)[..., None] / 255
    # Blurs only what lies around the subject, so that its colours do not bleed into the hole.
    kept = Image.fromarray((np.asarray(picture, np.float32) * around).astype(np.uint8))
    weight = Image.fromarray((around[..., 0] * 255).astype(np.uint8))
    wide = max(right - left, bottom - top) / 2
    sums, weights = (
        np.asarray(each.filter(ImageFilter.GaussianBlur(wide)), np.float32)
        for each in (kept, weight)
    )
    fill = np.clip(sums * 255 / np.maximum(weights, 1)[..., None], 0, 255).astype(np.uint8)
    picture.paste(Image.fromarray(fill), mask=hole)
    size = right - left, bottom - top
    picture.paste(
        stranger.crop(box).resize(size, Image.Resampling.LANCZOS),
        (left, top),
        cut.crop(box).resize(size, Image.Resampling.LANCZOS),
    )
    return picture


def _masked(picture: Picture) -> tuple[Image.Image, Image.Image]:
    """A picture and its mask, of one size."""
    assert picture.mask is not None
    opened = open_image(picture.path)
    mask = open_image(picture.mask).convert("L")
    return opened, mask.resize(opened.size, Image.Resampling.NEAREST)
