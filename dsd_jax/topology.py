"""Accelerators that a program can be compiled for on a machine that has none of them.

TPUs need `libtpu`, GPUs JAX's CUDA plugin: the extras `tpu` and `plan-gpu`. Neither needs the
accelerator or a driver.
"""

import dataclasses
import math
import os
import re

import jax
from jax.experimental import topologies

from dsd_jax.errors import UserError
from dsd_jax.extras import missing, require

__all__ = ["CHIPS", "Chip", "Topology", "devices_of", "gpu_compiler", "plan_on_cpu"]


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, by its maker's documents.

    Attributes:
        memory_gib: Memory in GiB.
        peak_tflops: Dense bfloat16 peak in TFLOP/s.
        clock_ghz: Clock in GHz.
        gb_per_s: Peak of its memory, in GB/s.
    """

    memory_gib: float
    peak_tflops: float
    clock_ghz: float
    gb_per_s: float


@dataclasses.dataclass(frozen=True)
class Gpu(Chip):
    """A GPU, with what the compiler asks of one.

    Attributes:
        name: Name by which its driver knows it.
        capability: Major number of its compute capability; the minor one is 0.
        cores: Streaming multiprocessors.
        lanes: Float32 units of each.
        l2_mib: Second-level cache in MiB.
        shared_kib: Shared memory of a core in KiB; a block has at most 1 KiB less.
    """

    name: str
    capability: int
    cores: int
    lanes: int
    l2_mib: int
    shared_kib: int

    @property
    def description(self) -> str:
        """The GPU as XLA describes it to its compiler: a `GpuTargetConfigProto` as text."""
        features = "feature_extension: ACCELERATED_FEATURES" if self.capability >= 9 else ""
        return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {(self.shared_kib - 1) * 2**10}
  shared_memory_per_core: {self.shared_kib * 2**10}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  core_count: {self.cores}
  fpus_per_core: {self.lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {round(self.gb_per_s * 1e9)}
  l2_cache_size: {self.l2_mib * 2**20}
  clock_rate_ghz: {self.clock_ghz}
  device_memory_size: {round(self.memory_gib * 2**30)}
  cuda_compute_capability {{ major: {self.capability} {features} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{self.name}"
"""


CHIPS: dict[str, Chip] = {
    "v4": Chip(32, 275, 1.05, 1228),
    "v5e": Chip(16, 197, 1.5, 819),
    "v5p": Chip(95, 459, 1.75, 2765),
    "v6e": Chip(32, 918, 1.75, 1640),
    "a100": Gpu(80, 312, 1.41, 2039, "NVIDIA A100-SXM4-80GB", 8, 108, 64, 40, 164),
    "h100": Gpu(80, 989, 1.98, 3352, "NVIDIA H100 80GB HBM3", 9, 132, 128, 50, 228),
    "h200": Gpu(141, 989, 1.98, 4800, "NVIDIA H200", 9, 132, 128, 50, 228),
}
MOST_CHIPS = 8192  # near the largest pod's 8,960; a process has memory for this many stand-ins
GPUS_OF_A_HOST = 8


@dataclasses.dataclass(frozen=True)
class Topology:
    """Accelerators to compile for.

    Attributes:
        kind: A key of `CHIPS`.
        shape: Number of chips along each axis of their network.
    """

    kind: str
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> "Topology":
        """`v5e:8x8` or `h100:8`.

        Raises:
            UserError: an unknown kind, or an impossible number of chips.
        """
        kind, _, shape = text.partition(":")
        if kind not in CHIPS or not re.fullmatch(r"[0-9]{1,6}(x[0-9]{1,6})*", shape):
            raise UserError(
                f"unknown topology {text!r}; write KIND:SHAPE as in v5e:8x8, v5p:4x4x4 or h100:8, "
                f"with KIND one of {', '.join(CHIPS)}"
            )
        topology = cls(kind, tuple(map(int, shape.split("x"))))
        if not 1 <= topology.chips <= MOST_CHIPS:
            raise UserError(
                f"the topology {text!r} has {topology.chips:,} chips; give 1 to {MOST_CHIPS:,}"
            )
        return topology

    def __str__(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    @property
    def chip(self) -> Chip:
        """One of the chips."""
        return CHIPS[self.kind]


def gpu_compiler() -> bool:
    """Whether the compiler for GPUs is installed."""
    return not missing("plan-gpu")


def plan_on_cpu(topology: Topology) -> None:
    """Keeps JAX from looking for accelerators, before it does.

    Without the compiler for GPUs, this process gets CPU devices that stand in for them.
    """
    jax.config.update("jax_platforms", "cpu")
    if isinstance(topology.chip, Gpu) and not gpu_compiler():
        jax.config.update("jax_num_cpu_devices", topology.chips)


def devices_of(topology: Topology) -> list[jax.Device]:
    """The devices of a topology; CPU devices stand in for GPUs without their compiler.

    Raises:
        UserError: the compiler is not installed or does not know the topology, or there are too few
            stand-ins.
    """
    if isinstance(topology.chip, Gpu):
        return _gpus(topology, topology.chip) if gpu_compiler() else _stand_ins(topology)
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    # The compiler takes no TPU, so several processes may use it at a time.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        return list(
            topologies.get_topology_desc(platform="tpu", topology_name=str(topology)).devices
        )
    except Exception as error:  # noqa: BLE001 - the compiler's loader raises what it likes
        require("tpu")
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"the TPU compiler does not know {topology}: {reason}") from None


def _gpus(topology: Topology, gpu: Gpu) -> list[jax.Device]:
    chips = topology.chips
    hosts = 1 if chips % GPUS_OF_A_HOST else chips // GPUS_OF_A_HOST
    found = topologies.get_topology_desc(
        platform="cuda",
        target_config=gpu.description,
        topology=f"1x{hosts}x{chips // hosts}",
    )
    return list(found.devices)


def _stand_ins(topology: Topology) -> list[jax.Device]:
    devices, count = jax.devices("cpu"), topology.chips
    if len(devices) < count:
        raise UserError(
            f"{count} devices are needed to stand in for {topology}, this process has "
            f"{len(devices)}; set XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return devices[:count]
