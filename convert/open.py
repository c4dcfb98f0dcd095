"""Opens models on disk, in any format: the config and a source of the weights.

Formats: a diffusers or transformers folder (`config.json` and safetensors, in one file or several
with an index), a single file of Black Forest Labs, and this project's own folder (the same
`config.json` with an Orbax checkpoint in `params/`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from dsd_jax import structured
from dsd_jax.checkpoint import OrbaxSource
from dsd_jax.condition import CANVAS
from dsd_jax.config import (
    FLUX_DEV,
    AutoencoderConfig,
    ClipConfig,
    DepthConfig,
    FluxConfig,
    T5Config,
    VisionConfig,
)
from dsd_jax.convert.fields import check_depth
from dsd_jax.convert.flux.bfl import flux_bfl
from dsd_jax.convert.flux.config import flux_from_json, flux_from_tensors, flux_to_json
from dsd_jax.convert.flux.diffusers import flux_diffusers
from dsd_jax.convert.hub import resolve
from dsd_jax.convert.io import open_weights
from dsd_jax.convert.lora.read import read_lora
from dsd_jax.convert.origin import PARAMS, read_origin
from dsd_jax.convert.packaging import unpack
from dsd_jax.convert.schedule import schedule_from_json
from dsd_jax.convert.table.engine import Table
from dsd_jax.convert.text import (
    clip_from_json,
    clip_table,
    clip_to_json,
    t5_from_json,
    t5_table,
    t5_to_json,
)
from dsd_jax.convert.vae import (
    autoencoder_bfl,
    autoencoder_diffusers,
    autoencoder_from_json,
    autoencoder_from_tensors,
    autoencoder_to_json,
)
from dsd_jax.convert.vision.config import VISION_KINDS, vision_from_json, vision_to_json
from dsd_jax.convert.vision.depth import (
    DEPTH_KIND,
    depth_from_json,
    depth_table,
    depth_to_json,
)
from dsd_jax.convert.vision.tables import vision_table
from dsd_jax.errors import UserError
from dsd_jax.frames import PATCH
from dsd_jax.inside import read_inside
from dsd_jax.lora import check_scale
from dsd_jax.models import Config
from dsd_jax.parts import Component, FluxParts, ScaledAdapter, TextParts, with_condition
from dsd_jax.text.tokenize import CLIP_FOLDER, T5_FOLDER, Tokenizers

__all__ = [
    "config_to_json",
    "of_transformers",
    "open_autoencoder",
    "open_component",
    "open_flux",
    "open_loras",
    "open_text",
    "open_tokenizers",
    "open_transformer",
    "read_json",
    "table_for",
    "transformer_folder",
]

# Folders of a pipeline; a hub repository may also hold the same weights in another layout.
_FOLDERS = (
    *("scheduler", CLIP_FOLDER, T5_FOLDER),
    *("text_encoder", "text_encoder_2", "transformer", "vae"),
)


def table_for(config: Config, layout: str) -> Table:
    """The conversion table of a model.

    Raises:
        UserError: this model has no such layout.
    """
    match config, layout:
        case FluxConfig(), "diffusers":
            return flux_diffusers(config)
        case FluxConfig(), "bfl":
            return flux_bfl(config)
        case AutoencoderConfig(), "diffusers":
            return autoencoder_diffusers(config)
        case AutoencoderConfig(), "bfl":
            return autoencoder_bfl(config)
        case T5Config(), "diffusers":
            return t5_table(config)
        case ClipConfig(), "diffusers":
            return clip_table(config)
        case VisionConfig(), "diffusers":
            return vision_table(config)
        case DepthConfig(), "diffusers":
            return depth_table(config)
    raise UserError(f"there is no {layout} layout for {type(config).__name__}; use diffusers")


def of_transformers(config: Config) -> bool:
    """Whether the model is one of transformers; the others are of diffusers."""
    return isinstance(config, T5Config | ClipConfig | VisionConfig | DepthConfig)


def config_to_json(config: Config) -> dict[str, object]:
    """`config.json` as diffusers or transformers would write it."""
    match config:
        case FluxConfig():
            return flux_to_json(config)
        case AutoencoderConfig():
            return autoencoder_to_json(config)
        case T5Config():
            return t5_to_json(config)
        case ClipConfig():
            return clip_to_json(config)
        case VisionConfig():
            return vision_to_json(config)
        case DepthConfig():
            return depth_to_json(config)


def _config_from_json(data: Mapping[str, Any], names: list[str], where: str) -> Config:
    config = _config_of(data, names, where)
    match config:
        case FluxConfig():
            check_depth(where, config.double_depth + config.single_depth, len(names))
        case T5Config() | ClipConfig() | VisionConfig():
            check_depth(where, config.depth, len(names))
        case DepthConfig():
            check_depth(where, config.vision.depth, len(names))
        case AutoencoderConfig():
            blocks = len(config.block_channels) * config.layers_per_block
            check_depth(where, blocks, len(names))
    return config


def _config_of(data: Mapping[str, Any], names: list[str], where: str) -> Config:
    given, own = data.get("architectures"), data.get("model_type")
    kind = data.get("_class_name") or (given[0] if isinstance(given, list) and given else None)
    if isinstance(own, str) and own in VISION_KINDS:
        return vision_from_json(data, names)
    if own == DEPTH_KIND:
        return depth_from_json(data)
    match kind or own:
        case "FluxTransformer2DModel" | "FluxTransformer2DConditionalModel":
            return flux_from_json(data, names)
        case "AutoencoderKL":
            return autoencoder_from_json(data)
        case "T5EncoderModel" | "T5ForConditionalGeneration" | "t5":
            return t5_from_json(data)
        case "CLIPTextModel" | "CLIPModel" | "clip_text_model":
            return clip_from_json(data)
        case other:
            named = str(other or "model of no known kind")[:80]
            named = "".join(each if each.isprintable() else "\ufffd" for each in named)
            raise UserError(
                f"{where} describes a {named}; expected a FLUX "
                "transformer, its autoencoder, a T5 encoder, a CLIP text encoder, a vision "
                "transformer or a depth model"
            )


def read_json(path: epath.PathLike) -> dict[str, object]:
    """A JSON object from a local or `gs://` file, which must lie in its folder, links resolved.

    Raises:
        UserError: missing, unreadable, elsewhere, or not a JSON object.
    """
    if not epath.Path(path).exists():
        raise UserError(f"{path} is missing; download the folder again")
    try:
        if "://" in str(path):
            return structured.read_json(path, dict)
        local = Path(path)
        text = read_inside(local.parent, local.name, structured.JSON.size)
        return structured.parse_json(text, str(path), dict)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except structured.MalformedError as error:
        raise UserError(
            f"{path} cannot be read as JSON ({error.reason}); download it again"
        ) from None


def open_component(path: epath.PathLike, *, fingerprint: bool = False) -> Component[Config]:
    """Opens the weights of one model; nothing but headers and configs is read yet.

    Args:
        path: folder or file, see above; folders of this project may be `gs://`.
        fingerprint: start hashing the files in the background.

    Raises:
        UserError: there is no such folder or file, or the weights do not fit their config.
    """
    root = epath.Path(path)
    if (root / PARAMS).exists():
        origin = read_origin(root)
        data = read_json(root / "config.json")
        orbax = OrbaxSource(root / PARAMS, origin.tensors)
        config = _config_from_json(data, list(orbax.shapes), f"{root}/config.json")
        if isinstance(config, FluxConfig) and CANVAS.is_in(orbax.shapes):
            config = dataclasses.replace(config, condition_embed=True)
        return Component(str(path), config, orbax, "orbax", digests=lambda: origin.sha256)

    weights = open_weights(str(path), fingerprint=fingerprint)
    held = unpack(weights, str(path))
    names = list(held.weights.tensors)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    if (folder / "config.json").exists():
        where = folder / "config.json"
        data = read_json(where)
        if held.quantised:  # unpacking has undone it
            data.pop("quantization_config", None)
        config, layout = _config_from_json(data, names, str(where)), "diffusers"
        if isinstance(config, FluxConfig | AutoencoderConfig):
            layout = held.expect_known().layout
    else:
        layout = held.expect_known().layout
        if layout == "diffusers":
            raise UserError(f"{folder} has no config.json, which tells the size of the model")
        if held.model == "autoencoder":
            config = autoencoder_from_tensors(held.weights)
        else:
            config = flux_from_tensors(held.weights)
    source = table_for(config, layout).check(held.weights)
    notices = (*held.notices, *source.notices)
    return Component(
        str(path), config, source, layout, notices, lambda: weights.fingerprint().files
    )


def transformer_folder(path: epath.PathLike) -> epath.Path:
    """The `transformer/` subfolder of a pipeline or a release; a path without one is returned."""
    root = epath.Path(path)
    inner = root / "transformer"
    return inner if inner.is_dir() else root


def open_transformer(path: epath.PathLike, *, fingerprint: bool = False) -> Component[FluxConfig]:
    """Opens the transformer in a folder, in its `transformer/` subfolder, or in a file.

    Raises:
        UserError: it cannot be opened, or it is another kind of model.
    """
    component = open_component(transformer_folder(path), fingerprint=fingerprint)
    return component.expect(FluxConfig)


def open_loras(
    paths: Sequence[epath.PathLike], scales: float | Sequence[float], config: FluxConfig
) -> tuple[list[ScaledAdapter], list[str]]:
    """Reads LoRA files of any dialect, each with its scale.

    Args:
        paths: files, folders, or hub ids.
        scales: one for all, or one each.
        config: size of the model they are for.

    Returns:
        The adapters, and notices for the user.

    Raises:
        UserError: a file cannot be read or does not fit the model, or the counts differ.
    """
    each = list(scales) if isinstance(scales, Sequence) else [scales] * len(paths)
    if len(each) != len(paths):
        raise UserError(f"{len(paths)} LoRA files but {len(each)} scales; give as many")
    for scale in each:
        check_scale(scale)
    read = [read_lora(resolve(path, kind="lora"), config) for path in paths]
    adapters = [(adapter, scale) for (adapter, _), scale in zip(read, each, strict=True)]
    return adapters, [notice for _, report in read for notice in report.notices]


def open_autoencoder(
    base_path: epath.PathLike, *, fingerprint: bool = False
) -> Component[AutoencoderConfig]:
    """Opens the autoencoder of a pipeline (a folder or a hub id).

    Raises:
        UserError: it cannot be opened, or it is another kind of model.
    """
    root = resolve(base_path, ["vae/*"])
    return open_component(root / "vae", fingerprint=fingerprint).expect(AutoencoderConfig)


def open_tokenizers(
    base_path: epath.PathLike, max_sequence_length: int | None = None
) -> Tokenizers:
    """Loads the tokenisers of a pipeline (a folder or a hub id).

    Args:
        base_path: a local folder or a hub id.
        max_sequence_length: T5 tokens that a text is padded or cut to, at most what the tokeniser
            states.

    Raises:
        UserError: a bucket, or no tokenisers there.
    """
    root = resolve(base_path, [f"{name}/*" for name in (CLIP_FOLDER, T5_FOLDER)])
    if "://" in str(root):
        raise UserError(f"{root}: base_path must be a local folder; model_path may be a bucket")
    return Tokenizers.load(root, t5_length=max_sequence_length)


def open_text(
    base_path: epath.PathLike,
    max_sequence_length: int | None = None,
    *,
    fingerprint: bool = False,
) -> TextParts:
    """Opens tokenisers and text encoders of a pipeline; arguments as for `open_tokenizers`.

    Raises:
        UserError: something is missing, damaged, or of another kind.
    """
    root = resolve(base_path, ["text_encoder/*", "text_encoder_2/*"])
    return TextParts(
        open_tokenizers(base_path, max_sequence_length),
        t5=open_component(root / "text_encoder_2", fingerprint=fingerprint).expect(T5Config),
        clip=open_component(root / "text_encoder", fingerprint=fingerprint).expect(ClipConfig),
    )


def open_flux(
    base_path: epath.PathLike = FLUX_DEV,
    model_path: epath.PathLike | None = None,
    *,
    condition: bool = False,
    max_sequence_length: int | None = None,
    fingerprint: bool = False,
) -> FluxParts:
    """Opens a pipeline; nothing but headers, configs and tokenisers is read yet.

    Args:
        base_path: FLUX.1 in diffusers layout or converted: a local folder or a hub id.
        model_path: another transformer: a folder, a file, a bucket or a hub id, such as the DSD
            release's; default: the base's.
        condition: give a transformer without condition embedding one of zeros.
        max_sequence_length: see `open_tokenizers`.
        fingerprint: start hashing the transformer's files in the background.

    Raises:
        UserError: something is missing, damaged, or of another kind, such as FLUX.1 Fill.
    """
    wanted = [f"{name}/*" for name in _FOLDERS if name != "transformer" or model_path is None]
    root = resolve(base_path, ["model_index.json", *wanted])
    text = open_text(root, max_sequence_length)
    own = resolve(model_path) if model_path else root / "transformer"
    transformer = open_transformer(own, fingerprint=fingerprint)
    schedule = root / "scheduler" / "scheduler_config.json"
    parts = FluxParts(
        path=str(model_path or base_path),
        transformer=with_condition(transformer) if condition else transformer,
        autoencoder=open_autoencoder(root),
        text=text,
        schedule=schedule_from_json(read_json(schedule)),
    )
    _check_channels(parts)
    return parts


def _check_channels(parts: FluxParts) -> None:
    channels = parts.transformer.config.in_channels
    own = parts.autoencoder.config.latent_channels * PATCH**2
    if channels != own:
        raise UserError(
            f"{parts.transformer.path} takes {channels} channels per token, where plain FLUX takes "
            f"{own}: models such as FLUX.1 Fill, Depth and Canny need inputs that this program "
            "does not make; give FLUX.1-dev, FLUX.1-schnell or a DSD transformer"
        )
