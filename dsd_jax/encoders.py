"""Prompts and reference images to what the transformer takes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dsd_jax.autoencoder import Autoencoder, Tiling, decode_tiled, encode_tiled
from dsd_jax.config import Execution, Precision
from dsd_jax.frames import condition_canvas, pack_latents
from dsd_jax.models import abstract, load
from dsd_jax.parts import TextParts
from dsd_jax.text.clip import ClipTextEncoder
from dsd_jax.text.t5 import T5Encoder
from dsd_jax.text.tokenize import Tokenizers
from dsd_jax.types import Array, Float, Float32

__all__ = ["TILING", "AutoencoderPrograms", "Text", "TextPrograms", "in_groups"]

# Up to 2048 x 2048 pixels are decoded whole, as the reference does; beyond that in tiles.
TILING = Tiling(size=256, overlap=32)


class Text(NamedTuple):
    """Encoded prompts."""

    txt: Float[Array, "B Lt Dt"]
    vec: Float[Array, "B Dv"]


def in_groups(run: Callable[..., Array], arrays: Sequence[np.ndarray], size: int) -> np.ndarray:
    """`run` over groups of `size` rows of the arrays, the last one filled up by repetition.

    One program serves any number of rows, and a row's result cannot depend on how many there are.
    The results come back to the host.
    """
    count = len(arrays[0])
    out = []
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        done = run(*(array[rows] for array in arrays))
        out.append(np.asarray(done)[: min(size, count - start)])
    return np.concatenate(out)


class TextPrograms:
    """Both text encoders, jitted; a group of prompts at a time."""

    def __init__(self, tokenizers: Tokenizers, t5: T5Encoder, clip: ClipTextEncoder) -> None:
        self.tokenizers = tokenizers
        t5_def, self._t5_state = nnx.split(t5)
        clip_def, self._clip_state = nnx.split(clip)
        self._t5 = jax.jit(lambda state, ids: nnx.merge(t5_def, state)(ids))
        self._clip = jax.jit(lambda state, ids: nnx.merge(clip_def, state)(ids).pooled)

    @classmethod
    def load(
        cls,
        parts: TextParts,
        *,
        precision: Precision,
        execution: Execution,
        mesh: Mesh | None = None,
    ) -> "TextPrograms":
        """Reads the weights of both encoders onto the mesh.

        Raises:
            UserError: the weights do not fit, or the mesh does not divide them.
        """
        t5 = abstract(parts.t5.config, precision=precision, execution=execution)
        clip = abstract(parts.clip.config, precision=precision, execution=execution)
        return cls(
            parts.tokenizers,
            load(t5, parts.t5.source, mesh=mesh),
            load(clip, parts.clip.source, mesh=mesh),
        )

    def __call__(self, prompts: Sequence[str], group: int = 1) -> dict[str, Text]:
        """Every distinct prompt encoded once: `txt` [Lt, Dt] and `vec` [Dv] on the host."""
        distinct = list(dict.fromkeys(prompts))
        ids = self.tokenizers.encode(distinct)
        txt = in_groups(lambda ids: self._t5(self._t5_state, ids), [ids.t5], group)
        vec = in_groups(lambda ids: self._clip(self._clip_state, ids), [ids.clip], group)
        return {p: Text(t, v) for p, t, v in zip(distinct, txt, vec, strict=True)}


class AutoencoderPrograms:
    """Encoding of references and decoding of canvases, jitted."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.config = autoencoder.config
        graphdef, self._state = nnx.split(autoencoder)
        self._encode = jax.jit(lambda state, x: nnx.merge(graphdef, state).encode(x))
        self._decode = jax.jit(lambda state, z: nnx.merge(graphdef, state).decode(z))
        self._autoencoder = autoencoder

    def condition(
        self, references: Float32[np.ndarray, "B H W 3"], seeds: np.ndarray | None
    ) -> Float32[Array, "B L C"]:
        """Condition tokens of [reference | black], encoded as one picture.

        Args:
            references: in [-1, 1].
            seeds: 32 bits per image, for the sample of the posterior; None: its mode.
        """
        canvas = condition_canvas(jnp.asarray(references))
        posterior = encode_tiled(
            lambda x: self._encode(self._state, x), canvas, self.config, TILING
        )
        if seeds is None:
            latents = posterior.mode()
        else:
            # The noise of sampling is drawn from key(seed); this must be another stream.
            keys = [jax.random.fold_in(jax.random.key(seed), 1) for seed in np.asarray(seeds)]
            latents = jax.vmap(type(posterior).sample)(posterior, jnp.stack(keys))
        return pack_latents(self._autoencoder.normalize(latents))

    def decode(self, latents: Float32[np.ndarray, "B h w C"]) -> Float32[Array, "B H W 3"]:
        """Pixels of normalised latents."""
        z = self._autoencoder.unnormalize(jnp.asarray(latents))
        return decode_tiled(lambda z: self._decode(self._state, z), z, self.config, TILING)
