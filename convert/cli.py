"""`dsd convert`: weights to JAX, to PyTorch, and LoRA files between dialects."""

from typing import Literal

import numpy as np
from etils import epath

from dsd_jax.config import flux_dev
from dsd_jax.convert import jobs
from dsd_jax.convert.hub import resolve
from dsd_jax.convert.lora.files import read_lora, write_lora
from dsd_jax.convert.open import open_loras, open_transformer, transformer_folder
from dsd_jax.errors import UserError
from dsd_jax.lora import Adapter
from dsd_jax.parts import ScaledAdapter, with_condition
from dsd_jax.runs import find_checkpoints, read_trained

__all__ = ["lora", "to_jax", "to_torch"]

Dtype = Literal["bfloat16", "float16", "float32"]


def _say(notices: list[str]) -> None:
    for notice in notices:
        print(f"note: {notice}")


def to_jax(source: str, target: str, /, *, dtype: Dtype | None = None) -> None:
    """Convert PyTorch weights to Orbax, for pods.

    Args:
        source: Pipeline folder, folder or file of one model (diffusers or BFL layout), or hub id.
        target: New folder, local or gs://.
        dtype: Cast to it; by default every tensor keeps its dtype.
    """
    _say(jobs.to_jax(resolve(source), target, dtype=dtype))
    print(f"wrote {target}")


def to_torch(
    source: str,
    target: str,
    /,
    *,
    layout: Literal["diffusers", "bfl"] = "diffusers",
    lora_path: tuple[str, ...] = (),
    lora_scale: tuple[float, ...] = (),
    dtype: Dtype | None = None,
    overwrite: bool = False,
) -> None:
    """Convert weights of any layout to PyTorch files.

    Args:
        source: Pipeline folder, folder or file of one model (Orbax, diffusers or BFL), or hub id.
        target: New folder; or, for one model, a file ending in .safetensors.
        layout: A folder for from_pretrained, or one file per model as Black Forest Labs ship them.
        lora_path: LoRA files to merge into the transformer.
        lora_scale: Scale of each LoRA; default 1.
        dtype: Cast to it; by default every tensor keeps its dtype.
        overwrite: Replace a single target file that exists.
    """
    path = resolve(source)
    adapters: list[ScaledAdapter] = []
    if lora_path:
        config = open_transformer(path).config
        adapters, notices = open_loras(lora_path, lora_scale or 1.0, config)
        _say(notices)
    _say(
        jobs.to_torch(
            path, target, layout=layout, dtype=dtype, adapters=adapters, overwrite=overwrite
        )
    )
    print(f"wrote {target}")


def lora(
    source: str,
    target: str,
    /,
    *,
    base_path: str | None = None,
    layout: Literal["peft", "kohya"] = "peft",
    dtype: Dtype | None = None,
    step: int | None = None,
    merge: bool = False,
) -> None:
    """Convert a LoRA file of any dialect, or export what `dsd train` has trained.

    From a training run come the LoRA file and, in transformer/, the base with the trained condition
    embedding; from a training of all parameters the transformer alone.

    Args:
        source: LoRA file or folder; or the folder of a training run.
        target: New file ending in .safetensors, or folder for pytorch_lora_weights.safetensors; for
            a training run a folder.
        base_path: The transformer it adapts, if that has other sizes than FLUX.1-dev; for a
            training run, if the base has moved since.
        layout: PEFT names as diffusers writes them, or kohya names for ComfyUI and others.
        dtype: Cast to it; by default every tensor keeps its dtype.
        step: Of a training run, which checkpoint; default: the newest.
        merge: Of a training run, add the LoRA to the weights of the transformer.
    """
    checkpoints = find_checkpoints(source)
    if checkpoints is not None:
        _export(checkpoints, target, base_path, layout, dtype, step, merge=merge)
        return
    if step is not None or merge:
        raise UserError(f"--step and --merge are for the folder of a training run, not {source}")
    config = flux_dev() if base_path is None else open_transformer(resolve(base_path)).config
    adapter, report = read_lora(resolve(source), config)
    _say(list(report.notices))
    print(report)
    write_lora(target, adapter, config, layout=layout, dtype=dtype)
    print(f"wrote {target}")


def _export(
    checkpoints: epath.Path,
    target: str,
    base_path: str | None,
    layout: str,
    dtype: Dtype | None,
    step: int | None,
    *,
    merge: bool,
) -> None:
    """What a run has trained, as files for PyTorch."""
    if target.endswith(".safetensors"):
        raise UserError(f"{target}: the export of a training run is a folder")
    trained, run = read_trained(checkpoints, step)
    config = run["config"]["lora"]
    scale = 1.0 if config is None or not config["alpha"] else config["alpha"] / config["rank"]
    factors = {
        path: tensor * np.float32(scale) if path.endswith(".lora_b") and scale != 1 else tensor
        for path, tensor in trained.items()
        if ".lora_" in path
    }
    full = {path: tensor for path, tensor in trained.items() if path not in factors}
    name = f"step {run['step']} of {checkpoints}"
    both = Adapter(factors, full, name=name)
    base = transformer_folder(resolve(base_path or run["base"]["path"]))
    component = with_condition(open_transformer(base, fingerprint=True), [(both, 1.0)])
    held, given = run["base"]["sha256"], component.sha256()
    if held and given and held != given:
        raise UserError(
            f"{base} is not the base that this run was trained on; give that one as --base_path"
        )
    if full or merge:
        own = both if merge else Adapter({}, full, name=name)
        jobs.to_torch(base, f"{target}/transformer", dtype=dtype, adapters=[(own, 1.0)])
        print(f"wrote {target}/transformer")
    if factors and not merge:
        file = write_lora(target, both, component.config, layout=layout, dtype=dtype)
        print(f"wrote {file}")
