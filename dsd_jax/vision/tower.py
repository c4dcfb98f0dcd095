"""A vision transformer with its preprocessing: from pictures to features on the host."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dsd_jax.config import FLOAT32, Precision, VisionConfig, default_execution
from dsd_jax.encoders import in_groups
from dsd_jax.images import Source, open_image
from dsd_jax.models import abstract, load
from dsd_jax.parts import Component
from dsd_jax.sharding import batch_ways, on_mesh, place_batch
from dsd_jax.types import Array, Float32
from dsd_jax.vision.preprocess import Preprocess
from dsd_jax.vision.vit import Vit

__all__ = ["VisionTower"]

BATCH = 8  # pictures per call on one device


class VisionTower:
    """A vision transformer, compiled, with its weights on a mesh.

    Args:
        name: Name of the backbone, which the names of metrics contain.
        model: The model with its weights.
        preprocess: Steps from a picture to its input.
        mesh: Devices; its batch axes split the pictures. None for one device.
        sha256: Gives the digest of every weight file by its name, for keys of cached features.

    Attributes:
        graphdef, state: The split model, for programs that contain it.
    """

    def __init__(
        self,
        name: str,
        model: Vit,
        preprocess: Preprocess,
        *,
        mesh: Mesh | None = None,
        sha256: Callable[[], dict[str, str]] = dict,
    ) -> None:
        self.sha256 = sha256
        self.name, self.config, self.preprocess, self.mesh = name, model.config, preprocess, mesh
        self.graphdef, self.state = nnx.split(model)
        self._features = self._compiled(lambda model, x: model(x))
        self._patches = self._compiled(lambda model, x: model.patches(x))

    @classmethod
    def load(
        cls,
        component: Component[VisionConfig],
        name: str,
        preprocess: Preprocess,
        *,
        precision: Precision = FLOAT32,
        mesh: Mesh | None = None,
    ) -> "VisionTower":
        """Reads the weights onto the mesh.

        Raises:
            UserError: The weights do not fit.
        """
        execution = default_execution(jax.default_backend())
        model = abstract(component.config, precision=precision, execution=execution)
        filled = load(model, component.source, mesh=mesh)
        return cls(name, filled, preprocess, mesh=mesh, sha256=component.sha256)

    def embed(self, pixels: Float32[np.ndarray, "B H W 3"]) -> Float32[Array, "B E"]:
        """The feature of every preprocessed picture; compiles anew for every shape.

        On a mesh, B must be a multiple of the number of parts that it splits a batch into.
        """
        with on_mesh(self.mesh):
            return self._features(pixels)

    def embed_patches(self, pixels: Float32[np.ndarray, "B H W 3"]) -> Float32[Array, "B h w D"]:
        """The last hidden state of every patch after the final norm; otherwise like `embed`."""
        with on_mesh(self.mesh):
            return self._patches(pixels)

    def features(self, images: Sequence[Source]) -> Float32[np.ndarray, "n E"]:
        """The feature of every picture, not normalised.

        Raises:
            UserError: A picture is missing, unreadable, tiny or huge.
        """
        return self._run(self._features, images, (self.config.feature_width,))

    def patches(self, images: Sequence[Source]) -> Float32[np.ndarray, "n h w D"]:
        """The last hidden state of every patch after the final norm; all pictures have one size.

        Raises:
            UserError: See `features`.
        """
        return self._run(self._patches, images, (0, 0, self.config.width))

    def _compiled(self, call: Callable[[Vit, Array], Array]) -> Callable[[np.ndarray], Array]:
        graphdef = self.graphdef

        @jax.jit
        def run(state: nnx.State, pixels: Array) -> Array:
            return call(nnx.merge(graphdef, state), pixels).astype(jnp.float32)

        return lambda pixels: run(self.state, place_batch(pixels, self.mesh))

    def _run(
        self,
        run: Callable[[np.ndarray], Array],
        images: Sequence[Source],
        empty: tuple[int, ...],
    ) -> np.ndarray:
        """Calls `run` on batches of one size; pictures are decoded one batch at a time."""
        size = BATCH * batch_ways(self.mesh)
        found = []
        with on_mesh(self.mesh):
            for start in range(0, len(images), size):
                group = [self.preprocess(open_image(i)) for i in images[start : start + size]]
                found.append(in_groups(run, [np.stack(group)], size))
        return np.concatenate(found) if found else np.zeros((0, *empty), np.float32)
