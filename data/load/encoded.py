"""VAE moments and text embeddings, computed once: a folder of shards beside a dataset.

    encoded.json                  what was encoded, with what; written last
    encoded-00000.array_record    one record per record of the dataset's shard 00000
    encoded-00000.index           where each of them is
    null.msgpack                  embedding of the empty prompt, if there are embeddings

Digests bind the folder to the dataset, the sizes and the weights: others are refused.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import msgpack
import numpy as np

from dsd_jax.data.pairs.shards import Shard, Shards
from dsd_jax.data.pairs.store import fingerprint_of, read_manifest
from dsd_jax.errors import UserError
from dsd_jax.files import file_sha256, write_file
from dsd_jax.types import Float, Int

__all__ = [
    "ENCODED_STEM",
    "MANIFEST",
    "Binding",
    "Embedding",
    "EncodedPair",
    "EncodedStore",
    "Moments",
    "pack_encoded",
    "text_digest",
    "weights_digest",
    "write_encoded_manifest",
    "write_null",
]

FORMAT = "dsd-encoded"
SCHEMA = 2
MANIFEST = "encoded.json"
ENCODED_STEM = "encoded"
_NULL = "null.msgpack"
_ARRAYS = ("canvas", "condition", "caption_text", "instruction_text")
_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}

Size = tuple[int, int]


class Moments(NamedTuple):
    """Mean and log variance of latents, before `normalize`; one picture or a batch."""

    mean: Float[Any, "*B h w C"]
    logvar: Float[Any, "*B h w C"]


class Embedding(NamedTuple):
    """T5 token embeddings and the pooled CLIP embedding; one prompt or a batch."""

    txt: Float[Any, "*B Lt Dt"]
    vec: Float[Any, "*B Dv"]


@dataclasses.dataclass(frozen=True)
class EncodedPair:
    """The encoded form of a record: everything that training needs.

    Attributes:
        id, caption, instruction: as in the record.
        canvas: moments of [reference | target], encoded as one picture.
        condition: moments of [reference | black], encoded as one picture.
        caption_text, instruction_text: embeddings; None where there is no such text, or where no
            texts were encoded.
    """

    id: str
    caption: str
    instruction: str
    canvas: Moments
    condition: Moments
    caption_text: Embedding | None = None
    instruction_text: Embedding | None = None


@dataclasses.dataclass(frozen=True)
class Binding:
    """The dataset that was encoded, and the weights and settings that encoded it.

    Attributes:
        dataset: its fingerprint.
        sizes: height and width of a frame in pixels; each record in the one nearest in aspect.
        dtype: dtype of the computation and of the stored arrays, "bfloat16" or "float32".
        autoencoder: digest of its weights (`weights_digest`).
        text: digest of the text encoders' weights; None without embeddings.
        text_tokens: T5 tokens of every text; None without embeddings.
    """

    dataset: str
    sizes: tuple[Size, ...]
    dtype: str
    autoencoder: str
    text: str | None = None
    text_tokens: int | None = None


def weights_digest(files: Mapping[str, str]) -> str:
    """One digest for the weights of a model.

    Args:
        files: SHA-256 by file name, as `Component.sha256()` of `dsd_jax.convert` gives it.

    Raises:
        UserError: there are no digests, so nothing can be bound to these weights.
    """
    if not files:
        raise UserError(
            "these weights have no digests (a converted folder without its record of what it was "
            "converted from); convert them again with `dsd convert to-jax`"
        )
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def text_digest(t5: Mapping[str, str], clip: Mapping[str, str]) -> str:
    """`weights_digest` of both text encoders together."""
    both = {f"t5/{name}": digest for name, digest in t5.items()}
    return weights_digest(both | {f"clip/{name}": digest for name, digest in clip.items()})


def _pack_arrays(arrays: Moments | Embedding | None, dtype: str) -> Any:
    if arrays is None:
        return None
    return {
        name: [list(array.shape), np.asarray(array).astype(_DTYPES[dtype]).tobytes()]
        for name, array in arrays._asdict().items()
    }


def _unpack_array(packed: Sequence[Any], dtype: str) -> np.ndarray:
    shape, data = packed
    return np.frombuffer(data, _DTYPES[dtype]).reshape(shape)


def pack_encoded(pair: EncodedPair, dtype: str) -> bytes:
    """The record as msgpack; arrays as shape and bytes."""
    fields = {field.name: getattr(pair, field.name) for field in dataclasses.fields(pair)}
    for name in _ARRAYS:
        fields[name] = _pack_arrays(fields[name], dtype)
    return bytes(msgpack.packb(fields))


def write_null(folder: Path, encode: Callable[[], Embedding], dtype: str) -> None:
    """Writes the embedding of the empty prompt, unless it exists."""
    if not (folder / _NULL).exists():
        write_file(folder / _NULL, msgpack.packb(_pack_arrays(encode(), dtype)))


def write_encoded_manifest(folder: Path, binding: Binding, shards: Sequence[Shard]) -> None:
    """Completes an encoded folder."""
    content = {
        "format": FORMAT,
        "schema": SCHEMA,
        **dataclasses.asdict(binding),
        "count": sum(shard.count for shard in shards),
        "shards": [dataclasses.asdict(shard) for shard in shards],
        "fingerprint": fingerprint_of(shards),
        "null_sha256": file_sha256(folder / _NULL) if binding.text else None,
    }
    write_file(folder / MANIFEST, json.dumps(content, indent=1) + "\n")


class EncodedStore:
    """Random access to encoded records, by the record numbers of their dataset."""

    def __init__(
        self, path: Path, binding: Binding, shards: Sequence[Shard], null_sha256: str | None
    ) -> None:
        self.path, self.binding = path, binding
        self.shards = Shards(path, shards)
        self._null_sha256 = null_sha256
        self._places = self._read_places()

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        autoencoder: str | None = None,
        text: str | None = None,
        text_tokens: int | None = None,
    ) -> "EncodedStore":
        """Opens an encoded folder.

        Args:
            path: path of the folder.
            autoencoder, text: digests of the weights that it is to be used with; None allows any.
            text_tokens: T5 tokens that its texts must have, if it has texts; None allows any
                number.

        Raises:
            UserError: no such folder, unfinished or damaged, or encoded with other weights or
                another length of texts.
        """
        path = Path(path)
        if not (path / MANIFEST).exists():
            state = "an unfinished folder" if path.is_dir() else "not a folder"
            raise UserError(f"{path} is {state} of encoded pairs; run `dsd data encode` to its end")
        content = read_manifest(path / MANIFEST, FORMAT, SCHEMA)
        try:
            binding = Binding(
                content["dataset"],
                tuple((int(height), int(width)) for height, width in content["sizes"]),
                content["dtype"],
                content["autoencoder"],
                content["text"],
                content["text_tokens"],
            )
            store = cls(path, binding, content["shards"], content["null_sha256"])
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"cannot read {path / MANIFEST}: it lacks fields") from None
        for name, wanted, held in (
            ("VAE", autoencoder, binding.autoencoder),
            ("text encoders", text, binding.text),
        ):
            if wanted is not None and wanted != held:
                made = f"weights {held[:12]}" if held else "no text encoders"
                raise UserError(
                    f"{path} was encoded with {made}, but the {name} given have the digest "
                    f"{wanted[:12]}; encode again with these, or give those"
                )
        if None not in (text_tokens, binding.text_tokens) and text_tokens != binding.text_tokens:
            raise UserError(
                f"{path} holds texts of {binding.text_tokens} T5 tokens, but {text_tokens} are "
                f"asked for; give --max_sequence_length {binding.text_tokens}, or encode again"
            )
        return store

    @property
    def dataset(self) -> str:
        """Fingerprint of the dataset that was encoded."""
        return self.binding.dataset

    def __len__(self) -> int:
        return len(self.shards)

    def _read_places(self) -> Int[np.ndarray, " N"]:
        """Record number of the dataset -> record number here."""
        places: list[np.ndarray] = []
        done = 0
        for shard in self.shards.shards:
            order = np.asarray(self.shards.index(shard)["order"], np.int64)
            own = np.empty_like(order)
            own[order] = done + np.arange(len(order))
            places.append(own)
            done += len(order)
        return np.concatenate(places)

    def __getitem__(self, number: int) -> EncodedPair:
        """The encoded form of record `number` of the dataset.

        Raises:
            UserError: the record or its shard is damaged.
        """
        packed = self.shards.read(int(self._places[number]))
        dtype = self.binding.dtype
        try:
            fields = msgpack.unpackb(packed)
            for name in _ARRAYS:
                kind = Embedding if name.endswith("text") else Moments
                if fields[name] is not None:
                    arrays = (_unpack_array(array, dtype) for array in fields[name].values())
                    fields[name] = kind(*arrays)
            return EncodedPair(**fields)
        except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException):
            raise UserError(
                f"encoded record {number} of {self.path} is damaged; remove the folder and run "
                "`dsd data encode` again"
            ) from None

    @functools.cached_property
    def null(self) -> Embedding | None:
        """Embedding of the empty prompt; None if no texts were encoded.

        Raises:
            UserError: its file is missing or damaged.
        """
        if self.binding.text is None:
            return None
        path = self.path / _NULL
        if not path.exists() or file_sha256(path) != self._null_sha256:
            raise UserError(f"{path} is missing or damaged; run `dsd data encode` again")
        held = msgpack.unpackb(path.read_bytes())
        return Embedding(*(_unpack_array(array, self.binding.dtype) for array in held.values()))
