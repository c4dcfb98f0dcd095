"""The layers that models are made of: Linear with room for LoRA, norms, modulation, embeddings."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from dsd_jax.config import Precision
from dsd_jax.errors import UserError
from dsd_jax.sharding import current_mesh
from dsd_jax.types import Array, Float, Float32, Shape

__all__ = [
    "ACTIVATIONS",
    "Conv",
    "Embedding",
    "JoinedLinear",
    "LayerNorm",
    "Linear",
    "LoraParam",
    "Mlp",
    "MlpEmbedder",
    "Modulation",
    "ModulationOut",
    "RMSNorm",
    "gelu_tanh",
    "gradient_apart",
    "layer_norm",
    "modulate",
    "timestep_embedding",
]


class LoraParam(nnx.Param):
    """A factor of a low-rank adapter: the type by which adapters are told from the base."""


def _random_kernel(rngs: nnx.Rngs, in_shape: Shape, out_shape: Shape, dtype: jnp.dtype) -> Array:
    shape = (*in_shape, *out_shape)
    std = 1 / math.sqrt(math.prod(in_shape))
    return (std * jax.random.normal(rngs.params(), shape, jnp.float32)).astype(dtype)


def _contract(
    x: Array, kernel: Array, axes: int, precision: Precision, scale: nnx.Param | None = None
) -> Array:
    """Sums x's last `axes` axes against the kernel's first `axes`, in the compute dtype.

    `scale` is that of a quantised kernel (see `dsd_jax.quantise`). One scale per output is applied
    to the product. Scales of groups of inputs are applied to the kernel, which the compiler does
    while it reads the kernel; no other copy of it is made.
    """
    if scale is None:
        return _product(x, kernel, axes, precision)
    scales = scale[...]
    if scales.ndim == kernel.ndim:
        return _product(x, _times_groups(kernel, scales, axes, precision), axes, precision)
    y = _product(x, kernel, axes, precision)
    wide = lax.expand_dims(scales, range(y.ndim - scales.ndim))
    return (y.astype(jnp.float32) * wide).astype(y.dtype)


def _times_groups(kernel: Array, scales: Array, axes: int, precision: Precision) -> Array:
    """A kernel of codes times the scales of groups along its last input axis."""
    groups, compute = scales.shape[axes - 1], precision.compute_dtype
    lead, out = kernel.shape[: axes - 1], kernel.shape[axes:]
    grouped = kernel.astype(compute).reshape(*lead, groups, -1, *out)
    wide = lax.expand_dims(scales.astype(compute), (axes,))
    return (grouped * wide).reshape(kernel.shape)


def _keeps_axes() -> bool:
    """Whether products keep the axes of their arguments apart; see `_product`."""
    return current_mesh() is not None or jax.default_backend() == "tpu"


def _product(x: Array, kernel: Array, axes: int, precision: Precision) -> Array:
    compute = precision.compute_dtype
    x, kernel = x.astype(compute), kernel.astype(compute)
    if _keeps_axes():
        dims = (tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes)))
        return lax.dot_general(x, kernel, (dims, ((), ())), precision=precision.matmul)
    # On one device no sharding is lost by flattening, and XLA's CPU compiler transposes a whole
    # gradient to sum it over more than one leading axis: half the time of a small training step.
    # On TPU, where the last two axes are tiled, a flattened kernel would be copied in every step.
    lead, inner = x.shape[: x.ndim - axes], math.prod(kernel.shape[:axes])
    rows, columns = x.reshape(math.prod(lead), inner), kernel.reshape(inner, -1)
    product = lax.dot(rows, columns, precision=precision.matmul)
    return product.reshape(*lead, *kernel.shape[axes:])


class Linear(nnx.Module):
    """Affine map from the trailing axes `in_shape` to `out_shape`; kernel `[*in, *out]`.

    The output axes stay apart (q/k/v, heads, modulation parts), so that a mesh axis can shard
    heads without cutting through a fused row. `dsd_jax.lora` adds `lora_a`, `lora_b` and
    `lora_scale`: y += scale * (x a) b (LoRA, equation 3). With `fused > 1` the kernel's first
    output axis holds that many independent Linears, each with its own pair of factors:
    a `[*in, fused, R]`, b `[fused, R, *out[1:]]`; otherwise a `[*in, R]`, b `[R, *out]`.
    `dsd_jax.quantise` adds `kernel_scale`, and the kernel then holds codes.
    """

    kernel_scale: nnx.Param | None = None
    lora_a: LoraParam | None = None
    lora_b: LoraParam | None = None
    lora_scale: float = 1.0
    lora_merged: bool = False  # the kernel holds the adapter already

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        precision: Precision,
        rngs: nnx.Rngs,
        bias: bool = True,
        fused: int = 1,
        zero: bool = False,
    ) -> None:
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self.fused, self.precision = fused, precision
        dtype = jnp.dtype(precision.param_dtype)
        if zero:
            kernel = jnp.zeros((*self.in_shape, *self.out_shape), dtype)
        else:
            kernel = _random_kernel(rngs, self.in_shape, self.out_shape, dtype)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros(self.out_shape, dtype)) if bias else None

    def __call__(self, x: Array) -> Array:
        y = _contract(x, self.kernel[...], len(self.in_shape), self.precision, self.kernel_scale)
        if self.lora_a is not None and self.lora_b is not None and not self.lora_merged:
            y = y + self._adapter(x, self.lora_a[...], self.lora_b[...])
        if self.bias is not None:
            y = y + lax.expand_dims(self.bias[...].astype(y.dtype), range(y.ndim - self.bias.ndim))
        return y

    @property
    def kernels(self) -> dict[str, int]:
        """Name of each kernel, with its number of input axes."""
        return {"kernel": len(self.in_shape)}

    def _adapter(self, x: Array, a: Array, b: Array) -> Array:
        hidden = _contract(x, a, len(self.in_shape), self.precision) * self.lora_scale
        if self.fused == 1:
            return _contract(hidden, b, 1, self.precision)
        if _keeps_axes():
            # Joined after a product for each part, they would be joined again in every tile of the
            # base's product, which adds them: twice its cycles on TPU.
            compute, last = self.precision.compute_dtype, hidden.ndim - 1
            dims = (((last,), (1,)), ((last - 1,), (0,)))
            joined = lax.dot_general(
                hidden, b.astype(compute), dims, precision=self.precision.matmul
            )
            return jnp.moveaxis(joined, 0, last - 1)
        parts = [
            _contract(hidden[..., part, :], b[part], 1, self.precision)
            for part in range(self.fused)
        ]
        return jnp.stack(parts, axis=hidden.ndim - 2)


class JoinedLinear(nnx.Module):
    """Linear over the concatenation of attention heads and mlp channels, without building it.

    The last Linear of a single block. Two kernels (`[N, H, D]` and `[M, D]`) keep both inputs
    shardable over the tensor axis; one adapter spans them (`lora_a_attn`, `lora_a_mlp` and a common
    `lora_b`), as it does in the fused form.
    """

    kernels: ClassVar[dict[str, int]] = {"attn_kernel": 2, "mlp_kernel": 1}
    """Name of each kernel, with its number of input axes."""
    attn_kernel_scale: nnx.Param | None = None
    mlp_kernel_scale: nnx.Param | None = None
    lora_a_attn: LoraParam | None = None
    lora_a_mlp: LoraParam | None = None
    lora_b: LoraParam | None = None
    lora_scale: float = 1.0
    lora_merged: bool = False  # the kernel holds the adapter already

    def __init__(
        self, num_heads: int, head_dim: int, mlp: int, *, precision: Precision, rngs: nnx.Rngs
    ) -> None:
        dtype = jnp.dtype(precision.param_dtype)
        width = num_heads * head_dim
        kernel = _random_kernel(rngs, (width + mlp,), (width,), dtype)
        self.precision = precision
        self.attn_kernel = nnx.Param(kernel[:width].reshape(num_heads, head_dim, width))
        self.mlp_kernel = nnx.Param(kernel[width:])
        self.bias = nnx.Param(jnp.zeros(width, dtype))

    def __call__(self, attn: Float[Array, "B L N H"], mlp: Float[Array, "B L M"]) -> Array:
        attn_kernel, attn_scale = self.attn_kernel[...], self.attn_kernel_scale
        mlp_kernel, mlp_scale = self.mlp_kernel[...], self.mlp_kernel_scale
        y = _contract(attn, attn_kernel, 2, self.precision, attn_scale)
        y = y + _contract(mlp, mlp_kernel, 1, self.precision, mlp_scale)
        a_attn, a_mlp, b = self.lora_a_attn, self.lora_a_mlp, self.lora_b
        if a_attn is not None and a_mlp is not None and b is not None and not self.lora_merged:
            hidden = _contract(attn, a_attn[...], 2, self.precision)
            hidden = hidden + _contract(mlp, a_mlp[...], 1, self.precision)
            y = y + _contract(hidden * self.lora_scale, b[...], 1, self.precision)
        return y + self.bias[...].astype(y.dtype)[None, None, :]


class Embedding(nnx.Module):
    """Table of vectors `[vocab, D]`, looked up by integer ids."""

    def __init__(self, vocab: int, width: int, *, precision: Precision, rngs: nnx.Rngs) -> None:
        table = jax.random.normal(rngs.params(), (vocab, width), jnp.float32)
        self.embedding = nnx.Param(table.astype(precision.param_dtype))
        self.precision = precision

    def __call__(self, ids: Array) -> Array:
        return self.embedding[...][ids].astype(self.precision.compute_dtype)


def _apart(x: Array) -> Array:
    """Keeps an array out of the product that takes it, on TPU.

    Fused into the product, it would be computed again for every tile of the output.
    """
    return lax.platform_dependent(x, tpu=lax.optimization_barrier, default=lambda x: x)


@jax.custom_vjp
def gradient_apart(x: Array) -> Array:
    """Returns x. On TPU, its gradient is computed once for all products that take it."""
    return x


def _gradient_apart_forward(x: Array) -> tuple[Array, None]:
    return x, None


def _gradient_apart_backward(_: None, gradient: Array) -> tuple[Array]:
    return (_apart(gradient),)


gradient_apart.defvjp(_gradient_apart_forward, _gradient_apart_backward)


def layer_norm(x: Array, eps: float = 1e-6) -> Array:
    """Zero mean and unit variance over the last axis, without affine part; float32 result."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    return centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)


