"""The texts of the stages' questions."""

from collections.abc import Collection
from pathlib import Path

from dsd_jax.llm import wording
from dsd_jax.llm.wording import Wording

__all__ = ["load_wording"]

_OURS = Path(__file__).parent / "wordings" / "v1.toml"


def load_wording(path: Path | None, stage: str, tasks: Collection[str] = ()) -> Wording:
    """The texts of a stage; see `dsd_jax.llm.wording.load_wording`.

    Raises:
        UserError: The file cannot be used.
    """
    return wording.load_wording(_OURS, path, stage, tasks)
