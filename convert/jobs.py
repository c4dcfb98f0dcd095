"""Converts complete pipelines or single models to JAX and back, one tensor at a time."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from dsd_jax.checkpoint import save_params, tensor_digest
from dsd_jax.config import BFLOAT16, Execution, FluxConfig, T5Config
from dsd_jax.convert.card import public_name
from dsd_jax.convert.folder import new_folder
from dsd_jax.convert.io import Fingerprint
from dsd_jax.convert.lora.edits import EditedSource, Edits, Mergeable
from dsd_jax.convert.open import (
    config_to_json,
    of_transformers,
    open_component,
    table_for,
)
from dsd_jax.convert.origin import PARAMS, write_origin
from dsd_jax.convert.readers import model_notices
from dsd_jax.convert.table.engine import Source
from dsd_jax.convert.writer import DIFFUSERS_STEM, TRANSFORMERS_STEM, write_weights
from dsd_jax.errors import UserError
from dsd_jax.inside import read_inside
from dsd_jax.lora import Adapter, MergedSource
from dsd_jax.models import Config, abstract
from dsd_jax.parts import Component, ScaledAdapter, with_condition
from dsd_jax.progress import progress
from dsd_jax.quantise import WeightKind, coded, kind_of, quantised
from dsd_jax.types import DTypeLike
from dsd_jax.weights import WeightSource

__all__ = ["MODELS", "to_jax", "to_torch"]

# Folders of a FLUX pipeline in diffusers layout; the others hold a few small files and are copied.
MODELS = ("transformer", "vae", "text_encoder", "text_encoder_2")
OTHERS = ("tokenizer", "tokenizer_2", "scheduler")
_BESIDE = ("model_index.json", "preprocessor_config.json")  # of a pipeline, of a vision model
_MOST_COPIED = 1 << 28  # bytes of one of their files; T5's tokenizer has 2 MB


def _parts(source: epath.PathLike) -> list[str]:
    """The models of a pipeline folder; empty for the folder or file of one model."""
    root = epath.Path(source)
    if (root / "config.json").exists() or not root.is_dir():
        return []
    return [name for name in MODELS if (root / name).is_dir()]


def _copy_others(source: epath.PathLike, target: epath.Path) -> None:
    """Copies the small files of a pipeline, or of one model.

    Raises:
        UserError: one of them is a link out of the pipeline's folder, a pipe or a device. What is
            copied is shared with others, and a stranger's link may lead to a private file.
    """
    root = epath.Path(source)
    names = [name for folder in OTHERS for name in _files_in(root, folder)]
    for name in (*names, *(name for name in _BESIDE if (root / name).exists())):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if "://" in str(root):
            (root / name).copy(target / name, overwrite=True)
        else:
            (target / name).write_bytes(read_inside(Path(root), name, _MOST_COPIED))


def _files_in(root: epath.Path, folder: str) -> list[str]:
    if not (root / folder).is_dir():
        return []
    return [f"{folder}/{each.name}" for each in (root / folder).iterdir() if not each.is_dir()]


def _cast(array: np.ndarray, dtype: DTypeLike | None, path: str) -> np.ndarray:
    """The tensor in this dtype.

    Raises:
        UserError: it has numbers above 65,504, which are infinite in float16.
    """
    if dtype is None or array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if cast.dtype == np.float16 and not np.isfinite(cast).all():
        raise UserError(f"{path} has numbers that float16 cannot hold; use bfloat16 or float32")
    return cast


def to_jax(
    source: epath.PathLike,
    target: epath.PathLike,
    *,
    dtype: DTypeLike | None = None,
    weights: WeightKind | None = None,
) -> list[str]:
    """Converts a pipeline folder, or one model in any layout, to Orbax.

    Each model becomes a folder with the same `config.json` and the checkpoint in `params/`, which
    also records the SHA-256 of the files it came from. Small files (tokenisers, scheduler,
    preprocessing) are copied.

    Args:
        source: folder or file.
        target: new folder, local or `gs://`.
        dtype: dtype to cast to; by default every tensor keeps its own.
        weights: keep the kernels in the blocks of the transformer in few bits, as loading with this
            kind would make them, and those of T5 in int8.

    Returns:
        Notices for the user.

    Raises:
        UserError: unreadable source, existing or unwritable target, or one model that is not held
            in few bits; nothing is left behind.
    """
    notices: list[str] = []
    with new_folder(target) as work:
        names = _parts(source)
        for name in names or [""]:
            component = open_component(epath.Path(source) / name, fingerprint=True)
            notices += component.notices
            kind = _kind_for(component, weights)
            if weights is not None and kind is None and not name:
                raise UserError(
                    f"{source} is neither a FLUX transformer nor T5, which alone are kept in "
                    f"{weights}; leave out --weights"
                )
            few = _in_few_bits(component, kind)
            _to_orbax(few, work / name, dtype, name or Path(source).name, changed=few != component)
        _copy_others(source, work)
    return notices


def _kind_for(component: Component[Config], weights: WeightKind | None) -> WeightKind | None:
    """The kind in which a model is kept; None for one whose kernels stay as they are."""
    match component.config:
        case FluxConfig():
            return component.settle(weights)
        case T5Config():
            return component.settle(weights and "int8")
    return None


def _in_few_bits(component: Component[Config], kind: WeightKind | None) -> Component[Config]:
    """The model with a source that quantises what it reads; the same one if there is no need."""
    if kind is None or kind == kind_of(component.source.dtypes):
        return component
    config, execution = component.config, Execution(scan_layers=True)
    assert isinstance(config, FluxConfig | T5Config)  # see `_kind_for`
    model = abstract(config, precision=BFLOAT16, execution=execution, weights=kind)
    source = quantised(component.source, model, model.stacks)
    return dataclasses.replace(component, source=source)


def _to_orbax(
    component: Component[Config],
    folder: epath.Path,
    dtype: DTypeLike | None,
    title: str,
    *,
    changed: bool,
) -> None:
    """Writes one model; `changed` says that its numbers are not those of the files."""
    shapes = component.source.shapes
    total = sum(map(math.prod, shapes.values())) / 1e6

    with progress(f"to JAX: {title}", total, "M parameters") as advance:
        digests: dict[str, str] = {}
        codes = coded(shapes)

        def tensors() -> Iterator[tuple[str, np.ndarray]]:
            for path, array in _in_order(component.source):
                cast = array if path in codes else _cast(array, dtype, path)
                digests[path] = tensor_digest(cast)
                yield path, cast
                advance(array.size / 1e6)

        save_params(folder / PARAMS, tensors())
    held = component.source.dtypes.values()
    changed |= dtype is not None and any(own != np.dtype(dtype) for own in held)
    _finish(component, folder, digests=digests, changed=changed)


def _finish(
    component: Component[Config],
    folder: epath.Path,
    adapters: Sequence[tuple[Mergeable, float]] = (),
    *,
    digests: Mapping[str, str] | None = None,
    changed: bool = False,
) -> None:
    """Writes the small files of a converted model; `config.json` comes last and completes it.

    `source.json` identifies the weights. Its `sha256` is that of the source's files; or, if a cast
    has changed numbers, one over the digests of all `tensors`.
    """
    # The last part of the path only: a shared folder must not tell anything of this machine.
    origin: dict[str, Any] = {"path": public_name(component.path), "sha256": component.sha256()}
    if adapters:
        origin["lora"] = {adapter.name: scale for adapter, scale in adapters}
    if digests:
        if changed:
            origin["converted_from"] = origin["sha256"]
            origin["sha256"] = {PARAMS: Fingerprint(dict(digests)).combined}
        origin["tensors"] = dict(digests)
    write_origin(folder, origin, config_to_json(component.config))


def _in_order(source: WeightSource) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor, in the order of the file where there is one."""
    if isinstance(source, Source):
        yield from source.iter_ours()
        return
    for path, shape in source.shapes.items():
        yield path, source.read(path, tuple(slice(0, size) for size in shape))


