"""Options of loading and running the models of a pipeline."""

import dataclasses
import math
from typing import Literal, TypedDict, get_args

import jax
from jax.sharding import Mesh

from dsd_jax.config import BFLOAT16, Execution, Precision, default_execution
from dsd_jax.errors import UserError
from dsd_jax.infer.arguments import check_choice
from dsd_jax.lora import NO_MERGE
from dsd_jax.quantise import WeightKind
from dsd_jax.sharding import MeshConfig, make_mesh

__all__ = ["LoadOptions", "LoadOptionsDict", "Offload", "mesh_of"]

Offload = Literal["none", "model", "layers"]


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """Options of loading and running the models of a pipeline.

    Attributes:
        precision: dtypes of the weights and of the computation.
        execution: implementations; None chooses them for the backend.
        mesh: devices that share the work; None uses the first device alone.
        weights: hold the kernels of the transformer's blocks in few bits, "int8" or "int4", and
            those of T5's in int8. None holds weights as they are kept.
        merge_lora: add LoRAs to the weights instead of keeping them apart. Steps are faster, sums
            are rounded to the dtype of the weights, and a change of LoRAs reads the weights again.
        offload: "model" keeps one of text encoders, transformer and VAE in memory at a
            time; "layers" also keeps the blocks in host memory and moves one layer at a time.

    Raises:
        UserError: an unknown `offload` or `weights`, or LoRAs to merge into quantised weights.
    """

    precision: Precision = BFLOAT16
    execution: Execution | None = None
    mesh: Mesh | None = None
    weights: WeightKind | None = None
    merge_lora: bool = False
    offload: Offload = "none"

    def __post_init__(self) -> None:
        check_choice("offload", self.offload, get_args(Offload), {"sequential": "layers"})
        if self.weights is not None:
            check_choice("weights", self.weights, get_args(WeightKind))
            if self.merge_lora:
                raise UserError(NO_MERGE)

    @property
    def stays(self) -> bool:
        """Whether models stay in memory between their uses."""
        return self.offload == "none"

    @property
    def running(self) -> Execution:
        """Implementations in use."""
        execution = self.execution or default_execution(jax.default_backend())
        if self.offload == "layers":
            return dataclasses.replace(execution, scan_layers=True, stream_layers=True)
        return execution


class LoadOptionsDict(TypedDict, total=False):
    """`LoadOptions` as keyword arguments."""

    precision: Precision
    execution: Execution | None
    mesh: Mesh | None
    weights: WeightKind | None
    merge_lora: bool
    offload: Offload


def mesh_of(config: MeshConfig, device: str | None = None) -> Mesh | None:
    """The mesh of a configuration; None for the first device alone.

    Args:
        config: sizes of the axes.
        device: cpu, gpu or tpu; None takes what JAX prefers.

    Raises:
        UserError: no such device, or not enough of them for the mesh.
    """
    if device == "cpu":  # before JAX looks for devices, since kernels depend on its first choice
        jax.config.update("jax_platforms", "cpu")
    try:
        devices = jax.devices(device)
    except RuntimeError:
        found = ", ".join(sorted({d.platform for d in jax.devices()}))
        raise UserError(f"there is no {device} device here; JAX sees: {found}") from None
    sizes = dataclasses.astuple(config)
    if -1 not in sizes:
        wanted = math.prod(sizes)
        if wanted > len(devices):
            raise UserError(f"the mesh needs {wanted} devices, but JAX sees {len(devices)}")
        devices = devices[:wanted]
    if len(devices) == 1 and devices[0] == jax.devices()[0]:
        return None
    return make_mesh(config, devices)
