"""Exports adapters for other programs: from a LoRA file, or from a training run.

The exported folder holds the LoRA in `pytorch_lora_weights.safetensors`, whose tensor names all say
"lora", and the condition embedding in `transformer/`. The authors' program and ComfyUI's DSD nodes
read both there, and refuse them in one file.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from dsd_jax.config import FluxConfig, flux_dev
from dsd_jax.convert.card import Card, last_scores, public_name
from dsd_jax.convert.folder import new_folder
from dsd_jax.convert.hub import resolve
from dsd_jax.convert.jobs import to_torch
from dsd_jax.convert.lora.edits import Mergeable
from dsd_jax.convert.lora.read import read_lora
from dsd_jax.convert.lora.resize import resized
from dsd_jax.convert.lora.write import layers_of, write_lora
from dsd_jax.convert.open import open_transformer, transformer_folder
from dsd_jax.convert.readers import lora_notices, model_notices
from dsd_jax.distilled import Distilled
from dsd_jax.errors import UserError
from dsd_jax.lora import Adapter
from dsd_jax.parts import Component, with_condition
from dsd_jax.runs import FOLDER, read_trained
from dsd_jax.types import DTypeLike

__all__ = ["Exported", "LoraForm", "convert_lora", "export_run", "export_weights"]


@dataclasses.dataclass(frozen=True)
class LoraForm:
    """The form in which an adapter is written.

    Attributes:
        layout: "peft" or "kohya".
        dtype: dtype of the written tensors; by default each keeps its own, so what was trained in
            float32 stays in float32.
        single_file: keep the condition embedding in the LoRA file, and write no `transformer/`.
        rank: largest rank of a layer; what has more is cut to the nearest product of that rank.
    """

    layout: str = "peft"
    dtype: DTypeLike | None = None
    single_file: bool = False
    rank: int | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise UserError(f"rank must be at least 1, got {self.rank}")


@dataclasses.dataclass(frozen=True)
class Exported:
    """The written files, and notices for the user, one sentence each."""

    paths: tuple[str, ...]
    notices: tuple[str, ...]


def convert_lora(
    source: epath.PathLike,
    target: str,
    form: LoraForm | None = None,
    *,
    base: epath.PathLike | None = None,
) -> Exported:
    """Writes a LoRA file of any dialect for other programs.

    Args:
        source: LoRA file or folder.
        target: new folder; or a file ending in `.safetensors`.
        form: form of the written files.
        base: the transformer it adapts, alone or in a pipeline; default: one of FLUX.1-dev's size.
            Its weights are needed only for an adapter with a condition embedding.

    Raises:
        UserError: an adapter that cannot be read or does not fit, or a condition embedding that
            the form has no place for; nothing is left behind.
    """
    form = form or LoraForm()
    config = flux_dev() if base is None else open_transformer(epath.Path(base)).config
    advice = "give that model as --base_path" if base is None else ""
    adapter, report = read_lora(source, config, other_size=advice)
    command = _command(source, target, form)
    told = Card(Path(target).name, command, distilled=adapter.distilled)
    written = _write(adapter, target, form, config, base, told)
    return dataclasses.replace(written, notices=(*report.notices, str(report), *written.notices))


def export_run(
    checkpoints: epath.PathLike,
    target: str,
    form: LoraForm | None = None,
    *,
    base: epath.PathLike | None = None,
    step: int | None = None,
    merge: bool = False,
) -> Exported:
    """Writes what a run has trained for other programs.

    A run that trained all parameters gives a `transformer/` without a LoRA; so does `merge`.

    Args:
        checkpoints: folder of the run's checkpoints.
        target: new folder; or a file ending in `.safetensors`, if that can hold everything.
        form: form of the written files.
        base: the base of the run, if it has moved since.
        step: step of the checkpoint; default: the newest.
        merge: add the LoRA to the weights of the transformer.

    Raises:
        UserError: no such checkpoint, another base than the run's, or a target that cannot hold
            what was trained; nothing is left behind.
    """
    form = form or LoraForm()
    trained, run = read_trained(checkpoints, step)
    adapter = _adapter_of(trained, run, checkpoints)
    root = base if base is not None else resolve(run["base"]["path"])
    component = with_condition(_base_of(run, root), [(adapter, 1.0)])
    whole = not adapter.factors
    if (merge or whole) and (flag := _flag_of_lora(form)):
        what = "--merge" if merge else "a run of all parameters"
        raise UserError(f"{flag} writes a LoRA; {what} gives a transformer without one")
    told = Card(
        Path(target).name,
        _command(checkpoints, target, form, step=step, merge=merge),
        run["base"]["path"],
        run,
        last_scores(_run_folder(checkpoints)),
        distilled=adapter.distilled,
    )
    if merge or whole:
        if target.endswith(".safetensors"):
            raise UserError(f"{target}: this export holds a transformer; give a folder")
        with new_folder(target) as work:
            notices = to_torch(
                component.path, work / "transformer", dtype=form.dtype, adapters=[(adapter, 1.0)]
            )
            notices += model_notices("diffusers") if component.config.condition_embed else []
            told.write(work)
        return Exported((f"{target}/transformer",), tuple(notices))
    return _write(adapter, target, form, component.config, component.path, told)


def export_weights(
    source: epath.PathLike,
    target: str,
    *,
    layout: str = "diffusers",
    dtype: DTypeLike | None = None,
    adapters: Sequence[tuple[Mergeable, float]] = (),
    overwrite: bool = False,
) -> Exported:
    """Writes weights for other programs; arguments and errors are those of `jobs.to_torch`.

    A folder with adapters merged into it is a new model and gets a card.
    """
    notices = to_torch(
        source, target, layout=layout, dtype=dtype, adapters=adapters, overwrite=overwrite
    )
    if adapters and not target.endswith(".safetensors"):
        merged = {adapter.name: scale for adapter, scale in adapters}
        names, scales = " ".join(map(public_name, merged)), " ".join(map(str, merged.values()))
        command = (
            f"dsd convert to-torch {public_name(source)} {Path(target).name} --lora_path {names} "
            f"--lora_scale {scales}"
        )
        needs = (own.distilled for own, scale in adapters if isinstance(own, Adapter) and scale)
        distilled = next(filter(None, needs), None)
        told = Card(Path(target).name, command, source, adapters=merged, distilled=distilled)
        told.write(target)
    return Exported((target,), tuple(notices))


def _flag_of_lora(form: LoraForm) -> str:
    """A flag of the form that makes sense for a LoRA alone; empty if there is none."""
    if form.single_file:
        return "--single_file"
    if form.rank is not None:
        return f"--rank {form.rank}"
    return "" if form.layout == "peft" else f"--layout {form.layout}"


def _command(
    source: epath.PathLike,
    target: str,
    form: LoraForm,
    *,
    step: int | None = None,
    merge: bool = False,
) -> str:
    """Writes the command of an export without naming folders of this machine."""
    flags = {
        "--layout": form.layout if form.layout != "peft" else None,
        "--dtype": form.dtype and np.dtype(form.dtype).name,
        "--single_file": "" if form.single_file else None,
        "--rank": form.rank,
        "--step": step,
        "--merge": "" if merge else None,
    }
    given = [f"{name} {value}".strip() for name, value in flags.items() if value is not None]
    run = public_name(_run_folder(source))
    return " ".join(["dsd convert lora", run, Path(target).name, *given])


def _run_folder(checkpoints: epath.PathLike) -> Path:
    folder = Path(checkpoints)
    return folder.parent if folder.name == FOLDER else folder


def _adapter_of(
    trained: Mapping[str, np.ndarray], run: Mapping[str, Any], checkpoints: epath.PathLike
) -> Adapter:
    """The trained parameters as an adapter at scale 1; alpha / rank is folded into B."""
    lora = run["config"]["lora"]
    scale = 1.0 if lora is None or not lora["alpha"] else lora["alpha"] / lora["rank"]
    factors = {
        path: tensor * np.float32(scale) if path.endswith(".lora_b") and scale != 1 else tensor
        for path, tensor in trained.items()
        if ".lora_" in path
    }
    full = {path: tensor for path, tensor in trained.items() if path not in factors}
    name = f"step {run['step']} of {_run_folder(checkpoints).name}"
    return Adapter(factors, full, name, _distilled(run["config"]))


def _distilled(config: Mapping[str, Any]) -> Distilled | None:
    """The sampling that a run of this recipe distils for; runs from before know no distillation."""
    teacher = config.get("distill")
    if teacher is None:
        return None
    steps = len(teacher["mask"] or "") or teacher["steps"]
    return Distilled(config["flow"]["guidance"], **{**teacher, "steps": steps})


def _base_of(run: Mapping[str, Any], path: epath.PathLike) -> Component[FluxConfig]:
    """The base of a run, checked against the digests that the run has recorded."""
    component = open_transformer(epath.Path(path), fingerprint=True)
    held, given = run["base"]["sha256"], component.sha256()
    if held and given and held != given:
        raise UserError(
            f"{path} is not the base that this run was trained on; give that one as --base_path"
        )
    return component


def _write(
    adapter: Adapter,
    target: str,
    form: LoraForm,
    config: FluxConfig,
    base: epath.PathLike | None,
    told: Card,
) -> Exported:
    """Writes an adapter: one file, or a folder with its card and what goes into `transformer/`."""
    single = target.endswith(".safetensors")
    layers = layers_of(adapter, config, form.layout)
    kept = form.single_file and bool(adapter.full)
    notices = lora_notices(layers, form.layout, embedding=kept)
    if not form.single_file and adapter.full and (single or base is None):
        way = (
            f"give a folder as target{' and the base as --base_path' if base is None else ''}"
            if single
            else "give the base as --base_path"
        )
        raise UserError(
            f"{adapter.name} holds a condition embedding, which other programs read from a "
            f"transformer/ beside the LoRA: {way}; or --single_file keeps it in the LoRA file"
        )
    if form.rank is not None:
        adapter, share = resized(adapter, form.rank)
        notices.append(f"rank {form.rank} keeps {share:.2%} of the LoRA's squared norm")
    if single:
        file = write_lora(target, adapter, config, form.layout, form.dtype)
        return Exported((str(file),), tuple(notices))
    paths = []
    with new_folder(target) as work:
        if adapter.full and not form.single_file:
            assert base is not None  # refused above
            own = Adapter({}, adapter.full, name=adapter.name)
            transformer = transformer_folder(epath.Path(base))
            notices += to_torch(
                transformer, work / "transformer", dtype=form.dtype, adapters=[(own, 1.0)]
            )
            notices += model_notices("diffusers")
            adapter = dataclasses.replace(adapter, full={})
            paths.append(f"{target}/transformer")
        if layers or not paths:
            file = write_lora(work, adapter, config, form.layout, form.dtype)
            paths.append(f"{target}/{file.name}")
        told.write(work)
    return Exported(tuple(paths), tuple(notices))
