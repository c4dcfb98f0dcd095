"""Features of pictures, computed once and kept on disk by the contents of picture and model.

A feature's place depends on what the files contain, not on their names: a picture that many runs
share is computed once, and another picture under an old name is computed anew. Several processes
may share the folder, and a damaged file in it is computed again.
"""

import collections
import contextlib
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.files import explained, partial_of
from dsd_jax.images import open_image
from dsd_jax.progress import progress
from dsd_jax.threads import in_order

__all__ = [
    "Backbone",
    "Failure",
    "Family",
    "FeatureStore",
    "File",
    "Files",
    "Input",
    "Kind",
    "Prepared",
    "UndefinedError",
    "digest_of",
    "model_digest",
]

Family = Literal["dino", "clip", "pixels", "truth", "lpips", "drift", "sscd", "depth"]
Kind = Literal[
    "feature", "subject", "background", "patches", "inside", "text", "distance", "truth", "depth",
    "map",
]  # fmt: skip
Prepared: TypeAlias = np.ndarray | str
_KEPT = {
    "feature",
    "subject",
    "background",
    "text",
    "distance",
    "truth",
    "depth",
    "map",
}  # others are large
_THREADS = 4  # that decode pictures
_DIGEST = 32  # bytes of a SHA-256


def digest_of(parts: object) -> str:
    """Digest of anything that JSON can hold; other values count by their text."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def model_digest(path: str, weights: Mapping[str, str], *settings: object) -> str:
    """Digest of a model whose features depend on weights and settings.

    Args:
        path: Its folder or hub id, for the message.
        weights: Digest of every weight file by its name.
        settings: Everything else that its features depend on.

    Raises:
        UserError: The digests of the weights are not known.
    """
    if not weights:
        raise UserError(
            f"{path} does not tell which files its weights come from; convert them again"
        )
    return digest_of([sorted(weights.values()), *settings])


class UndefinedError(Exception):
    """A metric says nothing about an image; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """A missing number, and why: it has no meaning, or a file cannot be read."""

    state: Literal["undefined", "error"]
    reason: str


@dataclasses.dataclass(frozen=True)
class File:
    """A file with the digest that it must have. Files of the same content are equal."""

    path: Path = dataclasses.field(compare=False)
    sha256: str


@dataclasses.dataclass(frozen=True)
class Input:
    """Something that a backbone turns into an array.

    Attributes:
        kind: "feature" of a picture; of its "subject" alone or of its "background" alone, by the
            mask that is the second file; its "patches"; the patches "inside" a mask; the feature of
            a "text"; the "distance" of two pictures; the "truth" about a picture; its "depth"; the
            depth "map" that the first file is, cut as the second file is.
        files: Pictures and masks.
        text: The text, or the tags of a case as JSON.
    """

    kind: Kind
    files: tuple[File, ...] = ()
    text: str = ""

    @property
    def small(self) -> bool:
        """Whether its array is small enough to be kept."""
        return self.kind in _KEPT

    @property
    def key(self) -> str:
        """Digest of the contents."""
        parts = [self.kind, [file.sha256 for file in self.files], self.text]
        return digest_of(parts)


@runtime_checkable
class Backbone(Protocol):
    """A model that makes arrays of pictures.

    Attributes:
        name: Name of the model, which the names of metrics contain.
        family: Kind of model, which decides about the metrics that it has.
        batch: Number of inputs per call of `run`.
        texts: Whether it makes features of texts too.
    """

    name: str
    family: Family
    batch: int
    texts: bool

    @property
    def digest(self) -> str:
        """Digest of everything that decides about its arrays: weights and preprocessing."""

    def prepare(self, given: Input, pictures: Sequence[Image.Image], /) -> Prepared:
        """Does the work of one input that needs no model. Threads call it.

        Raises:
            UndefinedError: The input has no array.
            UserError: Its files do not fit the model.
        """

    def run(self, kind: Kind, prepared: Sequence[Prepared], /) -> np.ndarray:
        """An array for each prepared input, all of one kind and shape."""


