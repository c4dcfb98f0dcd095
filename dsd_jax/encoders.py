"""The frozen models around the transformer: pictures to latents and back, prompts to embeddings.

Sampling, training, caching and validation all encode with these classes, so the same picture or
text gets the same numbers everywhere.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from dsd_jax.autoencoder import (
    Autoencoder,
    Posterior,
    Tiling,
    decode_tiled,
    encode_tiled,
    normalize,
    unnormalize,
)
from dsd_jax.config import AutoencoderConfig, Execution, Precision
from dsd_jax.frames import condition_canvas, pack_latents
from dsd_jax.models import abstract, load
from dsd_jax.parts import Component, TextParts
from dsd_jax.quantise import WeightKind
from dsd_jax.sharding import batch_sharding, batch_ways, on_mesh, place_batch
from dsd_jax.text.clip import ClipTextEncoder
from dsd_jax.text.t5 import T5Encoder
from dsd_jax.text.tokenize import TextIds, Tokenizers
from dsd_jax.types import AnyArray, Array, Float, Float32, Int, PyTree

__all__ = ["ImageCodec", "Text", "TextEncoder", "batched", "in_groups", "latent_tokens"]

# Up to 2048 x 2048 pixels are encoded and decoded in one piece, as the reference does; larger
# pictures in tiles.
TILING = Tiling(size=256, overlap=32)


class Text(NamedTuple):
    """Embeddings of one prompt or of a batch: T5's tokens and the pooled CLIP vector."""

    txt: Float[Any, "*B Lt Dt"]
    vec: Float[Any, "*B Dv"]


def in_groups(run: Callable[..., PyTree], arrays: Sequence[AnyArray], size: int) -> PyTree:
    """Calls `run` on groups of `size` rows; the last group is filled up with repeated rows.

    One program serves any number of rows, and a row's result cannot depend on how many there are.

    Args:
        run: takes the rows of every array and returns a tree of arrays with as many rows.
        arrays: all with the same number of rows, at least one.
        size: rows per call.

    Returns:
        The rows of all results, on the host.
    """
    count = len(arrays[0])
    out = [jax.tree.map(np.asarray, run(*group)) for group in groups_of(arrays, size)]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *out)


def groups_of(arrays: Sequence[AnyArray], size: int) -> Iterator[list[AnyArray]]:
    """Yields the groups of rows that `in_groups` runs on, of every array."""
    count = len(arrays[0])
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        yield [array[rows] for array in arrays]


def batched(
    model: nnx.Module, call: Callable[..., Array], *, mesh: Mesh | None, size: int
) -> Callable[..., np.ndarray]:
    """Compiles a call of a model for any number of rows on the host, a batch at a time.

    Args:
        model: The model with its weights.
        call: Takes the model and the rows of every array.
        mesh: Devices; its batch axes split the rows. None for one device.
        size: Rows per call on one device.
    """
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state: nnx.State, *rows: Array) -> Array:
        return call(nnx.merge(graphdef, state), *rows)

    def place_and_run(*rows: np.ndarray) -> Array:
        return run(state, *(place_batch(each, mesh) for each in rows))

    def run_all(*arrays: np.ndarray) -> np.ndarray:
        with on_mesh(mesh):
            found: np.ndarray = in_groups(place_and_run, arrays, size * batch_ways(mesh))
        return found

    return run_all


class TextEncoder:
    """Both text encoders, compiled, with their weights on a mesh.

    Args:
        tokenizers: tokenisers of both encoders.
        t5, clip: models with their weights.
        mesh: devices that hold their weights; None for one device.
    """

    def __init__(
        self,
        tokenizers: Tokenizers,
        t5: T5Encoder,
        clip: ClipTextEncoder,
        *,
        mesh: Mesh | None = None,
    ) -> None:
        self.tokenizers, self.mesh = tokenizers, mesh
        t5_graph, self._t5 = nnx.split(t5)
        clip_graph, self._clip = nnx.split(clip)

        def embed(t5: nnx.State, clip: nnx.State, t5_ids: Array, clip_ids: Array) -> Text:
            return Text(
                nnx.merge(t5_graph, t5)(t5_ids), nnx.merge(clip_graph, clip)(clip_ids).pooled
            )

        rows = None if mesh is None else batch_sharding(mesh)
        self._embed = jax.jit(embed, out_shardings=rows)

    @classmethod
    def load(
        cls,
        parts: TextParts,
        *,
        precision: Precision,
        execution: Execution,
        mesh: Mesh | None = None,
        weights: WeightKind | None = None,
    ) -> "TextEncoder":
        """Reads the weights of both encoders onto the mesh.

        Args:
            parts: the opened encoders.
            precision: dtypes of both.
            execution: implementations.
            mesh: devices that hold the weights.
            weights: hold the kernels of T5's blocks in int8, whatever the kind: a text is encoded
                once, so that 4 bits would gain little. CLIP is too small to gain.

        Raises:
            UserError: the weights do not fit, or the mesh does not divide them.
        """
        t5 = abstract(
            parts.t5.config,
            precision=precision,
            execution=execution,
            weights=parts.t5.settle(weights and "int8"),
        )
        clip = abstract(parts.clip.config, precision=precision, execution=execution)
        return cls(
            parts.tokenizers,
            load(t5, parts.t5.source, mesh=mesh),
            load(clip, parts.clip.source, mesh=mesh),
            mesh=mesh,
        )

    def embed(self, t5_ids: Int[AnyArray, "B L_t5"], clip_ids: Int[AnyArray, "B L_clip"]) -> Text:
        """Embeddings of token ids, on the devices of the ids' sharding."""
        with on_mesh(self.mesh):
            return self._embed(self._t5, self._clip, t5_ids, clip_ids)

    def encode(self, ids: TextIds) -> Text:
        """Embeddings of every prompt, on the host."""
        size = batch_ways(self.mesh)
        return in_groups(self.embed, [ids.t5, ids.clip], size)

    def __call__(self, prompts: Sequence[str]) -> dict[str, Text]:
        """Embeddings of every distinct prompt, `txt` [Lt, Dt] and `vec` [Dv] on the host."""
        distinct = list(dict.fromkeys(prompts))
        txt, vec = self.encode(self.tokenizers.encode(distinct))
        return {prompt: Text(*own) for prompt, *own in zip(distinct, txt, vec, strict=True)}


