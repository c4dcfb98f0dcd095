"""The transformer against diffusers' FluxTransformer2DModel with random weights."""

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import Timesteps, apply_rotary_emb
from diffusers.models.transformers import transformer_flux
from flax import nnx

from dsd_jax.attention import attention
from dsd_jax.blocks import DoubleBlock
from dsd_jax.config import BFLOAT16, FLOAT32, Execution, FluxConfig, Precision
from dsd_jax.convert.flux.diffusers import flux_diffusers
from dsd_jax.flux import Flux
from dsd_jax.frames import Canvas, FluxInputs, text_ids
from dsd_jax.layers import RMSNorm, modulate, timestep_embedding
from dsd_jax.rope import apply_rope, embed_positions
from tests.parity.compare import (
    assert_bfloat16_as_good,
    assert_close,
    jit,
    load,
    randomise,
    relative_error,
)

LAYER, MODEL = 1e-5, 1e-4
DEV = FluxConfig(
    in_channels=16,
    out_channels=16,
    num_heads=3,
    head_dim=32,
    double_depth=2,
    single_depth=3,
    txt_width=40,
    vec_width=28,
    axes_dim=(8, 12, 12),
)
SCHNELL = dataclasses.replace(
    DEV, num_heads=4, head_dim=16, axes_dim=(4, 6, 6), guidance_embed=False, condition_embed=False
)
CONFIGS = {"dev": DEV, "schnell": SCHNELL}
CANVAS = Canvas(6, 10)
TOKENS, TXT_LENGTH, BATCH = 15, 7, 2


def make_reference(config: FluxConfig) -> FluxTransformer2DModel:
    reference = FluxTransformer2DModel(
        in_channels=config.in_channels,
        num_layers=config.double_depth,
        num_single_layers=config.single_depth,
        attention_head_dim=config.head_dim,
        num_attention_heads=config.num_heads,
        joint_attention_dim=config.txt_width,
        pooled_projection_dim=config.vec_width,
        guidance_embeds=config.guidance_embed,
        axes_dims_rope=config.axes_dim,
    )
    if config.condition_embed:  # as the released conditional model adds it
        reference.c_embedder = torch.nn.Linear(config.in_channels, config.width)
    randomise(reference)
    return reference.eval()


@functools.cache
def reference_of(name: str) -> FluxTransformer2DModel:
    return make_reference(CONFIGS[name])


@functools.cache
def ours_of(name: str, precision: Precision = FLOAT32, *, scan_layers: bool = False) -> Flux:
    execution = Execution(scan_layers=scan_layers)
    return load(
        lambda rngs: Flux(CONFIGS[name], precision=precision, execution=execution, rngs=rngs),
        flux_diffusers(CONFIGS[name]),
        reference_of(name),
    )


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def tensor(x: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(x))


@functools.cache
def model_inputs(name: str) -> dict[str, np.ndarray | jax.Array]:
    config = CONFIGS[name]
    inputs: dict[str, np.ndarray | jax.Array] = {
        "img": normal(BATCH, TOKENS, config.in_channels, seed=1),
        "txt": normal(BATCH, TXT_LENGTH, config.txt_width, seed=2),
        "vec": normal(BATCH, config.vec_width, seed=3),
        "t": np.array([0.83, 0.27], np.float32),
    }
    if config.guidance_embed:
        inputs["guidance"] = np.array([3.5, 1.3], np.float32)
    if config.condition_embed:
        inputs["img_cond"] = normal(BATCH, TOKENS, config.in_channels, seed=4)
    return inputs


