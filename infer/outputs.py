"""The files that `dsd generate` writes: named and checked before the work, not after it."""

import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dsd_jax.errors import UserError
from dsd_jax.files import replacing
from dsd_jax.images import beside, save_image, written_format
from dsd_jax.infer.generated import Generated
from dsd_jax.marks import GENERATED, Mark

__all__ = ["Outputs", "Places"]


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The files to write.

    Attributes:
        output_path: Image to write: .png, .jpg or .webp. Several images are NAME-0, NAME-1 and so
            on.
        overwrite: Replace existing files. By default the new ones are numbered, NAME-2 and so on.
        save_frames: Also write NAME-frames, the reference frame beside the target.
        output_latents: Also write the final latents, .npy, float32 [N, 16, H/8, W/8].
    """

    output_path: Path = Path("output.png")
    overwrite: bool = False
    save_frames: bool = False
    output_latents: Path | None = None

    def places(self, count: int) -> "Places":
        """The files of `count` images.

        Raises:
            UserError: an ending without a format, or a place that cannot be written.
        """
        written_format(self.output_path)
        if self.output_latents is not None and self.output_latents.suffix != ".npy":
            raise UserError(f"{self.output_latents} must end in .npy")
        wanted = Places(*self._images(self.output_path, count), self.output_latents)
        for path in wanted.files:
            check_place(path)
        if self.overwrite:
            return wanted
        numbered = (self._images(path, count) for path in _numbered(self.output_path))
        images, frames = next(both for both in numbered if not _any_exists(*both))
        latents = self.output_latents
        if latents is not None:
            latents = next(path for path in _numbered(latents) if not path.exists())
        found = Places(images, frames, latents)
        notices = tuple(
            f"{old} exists; writing {new} (--overwrite replaces it)"
            for old, new in zip(wanted.files, found.files, strict=True)
            if old != new and old.exists()
        )
        return dataclasses.replace(found, notices=notices)

    def _images(self, path: Path, count: int) -> tuple[list[Path], list[Path]]:
        images = [path] if count == 1 else [_suffixed(path, f"-{i}") for i in range(count)]
        return images, [_suffixed(image, "-frames") for image in images] if self.save_frames else []


@dataclasses.dataclass(frozen=True)
class Places:
    """Files of images, of frames (none, or one per image) and of latents; and notices."""

    images: list[Path]
    frames: list[Path]
    latents: Path | None = None
    notices: tuple[str, ...] = ()

    @property
    def files(self) -> list[Path]:
        return [*self.images, *self.frames, *([self.latents] if self.latents else [])]

    def write(self, made: Generated, mark: Mark | None = GENERATED) -> list[Path]:
        """Writes everything; returns the files in order.

        Args:
            made: the images.
            mark: says in each picture that a model made it; None writes no such mark.

        Raises:
            UserError: the operating system refuses.
        """
        for path, image, parameters in zip(self.images, made.images, made.parameters, strict=True):
            save_image(image, path, parameters, mark)
        for i, path in enumerate(self.frames):
            frames = beside([made.references[i], made.images[i]])
            save_image(frames, path, made.parameters[i], mark)
        if self.latents is not None:
            with replacing(self.latents) as partial, partial.open("wb") as file:
                np.save(file, made.latents)
        return self.files


def _suffixed(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.stem}{suffix}{path.suffix}")


def _numbered(path: Path) -> Iterator[Path]:
    """The path, then NAME-2, NAME-3, ..."""
    yield path
    for number in itertools.count(2):
        yield _suffixed(path, f"-{number}")


def _any_exists(*groups: list[Path]) -> bool:
    return any(path.exists() for group in groups for path in group)


def check_place(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file name")
    parent = next(parent for parent in path.parents if parent.exists())
    if not parent.is_dir():
        raise UserError(f"cannot write {path}: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: no permission in {parent}")
