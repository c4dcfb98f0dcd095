"""`source.json` of a converted model: what its bytes are, so that damage is named and never used.

It holds the SHA-256 of every tensor (`tensors`), of `config.json` (`config`), of the files whose
numbers these are (`sha256`), and of itself (`digest`).
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from dsd_jax import structured
from dsd_jax.errors import UserError
from dsd_jax.files import write_object

__all__ = ["ORIGIN", "PARAMS", "Origin", "read_origin", "write_origin"]

PARAMS = "params"
"""The Orbax checkpoint inside our folder."""
ORIGIN = "source.json"
_CONFIG = "config.json"
_OTHER = "it has another SHA-256 than it was written with"


@dataclasses.dataclass(frozen=True)
class Origin:
    """The `source.json` of a converted model.

    Attributes:
        sha256: of the files whose numbers the weights are, by file name.
        tensors: SHA-256 of every tensor by its path.
        config: SHA-256 of `config.json`.
    """

    sha256: dict[str, str]
    tensors: dict[str, str]
    config: str


def write_origin(folder: epath.Path, origin: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Writes `source.json`, then `config.json`, which makes the folder complete.

    Args:
        folder: folder of one model.
        origin: `path` and `sha256` of the source, and `tensors`, the digests of converted ones.
        config: config of the model.
    """
    text = json.dumps(config, indent=2) + "\n"
    if "tensors" in origin:
        origin = {**origin, "config": _sha256(text.encode())}
        origin["digest"] = _digest(origin)
    write_object(folder / ORIGIN, json.dumps(origin, indent=2) + "\n")
    write_object(folder / _CONFIG, text)


def read_origin(folder: epath.Path) -> Origin:
    """Reads the `source.json` of a converted model, and checks it and `config.json` against it.

    Raises:
        UserError: one of them is missing or damaged.
    """
    path = folder / ORIGIN
    if not path.exists():
        raise UserError(
            f"{folder} is not a finished conversion: it has no {ORIGIN}; write it again with `dsd "
            "convert to-jax`"
        )
    try:
        found = structured.read_json(path, dict)
    except structured.MalformedError as error:
        raise _damaged(path, error.reason) from None
    if found.get("digest") != _digest(found):
        raise _damaged(path, _OTHER)
    origin = structured.build(Origin, found, str(path))
    config = structured.read_bytes(folder / _CONFIG, structured.JSON.size)
    if _sha256(config) != origin.config:
        raise _damaged(folder / _CONFIG, _OTHER)
    return origin


def _damaged(path: epath.Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged: {reason}; copy or convert it again")


def _digest(origin: Mapping[str, Any]) -> str:
    """SHA-256 of everything else, in an order of its own."""
    rest = {name: value for name, value in origin.items() if name != "digest"}
    return _sha256(json.dumps(rest, sort_keys=True).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