def latent_tokens(
    latents: Float[Array, "B h w C"], config: AutoencoderConfig
) -> Float32[Array, "B L Cp"]:
    """Tokens of the transformer from latents as the autoencoder gives them."""
    return pack_latents(normalize(latents, config))


class ImageCodec:
    """The autoencoder, compiled, with its weights on a mesh: pictures to latents and back.

    Args:
        autoencoder: model with its weights.
        mesh: devices; its batch axes split the pictures. None for one device.
        tiling: tiles for pictures that are larger than one.

    Attributes:
        graphdef, state: the autoencoder taken apart, for programs that contain it.
    """

    def __init__(
        self, autoencoder: Autoencoder, *, mesh: Mesh | None = None, tiling: Tiling = TILING
    ) -> None:
        self.config, self.mesh, self._tiling = autoencoder.config, mesh, tiling
        graphdef, self.state = nnx.split(autoencoder)
        self.graphdef = graphdef
        self._encode = jax.jit(lambda state, x: nnx.merge(graphdef, state).encode(x))
        self._decode = jax.jit(lambda state, z: nnx.merge(graphdef, state).decode(z))

    @classmethod
    def load(
        cls,
        component: Component[AutoencoderConfig],
        *,
        precision: Precision,
        mesh: Mesh | None = None,
    ) -> "ImageCodec":
        """Reads the weights of the autoencoder onto the mesh.

        Raises:
            UserError: the weights do not fit.
        """
        model = abstract(component.config, precision=precision)
        return cls(load(model, component.source, mesh=mesh), mesh=mesh)

    def encode(self, pixels: Float32[AnyArray, "B H W 3"]) -> Posterior:
        """Encodes pictures in [-1, 1] as moments of latents that are not normalised.

        On a mesh, B must be a multiple of the number of parts that it splits a batch into.
        """
        with on_mesh(self.mesh):
            x = place_batch(pixels, self.mesh)
            run = functools.partial(self._encode, self.state)
            return encode_tiled(run, x, self.config, self._tiling)

    def encode_condition(self, references: Float32[AnyArray, "B H W 3"]) -> Posterior:
        """Encodes [reference | black] as one picture; see `encode`."""
        return self.encode(condition_canvas(jnp.asarray(references)))

    def condition(
        self, references: Float32[np.ndarray, "B H W 3"], seeds: np.ndarray | None
    ) -> Float32[Array, "B L C"]:
        """Condition tokens of references.

        Args:
            references: in [-1, 1].
            seeds: 32-bit seed per picture, for sampling the posterior. None takes its mode.
        """
        posterior = self.encode_condition(references)
        if seeds is None:
            latents = posterior.mode()
        else:
            # The noise of sampling is drawn from key(seed); this must be another stream.
            keys = [jax.random.fold_in(jax.random.key(seed), 1) for seed in np.asarray(seeds)]
            latents = jax.vmap(type(posterior).sample)(posterior, jnp.stack(keys))
        return latent_tokens(latents, self.config)

    def decode(self, latents: Float32[AnyArray, "B h w C"]) -> Float32[Array, "B H W 3"]:
        """Decodes normalised latents to pictures in about [-1, 1]; see `encode`."""
        with on_mesh(self.mesh):
            z = unnormalize(place_batch(latents, self.mesh), self.config)
            run = functools.partial(self._decode, self.state)
            return decode_tiled(run, z, self.config, self._tiling)