def run_reference(
    reference: FluxTransformer2DModel, inputs: dict[str, Any], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    names = {
        "img": "hidden_states",
        "txt": "encoder_hidden_states",
        "vec": "pooled_projections",
        "t": "timestep",
        "guidance": "guidance",
    }
    arguments = {names[k]: tensor(v).to(dtype) for k, v in inputs.items() if k in names}
    ids = {"img_ids": CANVAS.image_ids, "txt_ids": text_ids(TXT_LENGTH)}
    arguments |= {k: tensor(own) for k, own in ids.items()}

    def add_condition(_module: torch.nn.Module, _args: Any, embedded: torch.Tensor) -> torch.Tensor:
        if "img_cond" not in inputs:
            return embedded
        return embedded + reference.c_embedder(tensor(inputs["img_cond"]).to(dtype))

    hook = reference.x_embedder.register_forward_hook(add_condition)
    with torch.no_grad():
        output = reference(**arguments).sample
    hook.remove()
    return output


@functools.cache
def truth(name: str) -> torch.Tensor:
    return run_reference(reference_of(name), model_inputs(name))


@functools.cache
def compiled(name: str, precision: Precision, *, scan_layers: bool) -> Callable[..., jax.Array]:
    return jit(ours_of(name, precision, scan_layers=scan_layers))


def run_ours(
    name: str,
    inputs: dict[str, Any],
    precision: Precision = FLOAT32,
    *,
    scan_layers: bool = True,
) -> jax.Array:
    run = compiled(name, precision, scan_layers=scan_layers)
    given: dict[str, Any] = {field: inputs.get(field) for field in FluxInputs._fields}
    return run(inputs["img"], inputs["t"], FluxInputs(**given), CANVAS)


# Whole models


@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("name", CONFIGS)
def test_model(name: str, scan_layers: bool) -> None:
    ours = run_ours(name, model_inputs(name), scan_layers=scan_layers)
    assert_close(ours, truth(name), MODEL, f"FLUX {name}")


def test_model_without_condition() -> None:
    """A model with condition embedding is its base model when no condition is given."""
    inputs = {k: v for k, v in model_inputs("dev").items() if k != "img_cond"}
    theirs = run_reference(reference_of("dev"), inputs)
    assert_close(run_ours("dev", inputs), theirs, MODEL, "no condition")
    assert relative_error(theirs, truth("dev")) > 0.1


def test_panels_that_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """One long sequence of both panels, and a mask that image tokens pass and text does not."""
    apart, attend = truth("schnell"), transformer_flux.dispatch_attention_fn
    panel = torch.arange(BATCH).repeat_interleave(TXT_LENGTH + TOKENS)
    is_img = (torch.arange(TXT_LENGTH + TOKENS) >= TXT_LENGTH).repeat(BATCH)
    mask = (panel[:, None] == panel) | (is_img[:, None] & is_img)

    def together(*qkv: torch.Tensor, **rest: Any) -> torch.Tensor:
        whole = (x.flatten(0, 1)[None] for x in qkv)
        return attend(*whole, **rest | {"attn_mask": mask[None, None]}).reshape(qkv[0].shape)

    monkeypatch.setattr(transformer_flux, "dispatch_attention_fn", together)
    inputs = model_inputs("schnell")
    theirs = run_reference(reference_of("schnell"), inputs)
    graphdef, state = nnx.split(ours_of("schnell", scan_layers=True))
    own = FluxInputs(jnp.asarray(inputs["txt"]), jnp.asarray(inputs["vec"]))

    @jax.jit
    def run(state: nnx.State, img: jax.Array, t: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state)(img, t, own, CANVAS, BATCH)

    ours = run(state, inputs["img"], inputs["t"])
    assert_close(ours, theirs, MODEL, "two panels")
    assert relative_error(theirs, apart) > 0.01


def test_zero_condition_is_not_no_condition() -> None:
    """True guidance drops the image by zero tokens, which still add the embedding's bias."""
    none = {k: v for k, v in model_inputs("dev").items() if k != "img_cond"}
    zero = none | {"img_cond": np.zeros((BATCH, TOKENS, DEV.in_channels), np.float32)}
    theirs = run_reference(reference_of("dev"), zero)
    assert_close(run_ours("dev", zero), theirs, MODEL, "zero condition")
    assert relative_error(run_ours("dev", none), theirs) > 0.01


@pytest.mark.parametrize("name", CONFIGS)
def test_model_in_bfloat16(name: str) -> None:
    # Times and scales that bfloat16 holds exactly; else their rounding would hide all other errors.
    exact = {"t": np.array([0.5, 0.25], np.float32), "guidance": np.array([4, 2], np.float32)}
    inputs = {k: exact.get(k, v) for k, v in model_inputs(name).items()}
    reference = copy.deepcopy(reference_of(name)).to(torch.bfloat16)
    theirs = run_reference(reference, inputs, torch.bfloat16)
    ours = run_ours(name, inputs, BFLOAT16)
    assert ours.dtype == jnp.bfloat16
    assert_bfloat16_as_good(ours, theirs, run_reference(reference_of(name), inputs), f"FLUX {name}")


# Layers


@pytest.fixture(scope="module")
def ours() -> Flux:
    return ours_of("dev")


@pytest.fixture(scope="module")
def reference() -> FluxTransformer2DModel:
    return reference_of("dev")


@pytest.fixture(scope="module")
def vec() -> np.ndarray:
    return normal(BATCH, DEV.width, seed=10)


@pytest.fixture(scope="module")
def img() -> np.ndarray:
    return normal(BATCH, TOKENS, DEV.width, seed=11)


@pytest.fixture(scope="module")
def txt() -> np.ndarray:
    return normal(BATCH, TXT_LENGTH, DEV.width, seed=12)


@pytest.fixture(scope="module")
def pe() -> jax.Array:
    ids = jnp.concatenate([text_ids(TXT_LENGTH), CANVAS.image_ids])
    return embed_positions(ids, DEV.axes_dim, DEV.theta)


@pytest.fixture(scope="module")
def rotary(reference: FluxTransformer2DModel) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.cat([torch.zeros(TXT_LENGTH, 3), tensor(CANVAS.image_ids).float()])
    return reference.pos_embed(ids)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 5)], ids=["times", "guidance scales"])
