"""Comparing our modules with PyTorch's: random weights, the way across, and the error."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import ml_dtypes
import numpy as np
import torch
from flax import nnx
from jax.typing import ArrayLike

from dsd_jax.convert.table.engine import Table
from dsd_jax.weights import materialise

__all__ = [
    "StateDict",
    "assert_bfloat16_as_good",
    "assert_close",
    "jit",
    "load",
    "randomise",
    "relative_error",
    "to_numpy",
]

TABLE_VARIABLE = "DSD_PARITY_TABLE"
BFLOAT16_SLACK = 1.5  # our bfloat16 error may be this much larger than PyTorch's own

Module = TypeVar("Module", bound=nnx.Module)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's values on the host; numpy has no bfloat16 of its own, ml_dtypes lends one."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def relative_error(ours: ArrayLike | torch.Tensor, theirs: ArrayLike | torch.Tensor) -> float:
    """`||ours - theirs|| / ||theirs||` in float64."""
    a, b = (
        np.asarray(to_numpy(x) if isinstance(x, torch.Tensor) else x, np.float64)
        for x in (ours, theirs)
    )
    assert a.shape == b.shape, f"shapes differ: {a.shape}, {b.shape}"
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def assert_close(
    ours: ArrayLike, theirs: ArrayLike | torch.Tensor, bound: float, what: str
) -> None:
    """Fails unless the relative error is at most `bound` (and a number)."""
    error = relative_error(ours, theirs)
    _record(what, error, bound)
    assert error <= bound, f"{what}: relative error {error:.2e}, allowed {bound:.0e}"


def _record(what: str, error: float, bound: float) -> None:
    """Adds a line to the table that `benchmarks.exact.parity` prints, where it asks for one."""
    if path := os.environ.get(TABLE_VARIABLE):
        test = os.environ["PYTEST_CURRENT_TEST"].partition(" ")[0]
        line = {"test": test, "what": what, "error": error, "bound": bound}
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def assert_bfloat16_as_good(
    ours: ArrayLike, theirs: torch.Tensor, truth: torch.Tensor, what: str
) -> None:
    """Compares both bfloat16 results with the float32 one: ours may not be worse than theirs."""
    own, reference = relative_error(ours, truth), relative_error(theirs, truth)
    _record(f"{what}, bfloat16", own, BFLOAT16_SLACK * reference)
    assert own <= BFLOAT16_SLACK * reference, f"{what}: bfloat16 error {own:.2e} vs {reference:.2e}"


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Fills every parameter in place: none is zero or one, so none can be ignored unnoticed.

    Matrices and kernels keep the size of activations, vectors are biases around 0 or, for norms,
    scales around 1. Values are those of bfloat16, so that both precisions have the same weights.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            if parameter.ndim > 1:
                value = noise / parameter[0].numel() ** 0.5
            elif name.endswith("bias"):
                value = 0.3 * noise
            else:
                value = 1 + 0.3 * noise
            parameter.copy_(value.bfloat16())


class StateDict:
    """A PyTorch module's tensors, as `dsd_jax.convert` reads them."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.tensors: Mapping[str, np.ndarray] = {
            name: to_numpy(tensor) for name, tensor in module.state_dict().items()
        }

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        return self.tensors[name][slice(None) if rows is None else rows]


def load(make: Callable[[nnx.Rngs], Module], table: Table, reference: torch.nn.Module) -> Module:
    """Our module with the reference's weights, through the conversion table."""
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    source = table.check(StateDict(reference))
    return materialise(module, source, stacks=getattr(module, "stacks", {}))


def jit(module: nnx.Module, method: str = "__call__") -> Callable[..., Any]:
    """A method of a module, compiled."""
    graphdef, state = nnx.split(module)

    @jax.jit
    def run(state: nnx.State, *args: ArrayLike) -> Any:
        return getattr(nnx.merge(graphdef, state), method)(*args)

    return lambda *args: run(state, *args)
