"""LoRAs that a pipeline uses, by name: how they are named, found, scaled and checked."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from dsd_jax.errors import UserError, did_you_mean
from dsd_jax.infer.settings import Settings
from dsd_jax.lora import check_scale
from dsd_jax.parts import ScaledAdapter

__all__ = ["Loras", "check_distilled", "lora_named", "named", "rescaled"]

Loras: TypeAlias = Mapping[str, ScaledAdapter]


def named(
    adapters: Sequence[ScaledAdapter], taken: Loras | None = None
) -> dict[str, ScaledAdapter]:
    """Names LoRAs after their files, and numbers them where a name is taken."""
    found: dict[str, ScaledAdapter] = {}
    for adapter, scale in adapters:
        used, stem = {*found, *(taken or {})}, Path(adapter.name).stem
        numbered = (f"{stem}-{number}" for number in itertools.count(2))
        name = next(own for own in itertools.chain([stem], numbered) if own not in used)
        found[name] = (adapter, scale)
    return found


def lora_named(loras: Loras, name: str) -> ScaledAdapter:
    """The LoRA of a name.

    Raises:
        UserError: no LoRA has this name.
    """
    if name not in loras:
        held = ", ".join(map(repr, loras)) or "none"
        hint = did_you_mean(str(name), loras) or f"; in use: {held}"
        raise UserError(f"no LoRA named {name!r} is in use{hint}")
    return loras[name]


def rescaled(loras: Loras, scales: Mapping[str, float]) -> dict[str, ScaledAdapter]:
    """The same LoRAs with other strengths; one that is not named gets 0.

    Raises:
        UserError: no LoRA has such a name, or a strength is no number.
    """
    for name in scales:
        lora_named(loras, name)
    return {
        name: (adapter, check_scale(scales.get(name, 0.0))) for name, (adapter, _) in loras.items()
    }


def check_distilled(loras: Loras, settings: Settings) -> None:
    """Refuses settings that a distilled LoRA in use is not for.

    Raises:
        UserError: there is true guidance on top, or not the step mask that it was trained with.
    """
    for adapter, scale in loras.values():
        if adapter.distilled is not None and scale:
            adapter.distilled.check(
                adapter.name, i_guidance=settings.i_guidance, mask=settings.step_mask
            )
