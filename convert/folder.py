"""A folder that appears when it is complete, and leaves nothing behind otherwise."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from dsd_jax.convert.hub import check_scheme
from dsd_jax.errors import UserError
from dsd_jax.files import partial_of, remove_tree

__all__ = ["new_folder"]


@contextlib.contextmanager
def new_folder(path: epath.PathLike) -> Iterator[epath.Path]:
    """Yields a temporary folder, which becomes `path` when the block ends well.

    A bucket has no renames; there, a folder counts as complete once its `config.json` is there.

    Raises:
        UserError: `path` exists, or cannot be written; nothing is left behind.
    """
    check_scheme(path)
    final = epath.Path(path)
    if final.exists():
        raise UserError(f"{path} exists already; remove it or choose another destination")
    remote = "://" in str(path)
    work = final if remote else epath.Path(partial_of(Path(final)))
    new_parents = [] if remote else [p for p in Path(final).parents if not p.exists()]
    try:
        if work.exists():
            work.rmtree()
        work.mkdir(parents=True)
        yield work
        if not remote:
            Path(work).replace(Path(final))
    except BaseException as error:
        with contextlib.suppress(OSError):
            remove_tree(work)
            for parent in new_parents:
                parent.rmdir()
        if isinstance(error, UserError):  # names the path that the user gave
            raise UserError(str(error).replace(str(work), str(path))) from error
        if isinstance(error, OSError):
            raise UserError(
                f"cannot write {path}: {error.strerror or error}; nothing was left behind"
            ) from error
        raise
