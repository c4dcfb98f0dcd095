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
        UserError: there is true guidance on top, or not the steps, step mask and solver that a
            student of few steps was trained with.
    """
    for adapter, scale in loras.values():
        need, name = adapter.distilled, adapter.name
        if need is None or not scale:
            continue
        if settings.true_guidance:
            raise UserError(
                f"{name} is distilled: one pass holds the guidance of i_guidance="
                f"{need.i_guidance:g} already, got i_guidance={settings.i_guidance:g} on top; "
                "leave it at 1, or take the LoRA that this one was distilled from"
            )
        given = {own: getattr(settings, own) for own in need.needed}
        if wrong := [f"{own}={given[own]}" for own in given if given[own] != need.needed[own]]:
            wanted = ", ".join(f"{own}={value}" for own, value in need.needed.items())
            raise UserError(
                f"{name} is distilled for few steps of its own, got {', '.join(wrong)}; "
                f"give {wanted}"
            )
