"""A vision transformer on disk, ready to make features of pictures."""

from pathlib import Path

from etils import epath
from jax.sharding import Mesh

from dsd_jax.config import FLOAT32, Precision, VisionConfig
from dsd_jax.convert.hub import resolve
from dsd_jax.convert.open import open_component, read_json
from dsd_jax.convert.vision.preprocess import preprocess_from_json
from dsd_jax.errors import UserError
from dsd_jax.vision.preprocess import Preprocess
from dsd_jax.vision.tower import VisionTower

__all__ = ["open_vision"]

_PREPROCESSOR = "preprocessor_config.json"
_FILES = ["config.json", _PREPROCESSOR, "*.safetensors", "*.safetensors.index.json"]


def open_vision(
    path: epath.PathLike,
    preprocess: Preprocess | None = None,
    *,
    precision: Precision = FLOAT32,
    mesh: Mesh | None = None,
) -> VisionTower:
    """Loads DINO, DINOv2, CLIP or SigLIP as transformers saves them.

    Args:
        path: A folder or a hub id, such as `facebook/dinov2-small`; of a CLIP or SigLIP model with
            both encoders, the one for pictures is read.
        preprocess: Steps from a picture to the input; None: those of the folder's
            `preprocessor_config.json`.
        precision: Of parameters and products.
        mesh: Pictures are split over its batch axes; None: one device.

    Raises:
        UserError: A file is missing or damaged, or the model is of another kind.
    """
    root = resolve(path, _FILES)
    name = Path(str(path)).name
    for file in ["config.json", *([] if preprocess else [_PREPROCESSOR])]:
        if not (root / file).exists():
            raise UserError(
                f"{path} has no {file}; give a folder with {', '.join(_FILES[:2])} and "
                "model.safetensors, as transformers saves a vision model"
            )
    if preprocess is None:
        settings = root / _PREPROCESSOR
        preprocess = preprocess_from_json(read_json(settings), str(settings))
    component = open_component(root).expect(VisionConfig)
    return VisionTower.load(component, name, preprocess, precision=precision, mesh=mesh)
