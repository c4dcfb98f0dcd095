"""`dsd convert`: weights to JAX, to PyTorch, and LoRA files between dialects."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import tyro

from dsd_jax.convert import export, jobs
from dsd_jax.convert.export import Exported, LoraForm
from dsd_jax.convert.hub import resolve
from dsd_jax.convert.lora.edits import Mergeable, read_mergeables
from dsd_jax.convert.open import open_transformer
from dsd_jax.convert.publish import Publisher
from dsd_jax.errors import UserError
from dsd_jax.quantise import WeightKind
from dsd_jax.runs import find_checkpoints

__all__ = ["lora", "to_jax", "to_torch"]

Dtype = Literal["bfloat16", "float16", "float32"]


@dataclasses.dataclass(frozen=True)
class HubFlags:
    """Upload of an export.

    Attributes:
        push_to_hub: Upload the folder to this repository (owner/name) of the Hugging Face hub;
            log in first with `hf auth login`.
        private: Make that repository private.
    """

    push_to_hub: str | None = None
    private: bool = False


@dataclasses.dataclass(frozen=True)
class LoraFlags(HubFlags):
    """Form of the LoRA file.

    Attributes:
        layout: PEFT names as diffusers and PEFT read them, or kohya names for sd-scripts, ComfyUI
            and others.
        dtype: Dtype to cast to; by default every tensor keeps its own.
        single_file: Keep the condition embedding in the LoRA file, which dsd reads and other
            programs refuse or drop, and write no transformer/.
        rank: Largest rank of a layer; what has more is cut to the nearest product of that rank, by
            its largest singular values. The note says how much is kept.
    """

    layout: Literal["peft", "kohya"] = "peft"
    dtype: Dtype | None = None
    single_file: bool = False
    rank: int | None = None


def _say(notices: Iterable[str]) -> None:
    for notice in notices:
        print(f"note: {notice}")


def _publisher(flags: HubFlags, target: str) -> Publisher | None:
    """Checks the repository that `--push_to_hub` names, before any work is done."""
    if flags.push_to_hub is None:
        return None
    if target.endswith(".safetensors"):
        raise UserError(f"--push_to_hub uploads a folder; give a folder instead of {target}")
    return Publisher(flags.push_to_hub, private=flags.private)


def _finish(done: Exported, target: str, publisher: Publisher | None) -> None:
    _say(done.notices)
    for path in done.paths:
        print(f"wrote {path}")
    if publisher is not None:
        print(f"uploaded to {publisher.push(Path(target))}")


def to_jax(
    source: str,
    target: str,
    /,
    *,
    dtype: Dtype | None = None,
    weights: WeightKind | None = None,
) -> None:
    """Convert PyTorch weights to an Orbax checkpoint.

    Args:
        source: Pipeline folder, folder or file of one model (diffusers or BFL layout), or hub id.
        target: New folder, local or gs://.
        dtype: Dtype to cast to; by default every tensor keeps its own.
        weights: Keep the kernels of the transformer's blocks in few bits, as `--weights` of `dsd
            generate` makes them, and those of T5 in int8. They cannot be converted back.
    """
    _say(jobs.to_jax(resolve(source), target, dtype=dtype, weights=weights))
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
    hub: tyro.conf.OmitArgPrefixes[HubFlags] = HubFlags(),
) -> None:
    """Convert weights of any layout to PyTorch files.

    Args:
        source: Pipeline folder, folder or file of one model (Orbax, diffusers or BFL), or hub id.
        target: New folder; or, for one model, a file ending in .safetensors.
        layout: A folder for from_pretrained, or one file per model as Black Forest Labs ship them.
        lora_path: LoRA files to merge into the transformer; DoRA, LoKr, LoHa, and files with
            differences or biases too.
        lora_scale: Scale of each LoRA; default 1.
        dtype: Dtype to cast to; by default every tensor keeps its own.
        overwrite: Replace a single target file that exists.
    """
    publisher = _publisher(hub, target)
    path = resolve(source)
    adapters: list[tuple[Mergeable, float]] = []
    if lora_path:
        config = open_transformer(path).config
        adapters, notices = read_mergeables(lora_path, lora_scale, config)
        _say(notices)
    done = export.export_weights(
        path, target, layout=layout, dtype=dtype, adapters=adapters, overwrite=overwrite
    )
    _finish(done, target, publisher)


def lora(
    source: str,
    target: str,
    /,
    *,
    base_path: str | None = None,
    output: tyro.conf.OmitArgPrefixes[LoraFlags] = LoraFlags(),
    step: int | None = None,
    merge: bool = False,
) -> None:
    """Convert a LoRA file of any dialect, or export what `dsd train` has trained.

    A folder gets the LoRA file and, in transformer/, the base with the trained condition embedding:
    the authors' generate.py, diffusers and ComfyUI's DSD nodes open both. A run that trained all
    parameters gives the transformer alone.

    Args:
        source: LoRA file or folder; or the folder of a training run.
        target: New folder; or a new file ending in .safetensors for the LoRA alone.
        base_path: Transformer that the LoRA adapts. A LoRA file needs it if the model is not of
            FLUX.1-dev's size, or if the file holds a condition embedding; a training run only if
            its base has moved.
        step: Step of the checkpoint to export from a training run. Default: the newest.
        merge: Add the LoRA of a training run to the weights of the transformer, and write no LoRA
            file.
    """
    publisher = _publisher(output, target)
    form = LoraForm(output.layout, output.dtype, output.single_file, output.rank)
    base = None if base_path is None else resolve(base_path)
    checkpoints = find_checkpoints(source)
    if checkpoints is not None:
        done = export.export_run(checkpoints, target, form, base=base, step=step, merge=merge)
    elif step is not None or merge:
        raise UserError(f"--step and --merge are for the folder of a training run, not {source}")
    else:
        done = export.convert_lora(resolve(source, kind="lora"), target, form, base=base)
    _finish(done, target, publisher)
