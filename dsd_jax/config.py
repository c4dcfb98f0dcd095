"""Model configurations: frozen dataclasses, with the published sizes as small functions."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from dsd_jax.types import DTypeLike

__all__ = [
    "BFLOAT16",
    "FLOAT32",
    "FLUX_DEV",
    "PRECISIONS",
    "AutoencoderConfig",
    "ClipConfig",
    "Execution",
    "FluxConfig",
    "Precision",
    "T5Config",
    "VisionConfig",
    "default_execution",
    "flux_dev",
    "flux_schnell",
]

FLUX_DEV = "black-forest-labs/FLUX.1-dev"
"""Hub id of the pipeline that commands start from by default."""


@dataclasses.dataclass(frozen=True)
class Precision:
    """Dtypes of parameters and computation; nothing else decides about them.

    Parameters of a frozen base are kept in `param_dtype`; matrix products, convolutions and the
    residual stream run in `compute_dtype`. Whatever these two say, norms, softmax, RoPE angles,
    timestep embeddings and losses are float32, and LoRA factors are kept in float32.
    """

    param_dtype: DTypeLike = jnp.bfloat16
    compute_dtype: DTypeLike = jnp.bfloat16

    @property
    def matmul(self) -> str:
        """`precision` of matrix products: float32 means float32, not TF32 or bfloat16 passes."""
        return "highest" if jnp.dtype(self.compute_dtype) == jnp.float32 else "default"


FLOAT32 = Precision(jnp.float32, jnp.float32)
BFLOAT16 = Precision()
PRECISIONS = {"bfloat16": BFLOAT16, "float32": FLOAT32}
"""Precisions by the names that flags and configs use."""


@dataclasses.dataclass(frozen=True)
class Execution:
    """The way a model runs. Nothing here changes what it computes.

    Attributes:
        scan_layers: one stacked array per parameter of a block and a `lax.scan` over the depth
            (one block to compile), or separate parameters and an unrolled loop.
        attention: implementation of `dsd_jax.attention.attention`.
        remat: policy of rematerialisation, a key of `dsd_jax.stack.REMAT_POLICIES`.
        stream_layers: parameters of blocks lie in host memory and come to the device a layer at a
            time; needs `scan_layers`.
    """

    scan_layers: bool = False
    attention: str = "auto"
    remat: str = "none"
    stream_layers: bool = False

    def __post_init__(self) -> None:
        if self.stream_layers and not self.scan_layers:
            raise ValueError("stream_layers needs scan_layers")


def default_execution(backend: str) -> Execution:
    """The default way to run models on a backend ("cpu", "gpu", "tpu").

    A scan over layers compiles one block instead of 57 and costs nothing on CPU; the benchmark of
    the sampling step prints both. On GPU every layer would be copied out of its stack: 17 GB are
    read and written a step in FLUX.1-dev. So layers are unrolled there.
    """
    return Execution(scan_layers=backend != "gpu")


@dataclasses.dataclass(frozen=True)
class FluxConfig:
    """Size of a FLUX.1 transformer (MMDiT).

    Attributes:
        in_channels: C of a packed token, 4 x the latent channels (2x2 patches).
        out_channels: C of a predicted token.
        num_heads, head_dim: N and H; the width D is their product.
        double_depth, single_depth: number of two-stream and one-stream blocks.
        mlp_ratio: M / D.
        txt_width: width of the T5 token embeddings.
        vec_width: width of the pooled CLIP embedding.
        axes_dim: RoPE channels of each position axis; they sum to H.
        theta: RoPE base frequency.
        guidance_embed: whether the distilled guidance scale is embedded (dev yes, schnell no).
        condition_embed: whether the condition embedding of Diffusion Self-Distillation is there.
    """

    in_channels: int = 64
    out_channels: int = 64
    num_heads: int = 24
    head_dim: int = 128
    double_depth: int = 19
    single_depth: int = 38
    mlp_ratio: float = 4.0
    txt_width: int = 4096
    vec_width: int = 768
    axes_dim: tuple[int, ...] = (16, 56, 56)
    theta: int = 10_000
    guidance_embed: bool = True
    condition_embed: bool = True

    def __post_init__(self) -> None:
        if sum(self.axes_dim) != self.head_dim or any(dim % 2 for dim in self.axes_dim):
            raise ValueError(
                f"axes_dim must be even numbers that sum to head_dim={self.head_dim}, "
                f"got {self.axes_dim}"
            )

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)


def flux_dev(*, condition_embed: bool = True) -> FluxConfig:
    """FLUX.1-dev, by default with the condition embedding of Diffusion Self-Distillation."""
    return FluxConfig(condition_embed=condition_embed)


def flux_schnell(*, condition_embed: bool = False) -> FluxConfig:
    """FLUX.1-schnell: FLUX.1-dev without the guidance embedding."""
    return FluxConfig(guidance_embed=False, condition_embed=condition_embed)


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Size of the FLUX VAE (defaults: FLUX.1). `scale` and `shift` normalise its latents."""

    in_channels: int = 3
    latent_channels: int = 16
    block_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_groups: int = 32
    scale: float = 0.3611
    shift: float = 0.1159

    @property
    def downscale(self) -> int:
        """Image pixels per latent pixel, along each side."""
        return 2 ** (len(self.block_channels) - 1)


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Size of a T5-v1.1 encoder (defaults: T5-v1.1-XXL). `max_length`: tokens FLUX.1-dev uses."""

    vocab: int = 32_128
    width: int = 4096
    depth: int = 24
    num_heads: int = 64
    head_dim: int = 64
    mlp_width: int = 10_240
    relative_buckets: int = 32
    relative_max_distance: int = 128
    eps: float = 1e-6
    max_length: int = 512


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Size of a CLIP text encoder (defaults: CLIP-L).

    `eos_token_id` 2 marks the legacy configuration, in which the pooled output is taken at the
    largest token id instead of the first end-of-text token. `projection` is the width of the space
    that texts share with pictures; None without a Linear to it.
    """

    vocab: int = 49_408
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    max_length: int = 77
    eos_token_id: int = 2
    activation: str = "quick_gelu"
    eps: float = 1e-5
    projection: int | None = None

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Size and parts of a vision transformer (defaults: DINO ViT-S/16).

    Attributes:
        patch: Side of a patch in pixels.
        grid: Patches along a side of the square pictures that the stored positions are for.
        width, depth, num_heads, mlp_width: D, the number of blocks, N and M.
        activation: A key of `dsd_jax.layers.ACTIVATIONS`; a gated mlp has SiLU instead.
        eps: The term that keeps layer norms from dividing by zero.
        pool: Source of the feature of a picture: the class token, or attention of a learned query
            over all patches (SigLIP).
        registers: Number of register tokens, which follow the class token (DINOv2).
        pre_norm: Tokens pass a layer norm before the first block, and patches have no bias (CLIP).
        layer_scale: The output of every branch is scaled per channel (DINOv2).
        gated: Blocks have a SwiGLU mlp (DINOv2 giant).
        antialias: Positions are resized with antialiasing (DINOv2 with registers).
        projection: Width of the feature after a last Linear (CLIP); None without such a Linear.
    """

    patch: int = 16
    grid: int = 14
    width: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_width: int = 1536
    activation: str = "gelu"
    eps: float = 1e-12
    pool: Literal["class", "attention"] = "class"
    registers: int = 0
    pre_norm: bool = False
    layer_scale: bool = False
    gated: bool = False
    antialias: bool = False
    projection: int | None = None

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def first_patch(self) -> int:
        """Number of tokens before those of the patches."""
        return (self.pool == "class") + self.registers

    @property
    def feature_width(self) -> int:
        """Width of the feature of a picture."""
        return self.projection or self.width


@dataclasses.dataclass(frozen=True)
class DepthConfig:
    """Size of a Depth Anything model (defaults: Depth-Anything-V2-Small).

    Attributes:
        vision: The vision transformer, a DINOv2.
        taps: Blocks whose tokens are decoded: the number of blocks that they have passed, from the
            finest map to the coarsest.
        widths: Channels of the map of each tap.
        scales: Pixels along a side of each map per patch: a whole number, or one over one.
        fusion_width, head_width: Channels of the fused maps, and before the last layer.
    """

    vision: VisionConfig = VisionConfig(patch=14, grid=37, eps=1e-6, layer_scale=True)
    taps: tuple[int, ...] = (3, 6, 9, 12)
    widths: tuple[int, ...] = (48, 96, 192, 384)
    scales: tuple[float, ...] = (4, 2, 1, 0.5)
    fusion_width: int = 64
    head_width: int = 32
