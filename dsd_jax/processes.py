"""Joins several processes to one run and lets them agree on numbers and errors."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from dsd_jax.errors import UserError
from dsd_jax.progress import phase

__all__ = ["ClusterConfig", "agree", "barrier", "busy", "first_process", "join", "on_first", "say"]


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """The processes of a run. Give all three, or none if SLURM, GKE or the TPU VM tells them.

    Attributes:
        coordinator_address: Host and port of process 0.
        num_processes: Number of processes.
        process_id: Number of this process, from 0.
    """

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self) -> None:
        given = [getattr(self, field.name) is not None for field in dataclasses.fields(self)]
        if any(given) and not all(given):
            raise UserError(
                "give coordinator_address, num_processes and process_id together, or none of them"
            )


def join(config: ClusterConfig) -> None:
    """Connects to the other processes, if there are any. Call it before JAX looks for devices.

    Raises:
        UserError: the others cannot be reached.
    """
    if config.coordinator_address is None and not _in_cluster(os.environ):
        return
    # Without arguments JAX finds out from the environment; with them it must not.
    found = config.coordinator_address is None
    try:
        jax.distributed.initialize(
            config.coordinator_address,
            config.num_processes,
            config.process_id,
            cluster_detection_method=None if found else "deactivate",
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"cannot join the other processes: {reason}; give --coordinator_address HOST:PORT, "
            "--num_processes and --process_id"
        ) from error


def _in_cluster(environment: os._Environ[str] | dict[str, str]) -> bool:
    """Whether this is one of several processes that JAX can find by itself."""
    if environment.get("JAX_PLATFORMS", "").startswith("cpu"):
        tpu = False
    else:
        hosts = environment.get("TPU_WORKER_HOSTNAMES", "localhost")  # GKE tells all of them
        chips = any(Path(path).exists() for path in ("/dev/accel0", "/dev/vfio/0"))
        tpu = "," in hosts or (chips and "TPU_WORKER_HOSTNAMES" not in environment)
    slurm = "SLURM_PROCID" in environment and environment.get("SLURM_NTASKS", "1") != "1"
    return tpu or slurm


def first_process() -> bool:
    """Whether this is the process that writes files and messages."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line on standard error, from the first process alone."""
    if first_process():
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - progress of a long job


@contextlib.contextmanager
def busy(title: str) -> Iterator[None]:
    """Shows what the run is busy with (`dsd_jax.progress.phase`), from the first process alone."""
    with phase(title) if first_process() else contextlib.nullcontext():
        yield


def agree(number: int) -> int:
    """Gives every process the number of the first one."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def barrier(name: str) -> None:
    """Waits until every process has come to this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def on_first(check: Callable[[], None]) -> None:
    """Runs a check on the first process. If it fails there, it fails on all.

    Raises:
        UserError: the check failed, here or on the first process.
    """
    error: UserError | None = None
    if first_process():
        try:
            check()
        except UserError as caught:
            error = caught
    if agree(int(error is not None)):
        raise error or UserError("the first process has stopped; it says why")