class Files:
    """Digests of files as they are, each computed once."""

    def __init__(self) -> None:
        self._digests: dict[Path, str] = {}

    def learn(self, paths: Iterable[Path]) -> None:
        """Computes the digests of many files in threads; `file` tells about those that are bad."""
        for _, future in in_order(self.file, paths, threads=_THREADS):
            with contextlib.suppress(UserError):
                future.result()

    def file(self, path: Path) -> File:
        """The file as it is.

        Raises:
            UserError: It cannot be read.
        """
        if path not in self._digests:
            try:
                with path.open("rb") as opened:
                    self._digests[path] = hashlib.file_digest(opened, "sha256").hexdigest()
            except FileNotFoundError:
                raise UserError(f"there is no file {path}") from None
            except OSError as error:
                raise UserError(f"cannot read {path}: {error.strerror}") from None
        return File(path, self._digests[path])

    def check(self, file: File) -> None:
        """Checks that a file is what it was.

        Raises:
            UserError: It has changed, or cannot be read.
        """
        if self.file(file.path) != file:
            raise UserError(
                f"{file.path} has changed since it was recorded; prepare the cases or import the "
                "run again"
            )


class FeatureStore:
    """Arrays of backbones, from disk where they are there.

    Args:
        folder: Where they are kept; made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, Files()

    def fetch(
        self, backbone: Backbone, inputs: Iterable[Input]
    ) -> dict[Input, np.ndarray | Failure]:
        """The array of every input, or the reason why there is none.

        Raises:
            UserError: The weights of the backbone do not fit, or the folder cannot be written.
        """
        found: dict[Input, np.ndarray | Failure] = {}
        missing: dict[Kind, list[Input]] = collections.defaultdict(list)
        for given in dict.fromkeys(inputs):
            kept = self._read(backbone, given)
            if kept is None:
                missing[given.kind].append(given)
            else:
                found[given] = kept
        for kind, group in missing.items():
            if kind in _KEPT:
                with progress(f"{backbone.name}: {kind}", len(group), "inputs") as advance:
                    for given, array in self._computed(backbone, kind, group):
                        found[given] = array
                        advance()
            else:  # the caller asks for a few at a time, and shows how many it has
                found |= self._computed(backbone, kind, group)
        return found

    def _computed(
        self, backbone: Backbone, kind: Kind, inputs: Sequence[Input]
    ) -> Iterator[tuple[Input, np.ndarray | Failure]]:
        """Decodes in threads, computes in batches of one shape, and keeps the results."""
        batches: dict[tuple[int, ...], list[tuple[Input, Prepared]]] = collections.defaultdict(list)

        def load(given: Input) -> Prepared:
            for file in given.files:
                self.files.check(file)
            return backbone.prepare(given, [open_image(file.path) for file in given.files])

        for given, future in in_order(
            load, inputs, threads=_THREADS, ahead=_THREADS + 2 * backbone.batch
        ):
            try:
                prepared = future.result()
            except UndefinedError as reason:
                yield given, Failure("undefined", str(reason))
                continue
            except UserError as error:
                yield given, Failure("error", str(error))
                continue
            shape = prepared.shape if isinstance(prepared, np.ndarray) else ()
            batches[shape].append((given, prepared))
            if len(batches[shape]) == backbone.batch:
                yield from self._run(backbone, kind, batches.pop(shape))
        for batch in batches.values():
            yield from self._run(backbone, kind, batch)

    def _run(
        self, backbone: Backbone, kind: Kind, batch: Sequence[tuple[Input, Prepared]]
    ) -> Iterator[tuple[Input, np.ndarray]]:
        arrays = backbone.run(kind, [prepared for _, prepared in batch])
        for (given, _), array in zip(batch, arrays, strict=True):
            if given.small:
                self._write(backbone, given, array)
            yield given, array

    def _path(self, backbone: Backbone, given: Input) -> Path:
        model = f"{backbone.name}-{backbone.digest[:16]}"
        return self.folder / model / given.kind / given.key[:2] / given.key

    def _read(self, backbone: Backbone, given: Input) -> np.ndarray | None:
        """An array from disk; None if it is not there or damaged."""
        if not given.small:
            return None
        try:
            data = self._path(backbone, given).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
            return None
        array: np.ndarray = np.load(io.BytesIO(data[_DIGEST:]), allow_pickle=False)
        return array

    def _write(self, backbone: Backbone, given: Input, array: np.ndarray) -> None:
        """Keeps an array, without waiting for the disk: readers notice what a power cut damaged."""
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        data = buffer.getvalue()
        path = self._path(backbone, given)
        partial = partial_of(path, shared=True)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(hashlib.sha256(data).digest() + data)
            partial.replace(path)