class Conv(nnx.Module):
    """Convolution with a square kernel `[size, size, C in, C out]`, and a bias `[C out]` if wanted.

    Args:
        size: Side of the kernel.
        stride: Pixels between outputs, along both axes.
        padding: Zeros above and below, and on the left and on the right.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        precision: Precision,
        rngs: nnx.Rngs,
        size: int = 3,
        stride: int = 1,
        padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1)),
        bias: bool = True,
    ) -> None:
        dtype = jnp.dtype(precision.param_dtype)
        shape = (size, size, in_channels, out_channels)
        kernel = jax.random.normal(rngs.params(), shape, jnp.float32)
        self.kernel = nnx.Param((kernel / math.sqrt(size * size * in_channels)).astype(dtype))
        self.bias = nnx.Param(jnp.zeros(out_channels, dtype)) if bias else None
        self.precision, self.stride, self.padding = precision, stride, padding

    def __call__(self, x: Float[Array, "B h w C"]) -> Array:
        compute = self.precision.compute_dtype
        y = lax.conv_general_dilated(
            x.astype(compute),
            self.kernel[...].astype(compute),
            window_strides=(self.stride, self.stride),
            padding=self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=self.precision.matmul,
        )
        return y if self.bias is None else y + self.bias[...].astype(compute)[None, None, None, :]


class LayerNorm(nnx.Module):
    """Layer norm with scale and bias `[D]`; statistics in float32, result in x's dtype."""

    def __init__(self, width: int, *, eps: float, precision: Precision) -> None:
        self.scale = nnx.Param(jnp.ones(width, precision.param_dtype))
        self.bias = nnx.Param(jnp.zeros(width, precision.param_dtype))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        lead = range(x.ndim - 1)
        scale = lax.expand_dims(self.scale[...].astype(jnp.float32), lead)
        bias = lax.expand_dims(self.bias[...].astype(jnp.float32), lead)
        return (layer_norm(x, self.eps) * scale + bias).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Divides by the root mean square over the last axis, then scales `[width]`; in float32."""

    def __init__(self, width: int, *, precision: Precision, eps: float = 1e-6) -> None:
        self.scale = nnx.Param(jnp.ones(width, precision.param_dtype))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        normed = x32 * lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.eps)
        scale = lax.expand_dims(self.scale[...].astype(jnp.float32), range(x.ndim - 1))
        return (normed * scale).astype(x.dtype)


class ModulationOut(NamedTuple):
    """Adaptive layer norm parameters of one branch, each `[B, D]` (DiT, section 3.2)."""

    shift: Array
    scale: Array
    gate: Array


class Modulation(nnx.Module):
    """`branches` triples of shift, scale and gate from the conditioning vector."""

    def __init__(self, width: int, branches: int, *, precision: Precision, rngs: nnx.Rngs) -> None:
        self.lin = Linear((width,), (3 * branches, width), precision=precision, rngs=rngs)

    def __call__(self, vec: Float[Array, "B D"]) -> list[ModulationOut]:
        out = self.lin(jax.nn.silu(vec))
        return [
            ModulationOut(out[:, i], out[:, i + 1], out[:, i + 2])
            for i in range(0, out.shape[1], 3)
        ]


def modulate(
    x: Float[Array, "B L D"], shift: Float[Array, "B D"], scale: Float[Array, "B D"]
) -> Float[Array, "B L D"]:
    """`(1 + scale) * layer_norm(x) + shift`, in float32, result in x's dtype."""
    shift32 = shift.astype(jnp.float32)[:, None, :]
    scale32 = scale.astype(jnp.float32)[:, None, :]
    return ((1 + scale32) * layer_norm(x) + shift32).astype(x.dtype)


