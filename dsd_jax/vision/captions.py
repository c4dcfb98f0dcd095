"""CLIP's text encoder with its tokeniser: features of texts, beside those of pictures."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dsd_jax.config import ClipConfig, Precision, default_execution
from dsd_jax.encoders import batched
from dsd_jax.models import abstract, load
from dsd_jax.parts import Component
from dsd_jax.text.clip import ClipTextEncoder
from dsd_jax.text.tokenize import Tokenizer, token_ids
from dsd_jax.types import Array, Float32

__all__ = ["CaptionTower"]

BATCH = 16  # texts per call on one device


class CaptionTower:
    """A text encoder, compiled, with its weights on a mesh.

    Args:
        name: Name of the model.
        model: The model with its weights and a projection.
        tokenizer: CLIP's tokeniser.
        mesh: Devices; its batch axes split the texts. None for one device.
    """

    def __init__(
        self, name: str, model: ClipTextEncoder, tokenizer: Tokenizer, *, mesh: Mesh | None = None
    ) -> None:
        self.name, self.config, self.mesh = name, model.config, mesh
        self._tokenizer = tokenizer

        def feature(model: ClipTextEncoder, ids: Array) -> Array:
            return model.feature(ids).astype(jnp.float32)

        self._features = batched(model, feature, mesh=mesh, size=BATCH)

    @classmethod
    def load(
        cls,
        component: Component[ClipConfig],
        name: str,
        tokenizer: Tokenizer,
        *,
        precision: Precision,
        mesh: Mesh | None = None,
    ) -> "CaptionTower":
        """Reads the weights onto the mesh.

        Raises:
            UserError: The weights do not fit.
        """
        execution = default_execution(jax.default_backend())
        model = abstract(component.config, precision=precision, execution=execution)
        return cls(name, load(model, component.source, mesh=mesh), tokenizer, mesh=mesh)

    def features(self, texts: Sequence[str]) -> Float32[np.ndarray, "n E"]:
        """The feature of every text, not normalised; texts are cut to the model's length."""
        if not texts:
            return np.zeros((0, self.config.projection or 0), np.float32)
        length = min(self._tokenizer.model_max_length, self.config.max_length)
        ids, _ = token_ids(self._tokenizer, list(texts), length)
        return self._features(ids)
