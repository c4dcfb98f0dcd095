"""Finds weights and datasets: a folder, a file, a bucket, a repository on the hub, or the toy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from etils import epath
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from dsd_jax.errors import UserError
from dsd_jax.extras import require
from dsd_jax.tables.find import ENDINGS
from dsd_jax.toy.folder import toy_flux_path, toy_lora_path, toy_vision_path

__all__ = ["TOY", "check_scheme", "find_table", "may_be_dataset_id", "resolve"]

TOY = "toy"
"""Name of the weights that ship with the package: the toy FLUX, its customiser's LoRA, and an image
encoder."""
_LINES = (".txt", ".text")
_SHIPPED = {"model": toy_flux_path, "lora": toy_lora_path, "vision": toy_vision_path}


def check_scheme(path: epath.PathLike) -> None:
    """Refuses a URL that cannot be read or written here; touches no network.

    Raises:
        UserError: a URL that is not of a bucket, or a `gs://` path without the library for it.
    """
    text = str(path)
    if "://" not in text:
        return
    if not text.startswith("gs://"):
        raise UserError(f"{text} is not a path; give a folder, gs://BUCKET/..., or a hub id")
    require("gcs")


def resolve(
    path_or_id: epath.PathLike,
    patterns: Sequence[str] | None = None,
    kind: Literal["model", "lora", "vision", "dataset"] = "model",
) -> epath.Path:
    """Finds a model, a LoRA or a dataset on disk or in a bucket.

    A path that exists, and the URL of a bucket, are returned as they are. `toy` is the FLUX,
    the LoRA or the image encoder that ships with the package. Anything else is the id of a
    repository, which comes from the Hugging Face cache, or from the hub where the network allows
    it.

    Args:
        path_or_id: A folder, a file, a `gs://` path, a hub id or `toy`.
        patterns: Globs of the files of a repository that are needed; by default all are.
        kind: The kind of repository.

    Raises:
        UserError: There is neither such a path nor such a repository.
    """
    text = str(path_or_id)
    check_scheme(text)
    path = epath.Path(text).expanduser()
    if "://" in text or path.exists():
        return path
    if text == TOY and kind in _SHIPPED:
        return epath.Path(_SHIPPED[kind]())
    parts = text.split("/")
    if len(parts) != 2 or not all(parts) or text.startswith((".", "~")):
        raise UserError(f"there is no folder or file {text}")

    try:
        wanted = None if patterns is None else list(patterns)
        repository = "dataset" if kind == "dataset" else "model"
        return epath.Path(snapshot_download(text, repo_type=repository, allow_patterns=wanted))
    except HFValidationError:
        raise UserError(f"there is no folder or file {text}") from None
    except GatedRepoError:
        raise UserError(
            f"{text} is gated: accept its licence on its hub page, then log in with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"there is no folder {text}, and no such repository on the hub (a private one needs "
            "`hf auth login`)"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"there is no folder {text}, it is not in the hub cache, and the hub cannot be "
            f"reached ({reason}); give the path of a folder"
        ) from None


def may_be_dataset_id(source: epath.PathLike) -> bool:
    """Whether a source of rows does not exist here and could be the hub id of a dataset."""
    path = Path(source).expanduser()
    is_id = len(path.parts) == 2 and not path.is_absolute()
    return is_id and path.suffix not in (*ENDINGS, *_LINES) and not path.exists()


def find_table(source: epath.PathLike) -> Path:
    """The path of a table: as it is given, or of the dataset that a hub id names.

    Raises:
        UserError: the hub has no such dataset, or cannot be reached.
    """
    if may_be_dataset_id(source):
        return Path(resolve(str(source), kind="dataset"))
    return Path(source).expanduser()
