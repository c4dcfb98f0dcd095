"""Finds weights and datasets: a folder, a file, a bucket, or a repository on the hub."""

from collections.abc import Sequence
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

__all__ = ["check_scheme", "resolve"]


def check_scheme(path: epath.PathLike) -> None:
    """Refuses a URL that cannot be read or written here; touches no network.

    Raises:
        UserError: a URL, and not of a bucket; or `gs://` without its library.
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
    repository: Literal["model", "dataset"] = "model",
) -> epath.Path:
    """A path on disk or in a bucket.

    What exists on disk is taken as it is, and so is the URL of a bucket. Otherwise `owner/name` is
    looked up in the Hugging Face cache, and fetched where the network allows it.

    Args:
        path_or_id: folder, file, `gs://` path, or hub id.
        patterns: files of a repository that are needed, as globs; default: all.
        repository: kind of repository that a hub id names.

    Raises:
        UserError: neither a path nor a repository that can be had.
    """
    text = str(path_or_id)
    check_scheme(text)
    path = epath.Path(text).expanduser()
    if "://" in text or path.exists():
        return path
    parts = text.split("/")
    if len(parts) != 2 or not all(parts) or text.startswith((".", "~")):
        raise UserError(f"there is no folder or file {text}")

    try:
        wanted = None if patterns is None else list(patterns)
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
