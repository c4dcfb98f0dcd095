"""Reads LoRA files of every dialect.

Scaling is where LoRA files go wrong. Reading folds alpha / rank into B, in float32 and only where
it is not 1, so that other factors keep their bits. Where a file tells no alpha, alpha is the rank,
as diffusers and kohya's readers have it.

The condition embedding of Diffusion Self-Distillation is trained in full. It comes from the LoRA
file itself or, for a folder such as the authors' release, from the `transformer/` in that folder.
"""

import itertools
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dsd_jax.config import FluxConfig
from dsd_jax.convert.io import Weights, open_weights
from dsd_jax.convert.lora.inventory import Inventory
from dsd_jax.convert.lora.layout import Factors, Slot, common_dtype
from dsd_jax.convert.lora.names import Vocabulary, vocabulary
from dsd_jax.convert.lora.report import LETTERS, LoraReport, targets
from dsd_jax.convert.lora.settings import PEFT_CONFIG, find_settings
from dsd_jax.distilled import Distilled
from dsd_jax.errors import UserError
from dsd_jax.lora import Adapter

__all__ = ["DIFFUSERS_FILE", "LORA_FILES", "PEFT_FILE", "read_lora"]

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE = "adapter_model.safetensors"
LORA_FILES = (DIFFUSERS_FILE, PEFT_FILE)
"""Names of a LoRA in a folder."""


def read_lora(
    path: str | os.PathLike[str], config: FluxConfig, *, other_size: str = ""
) -> tuple[Adapter, LoraReport]:
    """Reads a LoRA of any dialect: PEFT and diffusers, kohya, OneTrainer, XLabs, ComfyUI.

    Args:
        path: a safetensors file, or a folder with `pytorch_lora_weights.safetensors` or
            `adapter_model.safetensors`. The alpha of raw PEFT files is in the
            `adapter_config.json` beside them. A folder may hold the condition embedding in its
            `transformer/`.
        config: size of the model it is for.
        other_size: advice for a LoRA that was made for a model of another size.

    Returns:
        The adapter, with alpha / rank folded into B, and what the file was.

    Raises:
        UserError: nothing to read, a damaged file, or an adapter that this model cannot hold; the
            message lists everything that is wrong.
    """
    names = vocabulary(config)
    folder = Path(path)
    with open_weights(folder, usual=LORA_FILES) as weights:
        file = weights.files[0]
        held = Inventory(names, weights)
        held.refuse(file, config, other_size)
        slots, alphas = _read_factors(held, names, weights)
        pieces = {piece.ours: piece for piece in names.condition.values()}
        distilled = Distilled.of_header(weights.metadata, file.name)
        full = {
            ours: pieces[ours].read(weights.read(name)) for ours, name in held.condition.items()
        }
    origin = file.name
    if not full and any(folder.glob("transformer/*.safetensors")):
        full = _embedding_of(folder / "transformer", names)
        origin = f"{folder.name}/transformer"

    notices = [f"{n} tensors {what} were left aside" for what, n in held.aside.items()]
    if "raw PEFT" in held.dialects and not alphas:
        notices.append(f"no {PEFT_CONFIG} beside {file.name}: alpha is taken to be the rank")
    if full:
        notices.append(f"the condition embedding comes from {origin}")
    if distilled is not None:
        notices.append(distilled.notice(file.name))
    report = LoraReport(
        dialect=" and ".join(sorted(held.dialects)),
        ranks=tuple(sorted({len(factors["lora_b"]) for factors in slots.values()})),
        alphas=alphas,
        targets=targets(slots, names.slots),
        linears=len(slots),
        notices=tuple(notices),
    )
    return Adapter(_assemble(slots), full, file.name, distilled), report


def _read_factors(
    held: Inventory, names: Vocabulary, weights: Weights
) -> tuple[dict[Slot, Factors], tuple[float, ...]]:
    """Reads the factors, alpha / rank folded in, by slot; and all stated alphas, ascending."""
    settings = find_settings(weights.files[0], weights.metadata, raw="raw PEFT" in held.dialects)
    told = {} if settings is None else settings.alphas_of(held.spelling.values())
    slots: dict[Slot, Factors] = {}
    alphas = set()
    for layer, parts in held.layers.items():
        a, b = weights.read(parts["a"]), weights.read(parts["b"])
        alpha, scale = held.alphas.get(layer), 1.0
        if alpha is not None:
            scale = alpha / len(a)
        elif settings is not None:
            alpha = told[held.spelling[layer]]
            scale = alpha / (math.sqrt(len(a)) if settings.rank_stabilised else len(a))
        if alpha is not None:
            alphas.add(alpha)
        if scale != 1:
            b = b.astype(np.float32) * np.float32(scale)
        slots |= names.spelled[layer].to_ours(a, b)
    return slots, tuple(sorted(alphas))


def _embedding_of(transformer: Path, names: Vocabulary) -> dict[str, np.ndarray]:
    """The condition embedding of a transformer's folder, by our names; nothing if it has none.

    Raises:
        UserError: the folder cannot be read, or the embedding is for a model of another size.
    """
    with open_weights(transformer) as weights:
        found = {name: names.condition[name] for name in weights.tensors if name in names.condition}
        for name, piece in found.items():
            if (shape := weights.tensors[name].shape) != piece.their_shape:
                raise UserError(
                    f"{name} in {transformer} has shape {list(shape)}, expected "
                    f"{list(piece.their_shape)}; it belongs to a model of another size"
                )
        return {piece.ours: piece.read(weights.read(name)) for name, piece in found.items()}


def _assemble(slots: Mapping[Slot, Factors]) -> dict[str, np.ndarray]:
    """Factors by path: q, k and v of one Linear together, lower ranks filled up with zeros."""
    factors: dict[str, np.ndarray] = {}
    by_path = itertools.groupby(sorted(slots, key=str), lambda slot: slot[0])
    for path, group in ((path, list(group)) for path, group in by_path):
        if group[0][1] is None:
            factors |= {f"{path}.{name}": array for name, array in slots[group[0]].items()}
            continue
        own = {index: slots[path, index] for _, index in group}
        rank = max(len(part["lora_b"]) for part in own.values())
        some = next(iter(own.values()))
        a = np.zeros(
            (*some["lora_a"].shape[:-1], len(LETTERS), rank),
            common_dtype(part["lora_a"] for part in own.values()),
        )
        b = np.zeros(
            (len(LETTERS), rank, *some["lora_b"].shape[1:]),
            common_dtype(part["lora_b"] for part in own.values()),
        )
        for index, part in own.items():
            used = slice(len(part["lora_b"]))
            a[..., index, used], b[index, used] = part["lora_a"], part["lora_b"]
        factors |= {f"{path}.lora_a": a, f"{path}.lora_b": b}
    return factors
