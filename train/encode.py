"""Encodes batches of pairs for the transformer: the frozen VAE and text encoders, on the mesh.

Reference and target are encoded as one picture, and so are reference and black, because the VAE
mixes across the seam, as it does in sampling (`dsd_jax.frames`). Encoded datasets bring their
moments. Either way, posteriors are sampled anew for every step, as a function of (seed, step).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from dsd_jax.autoencoder import Posterior
from dsd_jax.config import PRECISIONS, Execution
from dsd_jax.data.load.encoded import Embedding, Moments
from dsd_jax.data.load.loader import PairBatch
from dsd_jax.data.load.prefetch import mesh_rows
from dsd_jax.encoders import ImageCodec, Text, TextEncoder, latent_tokens
from dsd_jax.errors import UserError
from dsd_jax.frames import condition_canvas
from dsd_jax.images import signed
from dsd_jax.parts import FluxParts
from dsd_jax.processes import busy
from dsd_jax.sharding import batch_sharding, batch_ways, replicated
from dsd_jax.train.config import TrainConfig
from dsd_jax.train.objective import EncodedBatch
from dsd_jax.types import Array, Float32, UInt8

__all__ = ["Encoder"]

# Pixels that a device encodes at once: four pictures of 512 x 1024, each about 1 GB on the way.
AT_ONCE = 4 * 512 * 1024
_TEXT_STEP = 16  # tokens; few lengths, since each is compiled
# Folded into the run's seed: a stream of its own, since no run has so many steps.
_STREAM = 2**32 - 1


class Encoder:
    """VAE and text encoders of a base, loaded onto the mesh when they are first needed.

    Args:
        base: the opened pipeline.
        config: dtype, seed, and whether there is a condition.
        mesh: devices.
        null: embedding of the empty prompt; None encodes it.
    """

    def __init__(
        self,
        base: FluxParts,
        config: TrainConfig,
        mesh: Mesh,
        *,
        null: Embedding | None = None,
    ) -> None:
        self.base, self.config, self.mesh = base, config, mesh
        self._precision = PRECISIONS[config.base_dtype]
        self._rows = batch_sharding(mesh)
        self._everywhere = replicated(mesh)
        jit = functools.partial(jax.jit, out_shardings=self._rows)
        self._from_pixels = jit(self._pixels_program)
        self._from_moments = jit(self._moments_program)
        self._null = None if null is None else self._cast(*map(self._spread, null))
        if config.pad_to_longest and jax.process_count() > 1:
            raise UserError("pad_to_longest needs a run of one process; leave it out")

    @functools.cached_property
    def images(self) -> ImageCodec:
        """The VAE."""
        with busy("loading the VAE"):
            return ImageCodec.load(self.base.autoencoder, precision=self._precision, mesh=self.mesh)

    @functools.cached_property
    def texts(self) -> TextEncoder:
        """T5 and CLIP."""
        return TextEncoder.load(
            self.base.text,
            precision=self._precision,
            execution=Execution(scan_layers=self.config.scan_layers),
            mesh=self.mesh,
            weights=self.config.weights,
        )

    def release_texts(self) -> None:
        """Frees the text encoders; a batch without embeddings would load them again."""
        self.__dict__.pop("texts", None)

    @property
    def null(self) -> Text:
        """Embedding of the empty prompt, `[Lt, Dt]` and `[Dv]`, on every device."""
        if self._null is None:
            # One row per device, however many processes: the same program, so the same bits.
            rows = len(mesh_rows(self.mesh, batch_ways(self.mesh)))
            encoded = self._embed_texts([""] * rows)
            first = jax.jit(lambda x: x[0], out_shardings=self._everywhere)
            self._null = Text(*map(first, encoded))
        return self._null

    def __call__(self, batch: PairBatch, step: int) -> EncodedBatch:
        """Encodes a batch.

        Args:
            batch: batch on the mesh (`dsd_jax.data.load.prefetch.to_mesh`).
            step: step that the posteriors' noise depends on.

        Raises:
            UserError: moments of pairs for a training without condition.
        """
        with jax.set_mesh(self.mesh):
            return self._encode_batch(batch, np.uint32(step))

    def _encode_batch(self, batch: PairBatch, step: np.uint32) -> EncodedBatch:
        state = self.images.state
        if batch.canvas is None:
            x_0, img_cond = self._from_pixels(
                state, batch.reference if self.config.condition else None, batch.target, step
            )
        elif self.config.condition:
            x_0, img_cond = self._from_moments(batch.canvas, batch.condition, step)
        else:
            raise UserError("encoded pairs hold both frames; train on targets from the pictures")
        if batch.text is None:
            text = self._embed_texts(batch.texts, shorten=self.config.pad_to_longest)
        else:
            text = self._cast(*batch.text)
        null = self.null
        return EncodedBatch(
            x_0,
            img_cond,
            *text,
            batch.drop_text,
            batch.drop_image,
            null.txt[: text.txt.shape[1]],
            null.vec,
        )

    def _embed_texts(self, texts: list[str], *, shorten: bool = False) -> Text:
        """Embeddings of this process's rows, as rows of the whole batch.

        Args:
            texts: texts of the rows.
            shorten: pad to the longest text only.
        """
        tokenizers = self.base.text.tokenizers
        ids = tokenizers.encode(texts)
        t5_ids = ids.t5
        if shorten:
            longest = int((t5_ids != tokenizers.t5.pad_token_id).sum(1).max())
            t5_ids = t5_ids[:, : -(-longest // _TEXT_STEP) * _TEXT_STEP]
        placed = [
            jax.make_array_from_process_local_data(self._rows, own) for own in (t5_ids, ids.clip)
        ]
        return self.texts.embed(*placed)

    def _spread(self, array: np.ndarray) -> Array:
        return jax.make_array_from_callback(array.shape, self._everywhere, array.__getitem__)

    def _cast(self, txt: Any, vec: Any) -> Text:
        dtype = self._precision.compute_dtype
        return Text(jnp.asarray(txt).astype(dtype), jnp.asarray(vec).astype(dtype))

    # Compiled programs

    def _noise_keys(self, step: Array) -> Array:
        root = jax.random.fold_in(jax.random.key(self.config.seed), _STREAM)
        return jax.random.split(jax.random.fold_in(root, step))

    def _tokens(self, posterior: Posterior, key: Array) -> Float32[Array, "B L C"]:
        return latent_tokens(posterior.sample(key), self.images.config)

    def _pixels_program(
        self,
        state: nnx.State,
        reference: UInt8[Array, "B H W 3"] | None,
        target: UInt8[Array, "B H W 3"],
        step: Array,
    ) -> tuple[Float32[Array, "B L C"], Float32[Array, "B L C"] | None]:
        keys = self._noise_keys(step)
        if reference is None:
            return self._tokens(self._encode(state, signed(target)), keys[0]), None
        left, right = signed(reference), signed(target)
        canvas = self._encode(state, jnp.concatenate([left, right], axis=2))
        condition = self._encode(state, condition_canvas(left))
        return self._tokens(canvas, keys[0]), self._tokens(condition, keys[1])

    def _moments_program(
        self, canvas: Moments, condition: Moments, step: Array
    ) -> tuple[Float32[Array, "B L C"], Float32[Array, "B L C"]]:
        keys = self._noise_keys(step)
        return self._tokens(_posterior(canvas), keys[0]), self._tokens(
            _posterior(condition), keys[1]
        )

    def _encode(self, state: nnx.State, pictures: Float32[Array, "B H W 3"]) -> Posterior:
        """Encodes a few pictures per device at a time; each device keeps its share of a group."""
        encode = nnx.merge(self.images.graphdef, state).encode
        count, *rest = pictures.shape
        own = count // batch_ways(self.mesh)
        least = -(-own * rest[0] * rest[1] // AT_ONCE)
        groups = next(n for n in range(min(least, own), own + 1) if own % n == 0)
        if groups == 1:
            return encode(pictures)
        folded = pictures.reshape(count // groups, groups, *rest).swapaxes(0, 1)
        done = lax.map(encode, folded)
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(count, *x.shape[2:]), done)


def _posterior(moments: Moments) -> Posterior:
    return Posterior(*(jnp.asarray(x).astype(jnp.float32) for x in moments))
