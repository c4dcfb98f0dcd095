"""Messages: the near name, and the errors that a user can mend."""

import errno
import os
from pathlib import Path

import pytest

from dsd_jax.errors import UserError, and_more, did_you_mean, explain, nearest

FULL = "No space left on device; free some space and run the command again"


def test_the_near_name():
    assert nearest("stpes", ["steps", "seed"]) == "steps"
    assert did_you_mean("stpes", ["steps", "seed"]) == "; did you mean 'steps'?"
    assert nearest("xyzzy", ["steps"]) is None
    assert did_you_mean("xyzzy", ["steps"]) == ""


def test_long_lists_are_cut():
    assert and_more("abc", 3) == "a, b, c"
    assert and_more("abcde", 3) == "a, b, c and 2 more"


def refused(code: int, path: str | Path | None) -> OSError:
    return OSError(code, os.strerror(code), path)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("give --base_path"), "give --base_path"),
        (refused(errno.ENOENT, "a/b.png"), "there is no file or folder a/b.png; check the path"),
        (
            refused(errno.EACCES, Path("/data")),
            "cannot use /data: Permission denied; check the path and its permissions",
        ),
        (
            refused(errno.EROFS, "/data"),
            "cannot use /data: Read-only file system; check the path and its permissions",
        ),
        (
            refused(errno.ENOSPC, "run/metrics.jsonl"),
            f"cannot write run/metrics.jsonl: {FULL}",
        ),
        (
            refused(errno.ENOSPC, None),
            f"cannot write the output: {FULL}",
        ),
    ],
)
def test_what_a_user_can_mend_is_said(error: Exception, message: str):
    assert explain(error) == message
    wrapped = RuntimeError("a library's words")
    wrapped.__cause__ = error
    assert explain(wrapped) == message
    assert explain(ExceptionGroup("of workers", [ValueError("other"), wrapped])) == message


def test_a_bug_is_not_explained():
    assert explain(ValueError("a bug")) is None
    assert explain(OSError("no code, no path")) is None
    assert explain(refused(errno.EPIPE, None)) is None
    bug = KeyError("x")
    bug.__context__ = refused(errno.ENOENT, "config.json")  # handled already when the bug came
    assert explain(bug) is None
