"""Adapters in our model against PEFT's in diffusers' model, factors copied by hand.

Files of adapters are compared in `test_lora_files`; here nothing of `dsd_jax.convert` touches the
factors, so that this says what the shapes documented in `dsd_jax.layers` mean.
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from diffusers import FluxTransformer2DModel

from dsd_jax.config import FLOAT32, Execution, FluxConfig
from dsd_jax.convert.flux.diffusers import flux_diffusers
from dsd_jax.frames import Canvas, FluxInputs, text_ids
from dsd_jax.lora import Adapter, merge
from dsd_jax.models import abstract, load
from tests.parity.compare import StateDict, assert_close, jit, randomise, relative_error, to_numpy

MODEL = 1e-4
CONFIG = FluxConfig(
    in_channels=16,
    out_channels=16,
    num_heads=3,
    head_dim=16,
    double_depth=2,
    single_depth=2,
    txt_width=24,
    vec_width=20,
    axes_dim=(4, 6, 6),
    condition_embed=False,
)
RANK, ALPHA = 5, 2.0
CANVAS = Canvas(4, 6)
D, N, H = CONFIG.width, CONFIG.num_heads, CONFIG.head_dim
STREAMS = {
    "img": ("to_q", "to_k", "to_v", "to_out.0", "ff"),
    "txt": ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context"),
}
ATTENTION = r".*\.attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)"
FEED_FORWARD = (
    r"|.*\.ff(_context)?\.net\.(0\.proj|2)|single_transformer_blocks\.\d+\.(proj_mlp|proj_out)"
)
TARGETS = {"attention": ATTENTION, "attention+ff": ATTENTION + FEED_FORWARD}


def make_reference() -> FluxTransformer2DModel:
    reference = FluxTransformer2DModel(
        in_channels=CONFIG.in_channels,
        num_layers=CONFIG.double_depth,
        num_single_layers=CONFIG.single_depth,
        attention_head_dim=H,
        num_attention_heads=N,
        joint_attention_dim=CONFIG.txt_width,
        pooled_projection_dim=CONFIG.vec_width,
        guidance_embeds=True,
        axes_dims_rope=CONFIG.axes_dim,
    )
    randomise(reference)
    return reference.eval()


def adapted(targets: str) -> Any:
    """The reference wrapped by PEFT, both factors of every target random."""
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS[targets])
    model = peft.inject_adapter_in_model(config, make_reference())
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise / parameter.shape[1] ** 0.5)
    return model


def copy_by_hand(model: torch.nn.Module) -> Adapter:
    """PEFT's A [R, in] and B [out, R] in the shapes of ours, alpha / rank folded into B."""
    tensors = {
        name.replace(".default.weight", ""): to_numpy(value)
        for name, value in model.named_parameters()
        if "lora_" in name
    }
    factors: dict[str, np.ndarray] = {}

    def a(name: str) -> np.ndarray:
        return tensors.pop(f"{name}.lora_A").T

    def b(name: str) -> np.ndarray:
        return tensors.pop(f"{name}.lora_B").T * np.float32(ALPHA / RANK)

    def has(name: str) -> bool:
        return f"{name}.lora_A" in tensors

    def copy_qkv(names: list[str], ours: str) -> None:
        factors[f"{ours}.lora_a"] = np.stack([a(name) for name in names], axis=1)
        factors[f"{ours}.lora_b"] = np.stack([b(name).reshape(RANK, N, H) for name in names])

    def copy(name: str, ours: str, inputs: tuple[int, ...] = (-1,)) -> None:
        if has(name):
            factors[f"{ours}.lora_a"] = a(name).reshape(*inputs, RANK)
            factors[f"{ours}.lora_b"] = b(name)

    for i in range(CONFIG.double_depth):
        theirs, ours = f"transformer_blocks.{i}", f"double_blocks.{i}"
        for stream, (*qkv, proj, ff) in STREAMS.items():
            copy_qkv([f"{theirs}.attn.{name}" for name in qkv], f"{ours}.{stream}_attn.qkv")
            copy(f"{theirs}.attn.{proj}", f"{ours}.{stream}_attn.proj", (N, H))
            copy(f"{theirs}.{ff}.net.0.proj", f"{ours}.{stream}_mlp.in_layer")
            copy(f"{theirs}.{ff}.net.2", f"{ours}.{stream}_mlp.out_layer")
    for i in range(CONFIG.single_depth):
        theirs, ours = f"single_transformer_blocks.{i}", f"single_blocks.{i}"
        copy_qkv([f"{theirs}.attn.to_{x}" for x in "qkv"], f"{ours}.qkv")
        copy(f"{theirs}.proj_mlp", f"{ours}.mlp_in")
        if has(f"{theirs}.proj_out"):
            joined = a(f"{theirs}.proj_out")
            factors[f"{ours}.linear2.lora_a_attn"] = joined[:D].reshape(N, H, RANK)
            factors[f"{ours}.linear2.lora_a_mlp"] = joined[D:]
            factors[f"{ours}.linear2.lora_b"] = b(f"{theirs}.proj_out")
    assert not tensors, f"not copied: {list(tensors)}"
    return Adapter(factors)


@functools.cache
def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    return {
        "hidden_states": normal(2, 6, CONFIG.in_channels),
        "img_ids": np.asarray(CANVAS.image_ids),
        "encoder_hidden_states": normal(2, 5, CONFIG.txt_width),
        "txt_ids": np.asarray(text_ids(5)),
        "pooled_projections": normal(2, CONFIG.vec_width),
        "timestep": np.array([0.7, 0.2], np.float32),
        "guidance": np.array([3.5, 1.0], np.float32),
    }


@torch.no_grad()
def run_reference(model: torch.nn.Module) -> torch.Tensor:
    return model(
        **{name: torch.from_numpy(value.copy()) for name, value in inputs().items()}
    ).sample


@pytest.mark.parametrize(
    ("targets", "scan_layers"),
    [("attention", True), ("attention+ff", True), ("attention+ff", False)],
)
def test_adapter(targets: str, scan_layers: bool) -> None:
    """Apart and merged."""
    theirs = adapted(targets)
    expected = run_reference(theirs)
    ours = load(
        abstract(CONFIG, precision=FLOAT32, execution=Execution(scan_layers=scan_layers)),
        flux_diffusers(CONFIG).check(StateDict(make_reference())),
        adapters=[(copy_by_hand(theirs), 1.0)],
    )
    given = {name: jnp.asarray(array) for name, array in inputs().items()}
    own = FluxInputs(given["encoder_hidden_states"], given["pooled_projections"], given["guidance"])
    arguments = given["hidden_states"], given["timestep"], own, CANVAS
    assert_close(jit(ours)(*arguments), expected, MODEL, f"LoRA on {targets}")
    merge(ours)
    assert_close(jit(ours)(*arguments), expected, MODEL, f"merged LoRA on {targets}")
    assert relative_error(run_reference(make_reference()), expected) > 0.1