def to_torch(
    source: epath.PathLike,
    target: epath.PathLike,
    *,
    layout: str = "diffusers",
    dtype: DTypeLike | None = None,
    adapters: Sequence[tuple[Mergeable, float]] = (),
    overwrite: bool = False,
) -> list[str]:
    """Converts a pipeline folder, or one model in any layout, to PyTorch's files.

    Args:
        source: folder or file.
        target: new folder; or, for one model, a file ending in `.safetensors`.
        layout: "diffusers" (a folder for `from_pretrained`) or "bfl" (one file per model).
        dtype: dtype to cast to; by default every tensor keeps its own.
        adapters: merged into the transformer one after another, each with its scale.

    Returns:
        Notices for the user.

    Raises:
        UserError: unreadable source, existing or unwritable target, an adapter of another model;
            nothing is left behind.
    """
    names = _parts(source)
    form = _Form(layout, dtype, tuple(adapters))
    if str(target).endswith(".safetensors"):
        if names:
            raise UserError(
                f"{source} holds {len(names)} models, which do not go into one file; give a folder "
                f"as target, or one of them as source: {', '.join(names)}"
            )
        component = _open(source, adapters)
        file = Path(target)
        lost = _to_safetensors(component, form, file, file.name, overwrite=overwrite)
        return [*component.notices, *lost]

    if "://" in str(target):
        raise UserError(
            f"{target}: PyTorch files are written to a local folder; copy it from there"
        )
    notices: list[str] = []
    with new_folder(target) as work:
        for name in names or [""]:
            own = adapters if name in ("transformer", "") else ()
            component = _open(epath.Path(source) / name, own)
            other = of_transformers(component.config)  # these models have one layout only
            wanted = dataclasses.replace(
                form, layout="diffusers" if other else layout, adapters=tuple(own)
            )
            lost = _to_safetensors(component, wanted, Path(work) / name, name or Path(target).name)
            notices += [*component.notices, *lost]
            _finish(component, work / name, own)
        _copy_others(source, work)
    return notices


