"""Vision models on disk, ready to make features of pictures and, with CLIP, of texts."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from etils import epath
from jax.sharding import Mesh

from dsd_jax.config import FLOAT32, ClipConfig, DepthConfig, Precision, VisionConfig
from dsd_jax.convert.fields import Fields, check_depth
from dsd_jax.convert.hub import resolve
from dsd_jax.convert.io import open_weights
from dsd_jax.convert.open import open_component, read_json
from dsd_jax.convert.text import clip_from_json, clip_table
from dsd_jax.convert.vision.depth import DEPTH_KIND
from dsd_jax.convert.vision.preprocess import preprocess_from_json
from dsd_jax.errors import UserError
from dsd_jax.parts import Component
from dsd_jax.text.tokenize import clip_tokenizer
from dsd_jax.vision.captions import CaptionTower
from dsd_jax.vision.disparity import DepthTower
from dsd_jax.vision.preprocess import Preprocess
from dsd_jax.vision.tower import VisionTower

__all__ = [
    "DEPTH_SMALL",
    "DepthParts",
    "VisionParts",
    "find_depth",
    "find_vision",
    "holds_depth",
    "open_captions",
    "open_vision",
]

DEPTH_SMALL = "depth-anything/Depth-Anything-V2-Small-hf"
"""Hub id of the depth model whose licence is Apache-2.0."""

_PREPROCESSOR = "preprocessor_config.json"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


@dataclasses.dataclass(frozen=True)
class VisionParts:
    """A vision transformer on disk; no weights have been read.

    Attributes:
        name: Last part of its path or hub id.
        component: Config and weights.
        preprocess: Steps from a picture to the input.
        captions: The folder also holds the text encoder that `open_captions` reads.
    """

    name: str
    component: Component[VisionConfig]
    preprocess: Preprocess
    captions: bool

    def load(self, *, precision: Precision = FLOAT32, mesh: Mesh | None = None) -> VisionTower:
        """Reads the weights.

        Args:
            precision: Dtypes of parameters and products.
            mesh: Devices; its batch axes split the pictures. None for one device.

        Raises:
            UserError: The weights do not fit.
        """
        return VisionTower.load(
            self.component, self.name, self.preprocess, precision=precision, mesh=mesh
        )


def find_vision(path: epath.PathLike, preprocess: Preprocess | None = None) -> VisionParts:
    """Opens the files of DINO, DINOv2, CLIP or SigLIP as transformers saves them.

    Args:
        path: A folder or a hub id, such as `facebook/dinov2-small`; of a CLIP or SigLIP model with
            both encoders, the one for pictures is read.
        preprocess: Steps from a picture to the input. None takes those of
            the folder's `preprocessor_config.json`.

    Raises:
        UserError: A file is missing or damaged, or the model is of another kind.
    """
    wanted = ["config.json", *([] if preprocess else [_PREPROCESSOR])]
    root = _folder(resolve(path, [*wanted, *_TOKENIZER, *_WEIGHTS], "vision"), path, wanted)
    if preprocess is None:
        settings = root / _PREPROCESSOR
        preprocess = preprocess_from_json(read_json(settings), str(settings))
    component = open_component(root).expect(VisionConfig)
    both = read_json(root / "config.json").get("model_type") == "clip"
    return VisionParts(_name(path), component, preprocess, both)


def open_vision(
    path: epath.PathLike,
    preprocess: Preprocess | None = None,
    *,
    precision: Precision = FLOAT32,
    mesh: Mesh | None = None,
) -> VisionTower:
    """Loads a vision transformer; see `find_vision` and `VisionParts.load`."""
    return find_vision(path, preprocess).load(precision=precision, mesh=mesh)


@dataclasses.dataclass(frozen=True)
class DepthParts:
    """A depth model on disk; no weights have been read.

    Attributes:
        component: Config and weights.
        preprocess: Steps from a picture to the input.
    """

    component: Component[DepthConfig]
    preprocess: Preprocess

    def load(self, *, precision: Precision = FLOAT32, mesh: Mesh | None = None) -> DepthTower:
        """Reads the weights; see `VisionParts.load`."""
        return DepthTower.load(self.component, self.preprocess, precision=precision, mesh=mesh)


def find_depth(path: epath.PathLike) -> DepthParts:
    """Opens the files of Depth Anything as transformers saves them.

    Args:
        path: A folder or a hub id, such as `DEPTH_SMALL`.

    Raises:
        UserError: A file is missing or damaged, or the model is of another kind.
    """
    wanted = ["config.json", _PREPROCESSOR]
    root = _folder(resolve(path, [*wanted, *_WEIGHTS], "vision"), path, wanted)
    settings = root / _PREPROCESSOR
    preprocess = preprocess_from_json(read_json(settings), str(settings))
    return DepthParts(open_component(root).expect(DepthConfig), preprocess)


def holds_depth(path: epath.PathLike) -> bool:
    """Whether a folder or a hub id says that it holds a depth model."""
    file = resolve(path, ["config.json"], "vision") / "config.json"
    return file.exists() and read_json(file).get("model_type") == DEPTH_KIND


def open_captions(
    path: epath.PathLike, *, precision: Precision = FLOAT32, mesh: Mesh | None = None
) -> CaptionTower:
    """Loads the text encoder of a CLIP model with its projection and its tokeniser.

    Args:
        path: A folder or a hub id, such as `openai/clip-vit-base-patch32`.
        precision: Dtypes of parameters and products.
        mesh: Devices; its batch axes split the texts. None for one device.

    Raises:
        UserError: A file is missing or damaged, or the model is of another kind.
    """
    wanted = ["config.json"]
    root = _folder(resolve(path, [*wanted, *_TOKENIZER, *_WEIGHTS]), path, wanted)
    component = _open_text(path, root)
    tokenizer = clip_tokenizer(Path(root))
    return CaptionTower.load(component, _name(path), tokenizer, precision=precision, mesh=mesh)


def _open_text(path: epath.PathLike, root: epath.Path) -> Component[ClipConfig]:
    """The text encoder of a CLIP model, beside whatever else its file holds."""
    data = read_json(root / "config.json")
    read = Fields(f"{root}/config.json", data)
    kind = read.one_of("model_type", "clip", "clip_text_model")
    inner = data.get("text_config") if kind == "clip" else data
    if not isinstance(inner, dict):
        raise UserError(f"{root}/config.json has no text_config; download it again")
    config = dataclasses.replace(
        clip_from_json({**inner, "model_type": "clip_text_model"}),
        projection=read.number("projection_dim", 512),
    )
    weights = open_weights(str(root))
    check_depth(str(path), config.depth, len(weights.tensors))
    source = clip_table(config).check(weights)
    return Component(str(path), config, source, "diffusers", source.notices)


def _folder(root: epath.Path, path: epath.PathLike, wanted: Sequence[str]) -> epath.Path:
    """Returns the folder that was found for a path or a hub id, if the wanted files are in it."""
    for file in wanted:
        if not (root / file).exists():
            raise UserError(
                f"{path} has no {file}; give a folder with {' and '.join(wanted)} beside "
                "model.safetensors, as transformers saves it"
            )
    return root


def _name(path: epath.PathLike) -> str:
    return Path(str(path)).name