def test_timestep_embedding(low: float, high: float) -> None:
    t = np.random.default_rng(0).uniform(low, high, 300).astype(np.float32)
    theirs = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)(tensor(t) * 1000)
    assert_close(jax.jit(timestep_embedding)(t), theirs, LAYER, "timestep embedding")


def test_timestep_embedding_rounds_like_the_reference_in_bfloat16() -> None:
    t = torch.linspace(0.01, 0.99, 64).to(torch.bfloat16)
    theirs = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)(t * 1000)
    ours = timestep_embedding(jnp.asarray(t.float().numpy()).astype(jnp.bfloat16))
    assert ours.dtype == jnp.float32
    assert_close(ours, theirs, LAYER, "timestep embedding of bfloat16 times")


@pytest.mark.parametrize("name", CONFIGS)
def test_conditioning_vector(name: str) -> None:
    ours, reference = ours_of(name), reference_of(name)
    inputs = model_inputs(name)
    t, guidance, pooled = inputs["t"], inputs.get("guidance"), inputs["vec"]
    scalars = [tensor(x) * 1000 for x in (t, guidance) if x is not None]
    with torch.no_grad():
        theirs = reference.time_text_embed(*scalars, tensor(pooled))
    vec = jit(ours.time_in)(timestep_embedding(jnp.asarray(t))) + jit(ours.vector_in)(pooled)
    if ours.guidance_in is not None:
        vec = vec + jit(ours.guidance_in)(timestep_embedding(jnp.asarray(guidance)))
    assert_close(vec, theirs, LAYER, "conditioning vector")


@pytest.mark.parametrize("canvas", [CANVAS, Canvas(128, 256)], ids=["tiny", "1024x2048 pixels"])
@pytest.mark.parametrize("axes_dim", [(8, 12, 12), (16, 56, 56)], ids=["tiny", "FLUX"])
def test_rope_frequencies(canvas: Canvas, axes_dim: tuple[int, ...]) -> None:
    pos_embed = copy.copy(reference_of("dev").pos_embed)
    pos_embed.axes_dim = axes_dim
    ids = canvas.image_ids
    cos, sin = pos_embed(tensor(ids).float())
    pe = jax.jit(embed_positions, static_argnums=(1, 2))(ids, axes_dim, 10_000)
    sign = np.where(np.arange(sum(axes_dim)) % 2 == 0, -1, 1)
    assert_close(pe[0], cos, LAYER, "cosine")
    assert_close(np.asarray(pe[1]) * sign, sin, LAYER, "sine")


def test_rope_application(pe: jax.Array, rotary: tuple[torch.Tensor, torch.Tensor]) -> None:
    x = normal(BATCH, TXT_LENGTH + TOKENS, DEV.num_heads, DEV.head_dim)
    theirs = apply_rotary_emb(tensor(x), rotary, sequence_dim=1)
    assert_close(jax.jit(apply_rope)(x, pe), theirs, LAYER, "RoPE")


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e3])
def test_rms_norm(size: float) -> None:
    """At inputs of 1e-3 the epsilon counts."""
    reference = torch.nn.RMSNorm(32, eps=1e-6)
    randomise(reference)
    norm = RMSNorm(32, precision=FLOAT32)
    norm.scale[...] = jnp.asarray(reference.weight.detach().numpy())
    x = np.float32(size) * normal(2, 5, 3, 32)
    assert_close(jit(norm)(x), reference(tensor(x)), LAYER, "RMS norm")


@pytest.mark.parametrize("stream", ["img", "txt"])
def test_modulation_of_double_blocks(
    ours: Flux, reference: FluxTransformer2DModel, img: np.ndarray, vec: np.ndarray, stream: str
) -> None:
    """shift, scale and gate of attention, then of the mlp; normed, gate, ... in diffusers."""
    block = reference.transformer_blocks[1]
    norm = block.norm1 if stream == "img" else block.norm1_context
    with torch.no_grad():
        normed, *rest = norm(tensor(img * 3 + 1), emb=tensor(vec))
    first, second = jit(getattr(ours.double_blocks[1], f"{stream}_mod"))(vec)
    modulated = jax.jit(modulate)(img * 3 + 1, first.shift, first.scale)
    assert_close(modulated, normed, LAYER, "modulated layer norm")
    mine = (first.gate, second.shift, second.scale, second.gate)
    for what, a, b in zip(("gate", "mlp shift", "mlp scale", "mlp gate"), mine, rest, strict=True):
        assert_close(a, b, LAYER, what)