@dataclasses.dataclass(frozen=True)
class _Form:
    """The form in which a model is written for PyTorch; see `to_torch`."""

    layout: str
    dtype: DTypeLike | None
    adapters: tuple[tuple[Mergeable, float], ...]


def _open(path: epath.PathLike, adapters: Sequence[tuple[Mergeable, float]]) -> Component[Config]:
    """Opens one model; it gets a condition embedding if an adapter brings one."""
    component = open_component(path, fingerprint=True)
    if kind := kind_of(component.source.dtypes):
        raise UserError(
            f"{path} holds {kind} weights of this program, which PyTorch's formats lack; convert "
            "the weights that they were made from"
        )
    if not adapters:
        return component
    if not isinstance(component.config, FluxConfig):
        raise UserError(f"{path} is not a FLUX transformer; a LoRA can only be merged into one")
    return with_condition(component.expect(FluxConfig), _plain(adapters))


def _plain(adapters: Sequence[tuple[Mergeable, float]]) -> list[ScaledAdapter]:
    """The adapters that consist of factors and full tensors."""
    return [(adapter, scale) for adapter, scale in adapters if isinstance(adapter, Adapter)]


def _exact(
    base: WeightSource, adapters: Sequence[tuple[Mergeable, float]]
) -> tuple[WeightSource, set[str]]:
    """The weights with every adapter, in float32, and the paths that change.

    LoRAs that follow each other are summed before they are added.
    """
    source: WeightSource = base
    paths: set[str] = set()
    for edited, group in itertools.groupby(adapters, lambda pair: isinstance(pair[0], Edits)):
        for run in [[pair] for pair in group] if edited else [list(group)]:
            made: MergedSource | EditedSource = MergedSource(source, _plain(run), np.float32)
            if isinstance(run[0][0], Edits):
                made = EditedSource(source, run[0][0], run[0][1])
            paths |= made.sums
            source = made
    return source, paths


def _to_safetensors(
    component: Component[Config], form: _Form, target: Path, title: str, *, overwrite: bool = False
) -> list[str]:
    """Writes one model; returns notices for the user."""
    table = table_for(component.config, form.layout)
    merged = _Merged(component.source, form)
    specs = table.their_specs(merged.dtypes)
    total = sum(math.prod(shape) for shape, _ in specs.values()) / 1e6
    stem = TRANSFORMERS_STEM if of_transformers(component.config) else DIFFUSERS_STEM

    with progress(f"to PyTorch: {title}", total, "M parameters") as advance:

        def tensors() -> Iterator[tuple[str, np.ndarray]]:
            for name, array in table.iter_theirs(merged.read):
                yield name, array
                advance(array.size / 1e6)

        write_weights(
            target,
            specs,
            tensors(),
            stem=stem,
            overwrite=overwrite,
        )
    config = component.config
    alone = form.layout == "bfl" and isinstance(config, FluxConfig) and config.condition_embed
    return merged.notices() + (model_notices(form.layout) if alone else [])


class _Merged:
    """Weights with their adapters as they are written; measures what rounding takes away.

    Sums are made in float32 and rounded once. Attribute `dtypes`: the written dtype of every
    parameter.
    """

    def __init__(self, base: WeightSource, form: _Form) -> None:
        self._base = base
        self._kept = MergedSource(base, _plain(form.adapters))
        self._exact, self._sums = _exact(base, form.adapters)
        self.dtypes = (
            self._kept.dtypes
            if form.dtype is None
            else dict.fromkeys(base.shapes, np.dtype(form.dtype))
        )
        self._change = self._loss = 0.0  # sums of squares

    def read(self, path: str) -> np.ndarray:
        whole = tuple(slice(0, size) for size in self._base.shapes[path])
        dtype = self.dtypes[path]
        if path not in self._sums:
            return _cast(self._kept.read(path, whole), dtype, path)
        exact = self._exact.read(path, whole)
        written = _cast(exact, dtype, path)
        if written is exact:
            return written
        base = self._base.read(path, whole).astype(np.float32)
        self._change += float(np.linalg.norm(exact - base)) ** 2
        self._loss += float(np.linalg.norm(exact - written.astype(np.float32))) ** 2
        return written

    def notices(self) -> list[str]:
        if not self._loss:
            return []
        share = 100 * math.sqrt(self._loss / self._change) if self._change else math.inf
        kinds = sorted({str(self.dtypes[path]) for path in self._sums})
        notice = (
            f"rounding the merged weights to {' and '.join(kinds)} changes them by {share:.2g} % "
            "of what the LoRA does; --dtype float32 keeps all of it"
        )
        return [notice]
