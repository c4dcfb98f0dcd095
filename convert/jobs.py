"""The conversions: whole pipelines or single models, to JAX and back, streamed tensor by tensor."""

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from dsd_jax.checkpoint import save_params
from dsd_jax.config import ClipConfig, FluxConfig, T5Config
from dsd_jax.convert.hub import check_scheme
from dsd_jax.convert.open import (
    ORIGIN,
    PARAMS,
    config_to_json,
    open_component,
    table_for,
)
from dsd_jax.convert.table.engine import Source
from dsd_jax.convert.writer import DIFFUSERS_STEM, TRANSFORMERS_STEM, write_weights
from dsd_jax.errors import UserError
from dsd_jax.lora import MergedSource
from dsd_jax.models import Config
from dsd_jax.parts import Component, ScaledAdapter, with_condition
from dsd_jax.progress import progress
from dsd_jax.types import DTypeLike
from dsd_jax.weights import WeightSource

__all__ = ["MODELS", "to_jax", "to_torch"]

# Folders of a FLUX pipeline in diffusers layout; the others hold a few small files and are copied.
MODELS = ("transformer", "vae", "text_encoder", "text_encoder_2")
OTHERS = ("tokenizer", "tokenizer_2", "scheduler")


@contextlib.contextmanager
def _new_folder(path: epath.PathLike) -> Iterator[epath.Path]:
    """A folder that appears under `path` when the block ends well, and leaves nothing otherwise.

    A bucket has no renames; there, a folder counts as there once its `config.json` is.
    """
    check_scheme(path)
    final = epath.Path(path)
    if final.exists():
        raise UserError(f"{path} exists already; remove it or choose another destination")
    remote = "://" in str(path)
    work = final if remote else final.with_name(f".{final.name}.part")
    new_parents = [] if remote else [p for p in Path(final).parents if not p.exists()]
    try:
        if work.exists():
            work.rmtree()
        work.mkdir(parents=True)
        yield work
        if not remote:
            Path(work).replace(Path(final))
    except BaseException as error:
        with contextlib.suppress(OSError):
            if work.exists():
                work.rmtree()
            for parent in new_parents:
                parent.rmdir()
        if isinstance(error, UserError):  # under the name that the user gave
            raise UserError(str(error).replace(str(work), str(path))) from error
        if isinstance(error, OSError):
            raise UserError(
                f"cannot write {path}: {error.strerror or error}; nothing was left behind"
            ) from error
        raise


