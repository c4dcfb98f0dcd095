"""The text encoders against transformers' with random weights."""

import copy
import functools

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from transformers.models.t5.modeling_t5 import T5Attention

from dsd_jax.config import (
    BFLOAT16,
    FLOAT32,
    ClipConfig,
    Execution,
    Precision,
    T5Config,
)
from dsd_jax.convert.text import clip_table, t5_table
from dsd_jax.text.clip import ClipTextEncoder
from dsd_jax.text.t5 import T5Encoder, relative_buckets
from tests.parity.compare import assert_bfloat16_as_good, assert_close, jit, load, randomise

LAYER, MODEL = 1e-5, 1e-4
# Heads x head dim differs from the width, as it may in T5.
T5 = T5Config(vocab=99, width=48, depth=3, num_heads=4, head_dim=8, mlp_width=80)
CLIP = ClipConfig(vocab=99, width=48, depth=3, num_heads=4, mlp_width=80)
END = 98  # end-of-text token of the tests: the largest id, as in the released vocabulary


@functools.cache
def t5_reference() -> transformers.T5EncoderModel:
    config = transformers.T5Config(
        vocab_size=T5.vocab,
        d_model=T5.width,
        d_kv=T5.head_dim,
        d_ff=T5.mlp_width,
        num_layers=T5.depth,
        num_heads=T5.num_heads,
        relative_attention_num_buckets=T5.relative_buckets,
        relative_attention_max_distance=T5.relative_max_distance,
        feed_forward_proj="gated-gelu",
        layer_norm_epsilon=T5.eps,
        is_encoder_decoder=False,
        use_cache=False,
    )
    reference = transformers.T5EncoderModel(config).eval()
    randomise(reference)
    return reference


@functools.cache
def clip_reference(eos_token_id: int, activation: str = "quick_gelu") -> transformers.CLIPTextModel:
    config = transformers.CLIPTextConfig(
        vocab_size=CLIP.vocab,
        hidden_size=CLIP.width,
        intermediate_size=CLIP.mlp_width,
        num_hidden_layers=CLIP.depth,
        num_attention_heads=CLIP.num_heads,
        max_position_embeddings=CLIP.max_length,
        hidden_act=activation,
        layer_norm_eps=CLIP.eps,
        eos_token_id=eos_token_id,
        bos_token_id=97,
        pad_token_id=1,
    )
    reference = transformers.CLIPTextModel(config).eval()
    randomise(reference)
    return reference


def load_t5(
    reference: torch.nn.Module, precision: Precision = FLOAT32, *, scan: bool = False
) -> T5Encoder:
    execution = Execution(scan_layers=scan)
    return load(
        lambda rngs: T5Encoder(T5, precision=precision, execution=execution, rngs=rngs),
        t5_table(T5),
        reference,
    )


def load_clip(
    reference: torch.nn.Module,
    config: ClipConfig,
    precision: Precision = FLOAT32,
    *,
    scan: bool = False,
) -> ClipTextEncoder:
    execution = Execution(scan_layers=scan)
    return load(
        lambda rngs: ClipTextEncoder(config, precision=precision, execution=execution, rngs=rngs),
        clip_table(config),
        reference,
    )


def t5_ids(length: int = 150) -> np.ndarray:
    """More tokens than the relative distances that have a bucket of their own; one row padded."""
    ids = np.random.default_rng(0).integers(3, T5.vocab, (2, length), np.int32)
    ids[1, 20:] = 0
    return ids


def clip_ids() -> np.ndarray:
    """Texts of different lengths, padded with the end token; row 2 has ids above it inside."""
    ids = np.random.default_rng(1).integers(3, 90, (3, CLIP.max_length), np.int32)
    ids[:, 0] = 97
    for row, end in enumerate((5, 76, 30)):
        ids[row, end:] = END
    return ids


def random_hidden(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, length, T5.width)).astype(np.float32)


def torch_ids(ids: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(ids.astype(np.int64))


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (16, 64)])
def test_relative_buckets(buckets: int, max_distance: int) -> None:
    length = 700
    position = torch.arange(length)
    theirs = T5Attention._relative_position_bucket(
        position[None, :] - position[:, None], num_buckets=buckets, max_distance=max_distance
    )
    np.testing.assert_array_equal(relative_buckets(length, buckets, max_distance), theirs.numpy())


