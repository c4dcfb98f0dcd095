"""Who may ask: the key, and the pages of other sites that a browser must not let in."""

import dataclasses
import hashlib
import hmac
import os
import urllib.parse
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

from starlette.datastructures import Headers

from dsd_jax.errors import UserError
from dsd_jax.infer.serve.page import is_page
from dsd_jax.infer.serve.wire import RefusedError
from dsd_jax.keys import checked_key, is_loopback, key_of_file

__all__ = ["Guard", "read_key"]

_OPEN = ("/health", "/ready")  # what probes ask, which have no key
_SHORTEST_KEY = 8


@dataclasses.dataclass(frozen=True)
class Guard:
    """Checks of every request, before its body is read.

    Attributes:
        digest: SHA-256 of the key; None asks for none.
        local: Accept only requests that were addressed to this machine by one of its own names, so
            that no page on the network can reach the server through a browser (DNS rebinding).
    """

    digest: bytes | None = dataclasses.field(default=None, repr=False)
    local: bool = True

    @classmethod
    def of(cls, key: str | None, host: str) -> "Guard":
        """The guard of a server that listens at a host.

        Raises:
            UserError: Others can reach the host, and there is no key.
        """
        local = is_loopback(host)
        if key is None and not local:
            raise UserError(
                f"others can reach {host}, so the server needs a key; set the environment variable "
                "that --api_key_env names, or give --api_key_file"
            )
        return cls(None if key is None else hashlib.sha256(key.encode()).digest(), local)

    def check(self, path: str, headers: Headers) -> None:
        """Refuses a request.

        Args:
            path: Path of the address that it asks for.
            headers: Its headers.

        Raises:
            RefusedError: It has no key or a wrong one, or comes from a page of another site.
        """
        host = headers.get("host", "")
        if self.local and not is_loopback(_name_of(f"//{host}")):
            raise _forbidden("this server answers to the names of this machine alone")
        origin = headers.get("origin")
        if origin is not None and urllib.parse.urlsplit(origin).netloc != host:
            raise _forbidden("requests from pages of other sites are refused")
        if self.digest is None or path in _OPEN or is_page(path):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        found = hashlib.sha256(given.strip().encode()).digest()
        if scheme.lower() != "bearer" or not hmac.compare_digest(found, self.digest):
            raise RefusedError(
                "the key is missing or wrong; send it as `Authorization: Bearer KEY`",
                status=HTTPStatus.UNAUTHORIZED,
                code="invalid_api_key",
            )


def _forbidden(message: str) -> RefusedError:
    return RefusedError(message, status=HTTPStatus.FORBIDDEN)


def _name_of(address: str) -> str:
    try:
        return urllib.parse.urlsplit(address).hostname or ""
    except ValueError:
        return ""


def read_key(
    variable: str, file: Path | None, environment: Mapping[str, str] = os.environ
) -> str | None:
    """The server's key: from a file, or else from an environment variable; None without either.

    Raises:
        UserError: The file cannot be read, or what is there is no key.
    """
    if file is not None:
        key, where = key_of_file(file), str(file)
    else:
        key, where = environment.get(variable, "").strip(), f"the environment variable {variable}"
        if not key:
            return None
        checked_key(key, where)
    if len(key) < _SHORTEST_KEY:
        raise UserError(f"the key in {where} must have {_SHORTEST_KEY} or more characters")
    return key
