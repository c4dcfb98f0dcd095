"""One model on disk, in whatever format: its config and a source of its weights.

Formats: a diffusers or transformers folder (`config.json` and safetensors, in one file or several
with an index), a single file of Black Forest Labs, and this project's own folder (the same
`config.json` with an Orbax checkpoint in `params/`).
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from dsd_jax.checkpoint import OrbaxSource
from dsd_jax.config import AutoencoderConfig, ClipConfig, FluxConfig, T5Config
from dsd_jax.convert.flux.bfl import flux_bfl
from dsd_jax.convert.flux.config import flux_from_json, flux_from_tensors, flux_to_json
from dsd_jax.convert.flux.diffusers import flux_diffusers
from dsd_jax.convert.io import Weights, open_weights
from dsd_jax.convert.packaging import detect_layout
from dsd_jax.convert.table.engine import Source, Table
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
from dsd_jax.errors import UserError
from dsd_jax.models import Config
from dsd_jax.weights import Layered, WeightSource, Zeros

__all__ = [
    "ORIGIN",
    "PARAMS",
    "Component",
    "config_to_json",
    "open_component",
    "read_json",
    "table_for",
]

PARAMS = "params"  # the Orbax checkpoint inside a folder of ours
ORIGIN = "source.json"  # beside it: what the weights were converted from, with digests


@dataclasses.dataclass(frozen=True)
class Component:
    """A model on disk.

    Attributes:
        path: as given.
        config: its size.
        source: its weights, by our names.
        layout: "diffusers", "bfl" or "orbax".
        notices: what the user should know, one sentence each.
    """

    path: str
    config: Config
    source: WeightSource
    layout: str
    notices: tuple[str, ...] = ()

    def sha256(self) -> dict[str, str]:
        """Digest of every source file; of a converted folder, those of what it came from."""
        if isinstance(self.source, Source) and isinstance(self.source.weights, Weights):
            return self.source.weights.fingerprint().files
        record = epath.Path(self.path) / ORIGIN
        return dict(read_json(record)["sha256"]) if record.exists() else {}


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
    raise UserError(f"there is no {layout} layout for {type(config).__name__}; use diffusers")


def config_to_json(config: Config) -> dict[str, Any]:
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


def _config_from_json(data: Mapping[str, Any], names: list[str], where: str) -> Config:
    kind = data.get("_class_name") or next(iter(data.get("architectures") or []), None)
    match kind or data.get("model_type"):
        case "FluxTransformer2DModel" | "FluxTransformer2DConditionalModel":
            return flux_from_json(data, names)
        case "AutoencoderKL":
            return autoencoder_from_json(data)
        case "T5EncoderModel" | "T5ForConditionalGeneration" | "t5":
            return t5_from_json(data)
        case "CLIPTextModel" | "CLIPModel" | "clip_text_model":
            return clip_from_json(data)
        case other:
            raise UserError(
                f"{where} describes a {other or 'model of no known kind'}; expected a FLUX "
                "transformer, its autoencoder, a T5 encoder or a CLIP text encoder"
            )


def read_json(path: epath.PathLike) -> dict[str, Any]:
    """A JSON object from a local or `gs://` file.

    Raises:
        UserError: missing, unreadable, or not a JSON object.
    """
    try:
        data = json.loads(epath.Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; download the folder again") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); download it again") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a JSON object; download it again")
    return data


def open_component(
    path: epath.PathLike, *, condition_embed: bool = False, fingerprint: bool = False
) -> Component:
    """Opens the weights of one model; nothing but headers and configs is read yet.

    Args:
        path: folder or file, see above; folders of this project may be `gs://`.
        condition_embed: give a FLUX transformer without condition embedding a zero one.
        fingerprint: start hashing the files in the background.

    Raises:
        UserError: not such a folder or file, or weights that do not fit their config.
    """
    root = epath.Path(path)
    if (root / PARAMS).exists():
        config = _config_from_json(read_json(root / "config.json"), [], f"{root}/config.json")
        orbax = OrbaxSource(root / PARAMS)
        if isinstance(config, FluxConfig):
            has = "cond_in.kernel" in orbax.shapes
            config = dataclasses.replace(config, condition_embed=has or condition_embed)
            if condition_embed and not has:
                width = (config.width,)
                absent = Zeros(
                    {"cond_in.kernel": (config.in_channels, *width), "cond_in.bias": width},
                    orbax.dtypes["img_in.kernel"],
                )
                return Component(str(path), config, Layered(orbax, absent), "orbax")
        return Component(str(path), config, orbax, "orbax")

    weights = open_weights(str(path), fingerprint=fingerprint)
    names = list(weights.tensors)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    if (folder / "config.json").exists():
        where = folder / "config.json"
        config, layout = _config_from_json(read_json(where), names, str(where)), "diffusers"
        if isinstance(config, FluxConfig | AutoencoderConfig):
            layout = detect_layout(names)
    else:
        layout = detect_layout(names)
        if layout == "diffusers":
            raise UserError(f"{folder} has no config.json, which tells the size of the model")
        if any(name.startswith(("encoder.", "decoder.")) for name in names):
            config = autoencoder_from_tensors(weights)
        else:
            config = flux_from_tensors(weights)
    zeros: tuple[str, ...] = ()
    if isinstance(config, FluxConfig) and condition_embed:
        config, zeros = dataclasses.replace(config, condition_embed=True), ("cond_in",)
    source = table_for(config, layout).check(weights, zeros=zeros)
    return Component(str(path), config, source, layout, source.notices)
