"""A depth model with its preprocessing: from pictures to disparities, and those as pictures."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from PIL import Image

from dsd_jax.config import FLOAT32, DepthConfig, Precision, default_execution
from dsd_jax.encoders import in_groups
from dsd_jax.errors import UserError
from dsd_jax.models import abstract, load
from dsd_jax.parts import Component
from dsd_jax.sharding import batch_ways, on_mesh, place_batch
from dsd_jax.types import Array, Float32
from dsd_jax.vision.depth import Depth
from dsd_jax.vision.preprocess import Preprocess

__all__ = ["LONGEST", "DepthTower", "depth_picture"]

LONGEST = 4
"""Longer side of a picture over its shorter one, at most: memory grows with the square."""


class DepthTower:
    """A depth model, compiled, with its weights on a mesh.

    Args:
        model: The model with its weights.
        preprocess: Steps from a picture to its input.
        mesh: Devices; its batch axes split the pictures. None for one device.
        sha256: Gives the digest of every weight file by its name.
    """

    def __init__(
        self,
        model: Depth,
        preprocess: Preprocess,
        *,
        mesh: Mesh | None = None,
        sha256: Callable[[], dict[str, str]] = dict,
    ) -> None:
        self.config, self.preprocess, self.mesh = model.config, preprocess, mesh
        self.sha256 = sha256
        graphdef, state = nnx.split(model)

        @jax.jit
        def run(state: nnx.State, pixels: Array) -> Array:
            return nnx.merge(graphdef, state)(pixels)

        self._run = lambda pixels: run(state, place_batch(pixels, mesh))

    @classmethod
    def load(
        cls,
        component: Component[DepthConfig],
        preprocess: Preprocess,
        *,
        precision: Precision = FLOAT32,
        mesh: Mesh | None = None,
    ) -> "DepthTower":
        """Reads the weights onto the mesh.

        Raises:
            UserError: The weights do not fit.
        """
        execution = default_execution(jax.default_backend())
        model = abstract(component.config, precision=precision, execution=execution)
        filled = load(model, component.source, mesh=mesh)
        return cls(filled, preprocess, mesh=mesh, sha256=component.sha256)

    def prepare(self, image: Image.Image) -> Float32[np.ndarray, "H W 3"]:
        """The input of a picture; pictures of one size have inputs of one size.

        Raises:
            UserError: The picture is longer than `LONGEST` times its shorter side.
        """
        if max(image.size) > LONGEST * min(image.size):
            raise UserError(
                f"{image.width}x{image.height} pixels (width x height): the longer side is more "
                f"than {LONGEST} times the shorter one; crop the picture"
            )
        return self.preprocess(image)

    def disparities(
        self, pixels: Sequence[Float32[np.ndarray, "H W 3"]], batch: int | None = None
    ) -> Float32[np.ndarray, "n H_out W_out"]:
        """The disparity of every input; larger is nearer. Compiles anew for every size of inputs.

        Args:
            pixels: Inputs of one size.
            batch: Inputs per call, a multiple of the number of parts that the mesh splits a batch
                into. None takes that number.
        """
        with on_mesh(self.mesh):
            size = batch or batch_ways(self.mesh)
            found: np.ndarray = in_groups(self._run, [np.stack(pixels)], size)
        return found


def depth_picture(
    disparity: Float32[np.ndarray, "h w"], width: int, height: int
) -> Image.Image | None:
    """A disparity as a grey picture of 8 bits: the nearest point white, the farthest black.

    It is resized to the size of the photograph (bilinear), then its least and its largest value
    become 0 and 255; every picture has a scale of its own.

    Returns:
        None if all points are equally near, so that there is no scale.
    """
    resized = Image.fromarray(disparity.astype(np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    values = np.asarray(resized, np.float64)
    least, most = values.min(), values.max()
    if not most > least:
        return None
    return Image.fromarray(np.round((values - least) / (most - least) * 255).astype(np.uint8))
