"""Writes LoRA files for the programs that read them: diffusers, PEFT, kohya's.

Files are written with alpha equal to rank, in the header or the config (PEFT) or as tensors
(kohya), so that no reader can scale them again.
"""

import collections
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dsd_jax.condition import CANVAS
from dsd_jax.config import FluxConfig
from dsd_jax.convert.lora.layout import Factors, Slot, by_layer
from dsd_jax.convert.lora.names import Vocabulary, vocabulary
from dsd_jax.convert.lora.read import DIFFUSERS_FILE, PEFT_FILE
from dsd_jax.convert.lora.report import LETTERS
from dsd_jax.convert.lora.settings import PEFT_CONFIG, config_text, header_for
from dsd_jax.convert.writer import write_weights
from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.lora import Adapter
from dsd_jax.types import DTypeLike

__all__ = ["LAYOUTS", "layers_of", "write_lora"]

LAYOUTS = ("peft", "kohya")

Pairs = dict[str, tuple[np.ndarray, np.ndarray]]
"""Name of one of their dense layers -> A [rank, in] and B [out, rank]."""


def write_lora(
    path: str | os.PathLike[str],
    adapter: Adapter,
    config: FluxConfig,
    layout: str = "peft",
    dtype: DTypeLike | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Writes an adapter as one safetensors file, or as a folder.

    A condition embedding in `adapter.full` goes into the same file, as `transformer.c_embedder.*`
    (PEFT) or `cond_in.*` (kohya). `dsd` reads such a file; the authors' program and ComfyUI's DSD
    nodes refuse it, so for them write the adapter without `full`.

    In kohya's layout q, k, v (and mlp) share a tensor: one adapter of their rank if their A factors
    are equal, else all side by side, with the sum of their ranks.

    Args:
        path: a file ending in `.safetensors`; else a folder, for
            `pytorch_lora_weights.safetensors`. With PEFT names the folder also gets
            `adapter_model.safetensors` and `adapter_config.json`, which
            `PeftModel.from_pretrained` opens.
        adapter: at scale 1. Rank components that are zero in both factors are left out. The
            header says what a distilled one was distilled for.
        config: size of the model it is for.
        layout: "peft", as diffusers writes it, or "kohya", as sd-scripts and ComfyUI do.
        dtype: dtype to cast to; by default factors keep their own.
        overwrite: replace files of these names.

    Returns:
        The LoRA file.

    Raises:
        UserError: the adapter is empty or does not fit the model, or the place is not writable.
    """
    names = vocabulary(config)
    pairs = _pairs(adapter, names, layout)
    if not pairs and not adapter.full:
        raise UserError(f"{adapter.name} is empty: every factor is zero; train it first")
    peft = layout == "peft"
    tensors = _dotted(pairs, "transformer.") if peft else _kohya(pairs)
    for name, piece in names.condition.items():
        own = CANVAS.diffusers if peft else CANVAS.bfl
        if piece.ours in adapter.full and name.startswith(own):
            prefix = "transformer." if peft else ""
            tensors[f"{prefix}{name}"] = piece.write(adapter.full[piece.ours])
    ranks = {name: len(a) for name, (a, _) in pairs.items()}
    folder = None if Path(path).suffix == ".safetensors" else Path(path)
    file = Path(path) if folder is None else folder / DIFFUSERS_FILE
    told = {} if adapter.distilled is None else adapter.distilled.header
    header = told | (header_for(ranks, names.diffusers) if peft and ranks else {})
    _write(file, tensors, dtype, header, overwrite=overwrite)
    if peft and ranks and folder is not None:
        raw = _dotted(pairs, "base_model.model.")
        _write(folder / PEFT_FILE, raw, dtype, told, overwrite=overwrite)
        write_file(folder / PEFT_CONFIG, config_text(ranks, names.diffusers))
    return file


def layers_of(adapter: Adapter, config: FluxConfig, layout: str) -> list[str]:
    """Names of the dense layers that `write_lora` writes factors for."""
    return list(_pairs(adapter, vocabulary(config), layout))


def _pairs(adapter: Adapter, names: Vocabulary, layout: str) -> Pairs:
    if layout not in LAYOUTS:
        raise UserError(f"unknown LoRA layout {layout!r}; choose {' or '.join(LAYOUTS)}")
    slots = _split(adapter, names)
    return {
        name: pair
        for name, dense in (names.diffusers if layout == "peft" else names.bfl).items()
        if (pair := dense.to_theirs({s: slots[s] for s in dense.slots if s in slots})) is not None
    }


def _dotted(pairs: Pairs, prefix: str) -> dict[str, np.ndarray]:
    return {
        f"{prefix}{name}.lora_{letter}.weight": factor
        for name, pair in pairs.items()
        for letter, factor in zip("AB", pair, strict=True)
    }


def _kohya(pairs: Pairs) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for name, (a, b) in pairs.items():
        spelled = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{spelled}.lora_down.weight": a, f"{spelled}.lora_up.weight": b}
        tensors |= {f"{spelled}.alpha": np.array(len(a), np.float32)}
    return tensors


def _write(
    file: Path,
    tensors: Mapping[str, np.ndarray],
    dtype: DTypeLike | None,
    header: Mapping[str, str],
    *,
    overwrite: bool,
) -> None:
    cast = {
        name: tensor if dtype is None or name.endswith(".alpha") else tensor.astype(dtype)
        for name, tensor in tensors.items()
    }
    specs = {name: (tensor.shape, tensor.dtype) for name, tensor in cast.items()}
    write_weights(file, specs, cast.items(), metadata=header, overwrite=overwrite)


def _split(adapter: Adapter, names: Vocabulary) -> dict[Slot, Factors]:
    """The factors of every slot, views of the adapter's.

    Raises:
        UserError: the adapter does not fit the model.
    """
    dense_of = {slot: dense for dense in names.diffusers.values() for slot in dense.slots}
    slots_of: dict[str, list[Slot]] = collections.defaultdict(list)
    for slot in dense_of:
        slots_of[slot[0]].append(slot)
    slots: dict[Slot, Factors] = {}
    shapes = {
        piece.ours: tuple(side.stop for side in piece.our_box) for piece in names.condition.values()
    }
    wrong = [
        f"{path} has shape {tensor.shape}, expected {shapes[path]}"
        if path in shapes
        else f"{path} cannot travel with a LoRA"
        for path, tensor in adapter.full.items()
        if tensor.shape != shapes.get(path)
    ]
    for layer, factors in by_layer(adapter.factors).items():
        if layer not in slots_of:
            wrong.append(f"the model has no {layer}")
            continue
        for slot in slots_of[layer]:
            own = _select(factors, slot[1])
            found = {name: factor.shape for name, factor in own.items()}
            rank = (found.get("lora_b") or (0,))[0]
            expected = dense_of[slot].shapes(slot, rank)
            if found != expected:
                wrong.append(f"{layer} has factors {found}, expected {expected}")
                break
            slots[slot] = own
    if wrong:
        more = f"\n  and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        listed = "\n  ".join(wrong[:8])
        raise UserError(f"{adapter.name} does not fit this FLUX.1 model:\n  {listed}{more}")
    return slots


def _select(factors: Factors, index: int | None) -> Factors:
    """One of q, k and v, or the factors as they are."""
    if index is None:
        return factors
    return {
        name: factor[index] if name == "lora_b" else factor[..., index, :]
        for name, factor in factors.items()
        if factor.ndim > 2 and factor.shape[0 if name == "lora_b" else -2] == len(LETTERS)
    }
