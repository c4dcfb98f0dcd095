"""Uploads an export to the Hugging Face hub, for a user who is logged in there."""

import re
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from dsd_jax.errors import UserError

__all__ = ["Publisher"]


class Publisher:
    """A repository of the user's, checked before any work is done for it.

    Args:
        repository: `owner/name`; it is made if it does not exist.
        private: make it private.
        api: the hub's client.

    Raises:
        UserError: not a repository's name, nobody is logged in, or the hub cannot be reached.
    """

    def __init__(
        self, repository: str, *, private: bool = False, api: Callable[[], HfApi] | None = None
    ) -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            raise UserError(f"--push_to_hub takes owner/name, got {repository!r}")
        self._repository, self._private = repository, private
        self._api = (api or HfApi)()
        try:
            self._api.whoami()
        except LocalTokenNotFoundError:
            raise UserError(
                "nobody is logged in to the hub on this machine; log in with `hf auth login`"
            ) from None
        except (HfHubHTTPError, OSError) as error:
            raise UserError(
                f"the hub does not know this login or cannot be reached ({_reason(error)}); try "
                "`hf auth whoami`"
            ) from None

    def push(self, folder: Path) -> str:
        """Uploads a folder; returns the address of its page.

        Raises:
            UserError: the hub refuses; the folder stays, and the message says how to go on.
        """
        name = self._repository
        try:
            self._api.create_repo(name, private=self._private, exist_ok=True)
            self._api.upload_folder(
                repo_id=name, folder_path=folder, commit_message="Upload weights of DSD-JAX"
            )
        except (HfHubHTTPError, OSError) as error:
            raise UserError(
                f"{folder} is written, but the hub refused it ({_reason(error)}); upload it with "
                f"`hf upload {name} {folder}`"
            ) from None
        return f"https://huggingface.co/{name}"


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
