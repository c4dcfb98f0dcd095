"""Alpha in the LoraConfig of PEFT: in the header of a file, or as JSON beside it."""

import collections
import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dsd_jax.errors import UserError

__all__ = ["PEFT_CONFIG", "Settings", "config_text", "find_settings", "header_for"]

PEFT_CONFIG = "adapter_config.json"
HEADER = "lora_adapter_metadata"  # where diffusers keeps it in a file's header


@dataclasses.dataclass(frozen=True)
class Settings:
    """What PEFT's LoraConfig says about scaling.

    Attributes:
        alpha: `lora_alpha`.
        patterns: `alpha_pattern`, regular expressions of layer names -> their own alpha.
        rank_stabilised: the scale is alpha / sqrt(rank).
    """

    alpha: float
    patterns: Mapping[str, float]
    rank_stabilised: bool

    def alpha_of(self, layer: str) -> float:
        """By the rule of PEFT: the first pattern that matches the end of the name."""
        for pattern, alpha in self.patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", layer):
                return alpha
        return self.alpha


def find_settings(file: Path, header: Mapping[str, str], *, raw: bool) -> Settings | None:
    """The LoraConfig in the header of a file or, for raw PEFT, beside it."""
    beside = file.parent / PEFT_CONFIG
    if HEADER in header:
        return _parse(header[HEADER], f"{HEADER} in the header of {file}")
    if raw and beside.is_file():
        return _parse(beside.read_bytes(), str(beside))
    return None


def _parse(text: str | bytes, where: str) -> Settings | None:
    try:
        given: dict[str, Any] = json.loads(text)
        if any("." in key for key in given):  # a pipeline's, with its models' names in front
            start = "transformer."
            own = {k.removeprefix(start): v for k, v in given.items() if k.startswith(start)}
            if not own:
                return None
            given = own
        patterns = {str(k): float(v) for k, v in (given.get("alpha_pattern") or {}).items()}
        for pattern in patterns:
            re.compile(pattern)
        alpha = float(given["lora_alpha"])
        if not all(0 < number < math.inf for number in (alpha, *patterns.values())):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, re.error):
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


def header_for(ranks: Mapping[str, int], layers: Iterable[str]) -> dict[str, str]:
    """The LoraConfig of a file as diffusers reads it from its header.

    Args:
        ranks: name of an adapted dense layer in diffusers -> rank.
        layers: names of all dense layers.
    """
    own = {f"transformer.{key}": value for key, value in _settings(ranks, layers).items()}
    return {HEADER: json.dumps(own, indent=2, sort_keys=True)}


def config_text(ranks: Mapping[str, int], layers: Iterable[str]) -> str:
    """The same as the `adapter_config.json` that PEFT reads."""
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
