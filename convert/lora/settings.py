"""Alpha in the LoraConfig of PEFT: in the header of a file, or as JSON beside it."""

import collections
import dataclasses
import json
import math
import re
import time
from collections.abc import Iterable, Mapping
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


@dataclasses.dataclass(frozen=True)
class Settings:
    """The fields of PEFT's LoraConfig that decide the scaling.

    Attributes:
        alpha: `lora_alpha`.
        patterns: `alpha_pattern`, regular expressions of layer names -> their own alpha.
        rank_stabilised: the scale is alpha / sqrt(rank).
    """

    alpha: float
    patterns: Mapping[str, float]
    rank_stabilised: bool

    def alphas_of(self, layers: Iterable[str]) -> dict[str, float]:
        """Layer -> alpha by the rule of PEFT: the first pattern that matches the end of the name.

        Raises:
            UserError: matching takes longer than any honest patterns do.
        """
        end = time.monotonic() + _PATTERN_SECONDS
        return {layer: self._alpha_of(layer, end) for layer in layers}

    def _alpha_of(self, layer: str, end: float) -> float:
        for pattern, alpha in self.patterns.items():
            left = end - time.monotonic()
            try:
                if left <= 0:
                    raise TimeoutError
                # The patterns are untrusted: `regex` has a time limit, `re` has none.
                if regex.match(rf"(.*\.)?({pattern})$", layer, timeout=left):
                    return alpha
            except TimeoutError:
                raise UserError(
                    f"matching alpha_pattern takes more than {_PATTERN_SECONDS} s, at "
                    f"{pattern[:80]!r}; write plain names of layers in its place"
                ) from None
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
        patterns = {str(k): float(v) for k, v in (given.get("alpha_pattern") or {}).items()}
        for pattern in patterns:
            if len(pattern) > _PATTERN_LENGTH or _repeats(pattern) > _PATTERN_REPEATS:
                raise ValueError
            regex.compile(pattern)
        alpha = float(given["lora_alpha"])
        if not all(0 < number < math.inf for number in (alpha, *patterns.values())):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, regex.error):
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


def _repeats(pattern: str) -> float:
    """Bounds the number of copies that the counted repetitions of a pattern can make."""
    return math.prod(float(number[:9]) or 1 for number in re.findall(r"\{[\d,]*?(\d+)\}", pattern))


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