def test_modulation_of_single_blocks(
    ours: Flux, reference: FluxTransformer2DModel, img: np.ndarray, vec: np.ndarray
) -> None:
    with torch.no_grad():
        normed, gate = reference.single_transformer_blocks[2].norm(tensor(img), emb=tensor(vec))
    (mod,) = jit(ours.single_blocks[2].modulation)(vec)
    assert_close(jax.jit(modulate)(img, mod.shift, mod.scale), normed, LAYER, "modulated norm")
    assert_close(mod.gate, gate, LAYER, "gate")


@pytest.mark.parametrize("stream", ["img", "txt"])
def test_feed_forward(
    ours: Flux, reference: FluxTransformer2DModel, img: np.ndarray, stream: str
) -> None:
    block = reference.transformer_blocks[0]
    with torch.no_grad():
        theirs = (block.ff if stream == "img" else block.ff_context)(tensor(img))
    mine = jit(getattr(ours.double_blocks[0], f"{stream}_mlp"))(img)
    assert_close(mine, theirs, LAYER, "feed-forward")


def test_joint_attention(
    ours: Flux,
    reference: FluxTransformer2DModel,
    img: np.ndarray,
    txt: np.ndarray,
    pe: jax.Array,
    rotary: tuple[torch.Tensor, torch.Tensor],
) -> None:
    with torch.no_grad():
        their_img, their_txt = reference.transformer_blocks[1].attn(
            tensor(img), tensor(txt), image_rotary_emb=rotary
        )

    class JointAttention(nnx.Module):
        """A double block without modulation, residual and mlp."""

        def __init__(self, block: DoubleBlock) -> None:
            self.img_attn, self.txt_attn = block.img_attn, block.txt_attn

        def __call__(self, img: jax.Array, txt: jax.Array, pe: jax.Array) -> Any:
            pairs = zip(self.txt_attn.split(txt), self.img_attn.split(img), strict=True)
            q, k, v = (jnp.concatenate(pair, axis=1) for pair in pairs)
            out = attention(apply_rope(q, pe), apply_rope(k, pe), v)
            split = txt.shape[1]
            return self.img_attn.proj(out[:, split:]), self.txt_attn.proj(out[:, :split])

    our_img, our_txt = jit(JointAttention(ours.double_blocks[1]))(img, txt, pe)
    assert_close(our_img, their_img, LAYER, "attention, image")
    assert_close(our_txt, their_txt, LAYER, "attention, text")


def test_double_block(
    ours: Flux,
    reference: FluxTransformer2DModel,
    img: np.ndarray,
    txt: np.ndarray,
    vec: np.ndarray,
    pe: jax.Array,
    rotary: tuple[torch.Tensor, torch.Tensor],
) -> None:
    with torch.no_grad():
        their_txt, their_img = reference.transformer_blocks[0](
            tensor(img), tensor(txt), tensor(vec), rotary
        )
    block = ours.double_blocks[0]

    @jax.jit
    def run(img: jax.Array, txt: jax.Array, vec: jax.Array, pe: jax.Array) -> tuple[jax.Array, ...]:
        return block(img, txt, block.modulations(vec), pe, attention)

    our_img, our_txt = run(img, txt, vec, pe)
    assert_close(our_img, their_img, LAYER, "double block, image")
    assert_close(our_txt, their_txt, LAYER, "double block, text")


def test_single_block(
    ours: Flux,
    reference: FluxTransformer2DModel,
    img: np.ndarray,
    txt: np.ndarray,
    vec: np.ndarray,
    pe: jax.Array,
    rotary: tuple[torch.Tensor, torch.Tensor],
) -> None:
    with torch.no_grad():
        theirs = reference.single_transformer_blocks[1](
            tensor(img), tensor(txt), tensor(vec), rotary
        )
    block = ours.single_blocks[1]
    x = np.concatenate([txt, img], axis=1)

    @jax.jit
    def run(x: jax.Array, vec: jax.Array, pe: jax.Array) -> jax.Array:
        return block(x, block.modulations(vec), pe, attention)

    mine = run(x, vec, pe)
    assert_close(mine, torch.cat(theirs, dim=1), LAYER, "single block")


def test_final_layer(
    ours: Flux, reference: FluxTransformer2DModel, img: np.ndarray, vec: np.ndarray
) -> None:
    """Also holds the order of shift and scale, which differs between the two."""
    with torch.no_grad():
        theirs = reference.proj_out(reference.norm_out(tensor(img), tensor(vec)))
    layer = ours.final_layer
    mine = jax.jit(lambda img, vec: layer(img, layer.modulations(vec)))(img, vec)
    assert_close(mine, theirs, LAYER, "final layer")
