"""Keys, which no message repeats, and hosts that may be reached without encryption."""

import ipaddress
import os
import re
from pathlib import Path

from dsd_jax.errors import UserError
from dsd_jax.structured import read_bytes

__all__ = ["checked_key", "is_loopback", "key_of_file"]

_LONGEST = 10_000


def key_of_file(path: Path) -> str:
    """The key that a file holds, on one line.

    Raises:
        UserError: The file cannot be read, or what is there is no key.
    """
    if not os.path.exists(path):  # noqa: PTH110 - also of what can be no path
        # What was given may be the key itself: it is not repeated.
        raise UserError("api_key_file must be the path of a file, which is not there")
    try:
        found = read_bytes(path, _LONGEST).decode().strip()
    except UserError as error:
        raise UserError(f"api_key_file: {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"api_key_file: {path} is not text") from None
    if not found or "\n" in found:
        raise UserError(f"{path} must hold the key alone, on one line")
    return checked_key(found, str(path))


def checked_key(key: str, where: str) -> str:
    """A key that a header can hold.

    Raises:
        UserError: A header cannot hold it; the message says where it is from.
    """
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise UserError(
            f"the key in {where} holds spaces or letters that no key has; copy it again"
        )
    return key


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