def _write_json(path: epath.Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")


def _parts(source: epath.PathLike) -> list[str]:
    """The models of a pipeline folder; empty for the folder or file of one model."""
    root = epath.Path(source)
    if (root / "config.json").exists() or not root.is_dir():
        return []
    return [name for name in MODELS if (root / name).is_dir()]


def _copy_others(source: epath.PathLike, target: epath.Path) -> None:
    root = epath.Path(source)
    for name in OTHERS:
        if (root / name).is_dir():
            (target / name).mkdir(parents=True, exist_ok=True)
            for file in (root / name).iterdir():
                if not file.is_dir():
                    file.copy(target / name / file.name, overwrite=True)
    if (root / "model_index.json").exists():
        (root / "model_index.json").copy(target / "model_index.json", overwrite=True)


def _cast(array: np.ndarray, dtype: DTypeLike | None) -> np.ndarray:
    return array if dtype is None else array.astype(dtype, copy=False)


def to_jax(
    source: epath.PathLike, target: epath.PathLike, *, dtype: DTypeLike | None = None
) -> list[str]:
    """Converts a pipeline folder, or one model in any layout, to Orbax.

    Each model becomes a folder with the same `config.json` and the checkpoint in `params/`, which
    also records the SHA-256 of the files it came from. Small files (tokenisers, scheduler) are
    copied.

    Args:
        source: folder or file.
        target: new folder, local or `gs://`.
        dtype: cast to it; by default every tensor keeps its dtype.

    Returns:
        Notices for the user.

    Raises:
        UserError: unreadable source, existing or unwritable target; nothing is left behind.
    """
    notices: list[str] = []
    with _new_folder(target) as work:
        names = _parts(source)
        for name in names or [""]:
            component = open_component(epath.Path(source) / name, fingerprint=True)
            notices += component.notices
            _to_orbax(component, work / name, dtype, name or Path(source).name)
        if names:
            _copy_others(source, work)
    return notices


def _to_orbax(
    component: Component[Config], folder: epath.Path, dtype: DTypeLike | None, title: str
) -> None:
    shapes = component.source.shapes
    total = sum(map(math.prod, shapes.values())) / 1e6

    with progress(f"to JAX: {title}", total, "M parameters") as advance:

        def tensors() -> Iterator[tuple[str, np.ndarray]]:
            for path, array in _in_order(component.source):
                yield path, _cast(array, dtype)
                advance(array.size / 1e6)

        save_params(folder / PARAMS, tensors())
    _finish(component, folder)


def _finish(
    component: Component[Config], folder: epath.Path, adapters: Sequence[ScaledAdapter] = ()
) -> None:
    """The small files of a converted model; `config.json` last, which makes it complete."""
    origin: dict[str, Any] = {"path": component.path, "sha256": component.sha256()}
    if adapters:
        origin["lora"] = {adapter.name: scale for adapter, scale in adapters}
    _write_json(folder / ORIGIN, origin)
    _write_json(folder / "config.json", config_to_json(component.config))


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
    adapters: Sequence[ScaledAdapter] = (),
    overwrite: bool = False,
) -> list[str]:
    """Converts a pipeline folder, or one model in any layout, to PyTorch's files.

    Args:
        source: folder or file.
        target: new folder; or, for one model, a file ending in `.safetensors`.
        layout: "diffusers" (a folder for `from_pretrained`) or "bfl" (one file per model).
        dtype: cast to it; by default every tensor keeps its dtype.
        adapters: merged into the transformer, each with its scale.

    Returns:
        Notices for the user.

    Raises:
        UserError: unreadable source, existing or unwritable target, an adapter of another model;
            nothing is left behind.
    """
    names = _parts(source)
    if str(target).endswith(".safetensors"):
        if names:
            raise UserError(
                f"{source} holds {len(names)} models, which do not go into one file; give a folder "
                f"as target, or one of them as source: {', '.join(names)}"
            )
        component = _open(source, adapters)
        file = Path(target)
        _to_safetensors(component, adapters, file, layout, dtype, file.name, overwrite=overwrite)
        return list(component.notices)

    notices: list[str] = []
    with _new_folder(target) as work:
        for name in names or [""]:
            own = adapters if name in ("transformer", "") else ()
            component = _open(epath.Path(source) / name, own)
            notices += component.notices
            text = isinstance(component.config, T5Config | ClipConfig)
            _to_safetensors(
                component,
                own,
                Path(work) / name,
                "diffusers" if text else layout,
                dtype,
                name or Path(target).name,
            )
            _finish(component, work / name, own)
        if names:
            _copy_others(source, work)
    return notices


def _open(path: epath.PathLike, adapters: Sequence[ScaledAdapter]) -> Component[Config]:
    """One model, with room for what the adapters bring."""
    component = open_component(path, fingerprint=True)
    if not adapters:
        return component
    if not isinstance(component.config, FluxConfig):
        raise UserError(f"{path} is not a FLUX transformer; a LoRA can only be merged into one")
    return with_condition(component.expect(FluxConfig), adapters)


def _to_safetensors(
    component: Component[Config],
    adapters: Sequence[ScaledAdapter],
    target: Path,
    layout: str,
    dtype: DTypeLike | None,
    title: str,
    *,
    overwrite: bool = False,
) -> None:
    table = table_for(component.config, layout)
    source = MergedSource(component.source, adapters) if adapters else component.source
    specs = table.their_specs(source.dtypes if dtype is None else dtype)
    total = sum(math.prod(shape) for shape, _ in specs.values()) / 1e6
    text = isinstance(component.config, T5Config | ClipConfig)

    def read(path: str) -> np.ndarray:
        return source.read(path, tuple(slice(0, size) for size in source.shapes[path]))

    with progress(f"to PyTorch: {title}", total, "M parameters") as advance:

        def tensors() -> Iterator[tuple[str, np.ndarray]]:
            for name, array in table.iter_theirs(read, dtype):
                yield name, array
                advance(array.size / 1e6)

        write_weights(
            target,
            specs,
            tensors(),
            stem=TRANSFORMERS_STEM if text else DIFFUSERS_STEM,
            overwrite=overwrite,
        )
