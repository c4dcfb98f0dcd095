"""A summary of a LoRA file in words: its dialect, ranks, alphas and targets."""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterable

from dsd_jax.convert.lora.layout import Slot
from dsd_jax.lora import TARGETS
from dsd_jax.stack import without_layers

__all__ = ["LETTERS", "LoraReport", "targets"]

LETTERS = "qkv"  # the three parts of a fused Linear


@dataclasses.dataclass(frozen=True)
class LoraReport:
    """The summary of a LoRA file.

    Attributes:
        dialect: the program whose tensor names it uses.
        ranks, alphas: every rank and alpha in it, ascending; no alphas if it tells none.
        targets: a key of `dsd_jax.lora.TARGETS` if it adapts exactly that, else our paths.
        linears: number of adapted dense layers, counting q, k and v apart (the DSD release: 266).
        notices: notices for the user, one sentence each.
    """

    dialect: str
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    targets: str | tuple[str, ...]
    linears: int
    notices: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.linears:
            return "a condition embedding without LoRA"
        ranks = ", ".join(map(str, self.ranks))
        alphas = ", ".join(f"{alpha:g}" for alpha in self.alphas) or "as rank"
        targets = self.targets if isinstance(self.targets, str) else ", ".join(self.targets)
        return (
            f"{self.dialect} LoRA: rank {ranks}, alpha {alphas}, {self.linears} layers, {targets}"
        )


def targets(slots: Iterable[Slot], every: Iterable[Slot]) -> str | tuple[str, ...]:
    """The name of a set of targets, or our paths with ranges of layers and which of q, k, v."""
    adapted = set(slots)
    for name, patterns in TARGETS.items():
        wanted = {
            slot
            for slot in every
            if any(re.fullmatch(p, without_layers(slot[0])) for p in patterns)
        }
        if adapted == wanted:
            return name
    letters: dict[str, str] = collections.defaultdict(str)
    for path, index in sorted(adapted, key=str):
        letters[path] += "" if index is None else LETTERS[index]
    layers: dict[str, list[int]] = collections.defaultdict(list)
    for path, own in letters.items():
        shown = f"{path}[{own}]" if own not in ("", LETTERS) else path
        number = re.search(r"\.(\d+)\.", shown)
        layers[re.sub(r"\.\d+\.", ".{}.", shown)] += [int(number[1])] if number else []
    return tuple(path.format(_ranges(sorted(own))) for path, own in sorted(layers.items()))


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    runs = [
        [number for _, number in run]
        for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    ]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