@torch.no_grad()
def test_t5_layers() -> None:
    reference = t5_reference()
    ours = load_t5(reference)
    length = 150
    x = random_hidden(length)
    blocks = reference.encoder.block
    bias = blocks[0].layer[0].SelfAttention.compute_bias(length, length)
    assert_close(ours.position_bias(length), bias[0], LAYER, "relative bias")
    assert isinstance(ours.blocks, nnx.List)
    block, own_bias = ours.blocks[1], jnp.asarray(bias[0].numpy())
    xt = torch.from_numpy(x)
    attention, mlp = blocks[1].layer
    assert_close(block.attn_norm(jnp.asarray(x)), attention.layer_norm(xt), LAYER, "norm")
    theirs = attention.SelfAttention(xt, position_bias=bias)[0]
    assert_close(jit(block.attn)(x, own_bias), theirs, LAYER, "attention")
    assert_close(jit(block.mlp)(x), mlp.DenseReluDense(xt), LAYER, "mlp")
    theirs = blocks[1](xt, position_bias=bias)[0]
    assert_close(jit(block)(x, own_bias), theirs, LAYER, "block")


@torch.no_grad()
@pytest.mark.parametrize("scan", [False, True])
def test_t5(scan: bool) -> None:
    reference, ids = t5_reference(), t5_ids()
    ours = load_t5(reference, scan=scan)
    theirs = reference(torch_ids(ids)).last_hidden_state
    assert_close(jit(ours)(ids), theirs, MODEL, "hidden state")


@torch.no_grad()
def test_t5_in_bfloat16_is_as_good_as_the_reference() -> None:
    reference, ids = t5_reference(), t5_ids()
    half = copy.deepcopy(reference).to(torch.bfloat16)
    hidden = jit(load_t5(half, BFLOAT16))(ids)
    assert hidden.dtype == jnp.bfloat16
    theirs, truth = (model(torch_ids(ids)).last_hidden_state for model in (half, reference))
    assert_bfloat16_as_good(hidden, theirs, truth, "T5")


@torch.no_grad()
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_layers(activation: str) -> None:
    config = ClipConfig(**{**vars(CLIP), "activation": activation})
    reference = clip_reference(config.eos_token_id, activation)
    blocks = load_clip(reference, config).blocks
    assert isinstance(blocks, nnx.List)
    block = blocks[1]
    layer = reference.encoder.layers[1]
    x = random_hidden(77)
    xt = torch.from_numpy(x)
    future = np.triu(np.ones((77, 77), bool), 1)
    mask = np.where(future, np.float32(-np.inf), np.float32(0))[None]
    their_mask = torch.from_numpy(mask)[None]
    assert_close(block.norm1(jnp.asarray(x)), layer.layer_norm1(xt), LAYER, "norm")
    theirs = layer.self_attn(xt, attention_mask=their_mask)[0]
    assert_close(jit(block.attn)(x, mask), theirs, LAYER, "attention")
    assert_close(jit(block.mlp)(x), layer.mlp(xt), LAYER, "mlp")
    assert_close(jit(block)(x, mask), layer(xt, their_mask), LAYER, "block")


@torch.no_grad()
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("eos_token_id", [2, END, 89])
def test_clip(scan: bool, eos_token_id: int) -> None:
    """2: the legacy rule, the largest id; others: the first token that is equal."""
    config = ClipConfig(**{**vars(CLIP), "eos_token_id": eos_token_id})
    ids = clip_ids()
    if eos_token_id == 89:  # below other ids, so that the two rules disagree
        ids[:, 12], ids[:, 40] = 89, 89
    reference = clip_reference(eos_token_id)
    hidden, pooled = jit(load_clip(reference, config, scan=scan))(ids)
    theirs = reference(torch_ids(ids))
    assert_close(hidden, theirs.last_hidden_state, MODEL, "hidden state")
    assert_close(pooled, theirs.pooler_output, MODEL, "pooled")


@torch.no_grad()
def test_clip_in_bfloat16_is_as_good_as_the_reference() -> None:
    reference, ids = clip_reference(CLIP.eos_token_id), clip_ids()
    half = copy.deepcopy(reference).to(torch.bfloat16)
    hidden, pooled = jit(load_clip(half, CLIP, BFLOAT16))(ids)
    theirs, truth = (model(torch_ids(ids)) for model in (half, reference))
    assert_bfloat16_as_good(hidden, theirs.last_hidden_state, truth.last_hidden_state, "hidden")
    assert_bfloat16_as_good(pooled, theirs.pooler_output, truth.pooler_output, "pooled")