def gelu_tanh(x: Array) -> Array:
    """The tanh form of GELU, which FLUX was trained with."""
    return jax.nn.gelu(x, approximate=True)


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": _quick_gelu,
}
"""Activations of an `Mlp` by the names that configurations use."""


class Mlp(nnx.Module):
    """Linear, activation, Linear: `[..., D] -> [..., M] -> [..., D]`."""

    def __init__(
        self,
        width: int,
        mlp: int,
        *,
        activation: str = "gelu_tanh",
        precision: Precision,
        rngs: nnx.Rngs,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise UserError(
                f"the configuration has activation {activation!r}; only {', '.join(ACTIVATIONS)} "
                "are known"
            )
        self.in_layer = Linear((width,), (mlp,), precision=precision, rngs=rngs)
        self.out_layer = Linear((mlp,), (width,), precision=precision, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Array) -> Array:
        hidden = ACTIVATIONS[self.activation](self.in_layer(x))
        return self.out_layer(_apart(hidden))


class MlpEmbedder(nnx.Module):
    """Linear, SiLU, Linear; embeds time, guidance and pooled text into the conditioning vector."""

    def __init__(self, in_width: int, width: int, *, precision: Precision, rngs: nnx.Rngs) -> None:
        self.in_layer = Linear((in_width,), (width,), precision=precision, rngs=rngs)
        self.out_layer = Linear((width,), (width,), precision=precision, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.out_layer(jax.nn.silu(self.in_layer(x)))


def timestep_embedding(t: Float[Array, " B"], width: int = 256) -> Float32[Array, "B {width}"]:
    """Sinusoids of `1000 t`: cosines, then sines; float32.

    The reference multiplies by 1000 in the model's dtype, and so does this (in bfloat16 the product
    is rounded); the sinusoids themselves are float32.
    """
    scaled = (t * 1000).astype(jnp.float32)
    half = width // 2
    # The reference's float32 exponents, but an exact exponential: XLA's is off by enough to be
    # seen at angles of thousands.
    exponent = np.float32(-math.log(10_000)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequency = np.exp(exponent.astype(np.float64)).astype(np.float32)
    angle = scaled[:, None] * frequency[None, :]
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
