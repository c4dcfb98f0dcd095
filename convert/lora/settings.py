"""Alpha in the LoraConfig of PEFT: in the header of a file, or as JSON beside it."""

import collections
import dataclasses
import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import regex

from dsd_jax.errors import UserError
from dsd_jax.inside import read_inside
from dsd_jax.structured import Limits, parse_json

__all__ = ["PEFT_CONFIG", "Settings", "config_text", "find_settings", "header_for"]

PEFT_CONFIG = "adapter_config.json"
HEADER = "lora_adapter_metadata"  # where diffusers keeps it in a file's header
_LIMITS = Limits(size=4_000_000, depth=16)
_PATTERN_LENGTH = 1000
_PATTERN_REPEATS = 10_000  # `{9}` inside `{9}` makes 81 copies when a pattern is compiled
_PATTERN_SECONDS = 2.0  # for all layers and patterns; usual ones take milliseconds
# What `regex` reads as an inexact match or as a class of letters, and Python's `re` as plain text.
_FOREIGN = re.compile(r"\{(?!\d*,?\d*\})|\[:")
_NO_PATTERN = (re.error, regex.error, RecursionError)


class _Clock:
    """The time that is left for the patterns of one adapter."""

    def __init__(self) -> None:
        self._end = time.monotonic() + _PATTERN_SECONDS

    def left(self, pattern: str) -> float:
        """Seconds.

        Raises:
            UserError: there are none.
        """
        if (left := self._end - time.monotonic()) <= 0:
            raise self.over(pattern)
        return left

    @staticmethod
    def over(pattern: str) -> UserError:
        """The error of a pattern that takes all the time that was left."""
        return UserError(
            f"matching alpha_pattern takes more than {_PATTERN_SECONDS} s, at {pattern[:80]!r}; "
            "write plain names of layers in its place"
        )


@dataclasses.dataclass(frozen=True)
class Settings:
    """The fields of PEFT's LoraConfig that decide the scaling.

    Attributes:
        alpha: `lora_alpha`.
        patterns: `alpha_pattern`, regular expressions of layer names, with their own alpha.
        rank_stabilised: the scale is alpha / sqrt(rank).
    """

    alpha: float
    patterns: Sequence[tuple[regex.Pattern[str], float]]
    rank_stabilised: bool

    def alphas_of(self, layers: Iterable[str]) -> dict[str, float]:
        """Layer -> alpha by the rule of PEFT: the first pattern that matches the end of the name.

        Raises:
            UserError: matching takes longer than any honest patterns do.
        """
        clock = _Clock()
        return {layer: self._alpha_of(layer, clock) for layer in layers}

    def _alpha_of(self, layer: str, clock: _Clock) -> float:
        for pattern, alpha in self.patterns:
            # The patterns are untrusted: `regex` has a time limit, `re` has none.
            try:
                if pattern.match(layer, timeout=clock.left(pattern.pattern)):
                    return alpha
            except TimeoutError:
                raise clock.over(pattern.pattern) from None
        return self.alpha


def find_settings(file: Path, header: Mapping[str, str], *, raw: bool) -> Settings | None:
    """The LoraConfig in the header of a file or, for raw PEFT, beside it."""
    beside = file.parent / PEFT_CONFIG
    if HEADER in header:
        return _parse(header[HEADER], f"{HEADER} in the header of {file}")
    if raw and beside.exists():
        try:
            text = read_inside(file.parent, PEFT_CONFIG, _LIMITS.size)
        except OSError as error:
            raise UserError(f"cannot read {beside}: {error.strerror}") from None
        return _parse(text, str(beside))
    return None


def _parse(text: str | bytes, where: str) -> Settings | None:
    given = parse_json(text, where, dict, _LIMITS)
    try:
        if any("." in key for key in given):  # a pipeline's, with its models' names in front
            start = "transformer."
            own = {k.removeprefix(start): v for k, v in given.items() if k.startswith(start)}
            if not own:
                return None
            given = own
        clock = _Clock()
        told = [(k, float(v)) for k, v in (given.get("alpha_pattern") or {}).items()]
        patterns = [(_compiled(pattern, clock), alpha) for pattern, alpha in told]
        alpha = float(given["lora_alpha"])
        if not all(0 < number < math.inf for number in (alpha, *(own for _, own in patterns))):
            raise ValueError
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, *_NO_PATTERN):
        raise UserError(
            f"{where} is not a LoraConfig of PEFT, with alphas above 0; save the LoRA again"
        ) from None
    method = str(given.get("init_lora_weights")).lower()
    if method.startswith(("pissa", "olora", "corda", "loftq")):
        raise UserError(
            f"{where} says init_lora_weights={method!r}: such factors go with base weights that "
            "were changed before the training; convert them to plain LoRA with PEFT first"
        )
    return Settings(alpha, patterns, rank_stabilised=bool(given.get("use_rslora")))


def _compiled(pattern: str, clock: _Clock) -> regex.Pattern[str]:
    """A pattern as PEFT matches it: with the end of a name.

    Raises:
        ValueError: it is too long, or means something to `regex` that it does not mean to `re`.
        re.error, regex.error, RecursionError: it is no pattern.
        UserError: there is no time left.
    """
    clock.left(pattern)
    if len(pattern) > _PATTERN_LENGTH or _repeats(pattern) > _PATTERN_REPEATS:
        raise ValueError
    if _FOREIGN.search(pattern):
        raise ValueError
    whole = rf"(.*\.)?({pattern})$"
    re.compile(whole)
    return regex.compile(whole)


def _repeats(pattern: str) -> float:
    """Bounds the number of copies that the counted repetitions of a pattern can make."""
    return math.prod(
        float(number[:9]) or 1 for number in re.findall(r"\{[\d,]*?(\d+),?\}", pattern)
    )


def header_for(ranks: Mapping[str, int], layers: Iterable[str]) -> dict[str, str]:
    """The LoraConfig of a file as diffusers reads it from its header.

    Args:
        ranks: name of an adapted dense layer in diffusers -> rank.
        layers: names of all dense layers.
    """
    own = {f"transformer.{key}": value for key, value in _settings(ranks, layers).items()}
    return {HEADER: json.dumps(own, indent=2, sort_keys=True)}


def config_text(ranks: Mapping[str, int], layers: Iterable[str]) -> str:
    """The same settings as the text of PEFT's `adapter_config.json`."""
    own = {**_settings(ranks, layers), "bias": "none", "inference_mode": True, "lora_dropout": 0.0}
    return json.dumps(own, indent=2, sort_keys=True) + "\n"


def _settings(ranks: Mapping[str, int], layers: Iterable[str]) -> dict[str, Any]:
    """PEFT's LoraConfig with alpha equal to rank in every layer."""
    ((rank, _),) = collections.Counter(ranks.values()).most_common(1)
    # PEFT matches ends of names, and `proj_out` ends those of layers in the single blocks: a caret
    # or a full pattern keeps them out.
    others = {f"^{name}": other for name, other in ranks.items() if other != rank}
    ends = tuple(f".{name}" for name in ranks)
    ambiguous = any(name.endswith(ends) and name not in ranks for name in layers)
    names = sorted(ranks)
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": "|".join(map(re.escape, names)) if ambiguous else names,
    }
