"""A worker's share of the work: one rule for every command that takes `--shard`."""

import dataclasses
import os
from collections.abc import Iterator, Mapping

from dsd_jax.errors import UserError

__all__ = ["ALL", "ShareFlags", "WorkerShare"]


@dataclasses.dataclass(frozen=True)
class WorkerShare:
    """Worker `number` of `count`, numbered from 0."""

    number: int
    count: int

    def of(self, items: int) -> range:
        """Indices of this worker's items among `items`: every `count`-th one."""
        return range(self.number, items, self.count)


ALL = WorkerShare(0, 1)
"""The share of a process that works alone."""


@dataclasses.dataclass(frozen=True)
class ShareFlags:
    """Split the work among several processes, each started with the same command.

    Attributes:
        shard: Number of this worker, counted from 0. Default: its place in the SLURM array
            (SLURM_ARRAY_TASK_ID) or in the Kubernetes Indexed Job (JOB_COMPLETION_INDEX).
        num_shards: Number of workers. Default: the size of the SLURM array
            (SLURM_ARRAY_TASK_COUNT). An Indexed Job must set it, since Kubernetes does not tell it.
    """

    shard: int | None = None
    num_shards: int | None = None

    def share(self, environment: Mapping[str, str] = os.environ) -> WorkerShare:
        """The share that the flags and the environment variables of a scheduler describe.

        Arrays may start above 0 and advance in steps: `--array=1-8` and `--array=0-14:2` both
        have the workers 0 to 7.

        Raises:
            UserError: only one of number and count is known, one of them is not a number, or the
                number is out of range.
        """
        number, count = self.shard, self.num_shards
        if number is None:
            number = next(_numbers(environment), None)
        if count is None:
            count = _integer(environment, "SLURM_ARRAY_TASK_COUNT")
        if number is None and count is None:
            return ALL
        if count is None:
            raise UserError(
                f"this is worker {number}, but the number of workers is not known; give "
                "--num_shards"
            )
        if number is None:
            if count == 1:
                return ALL
            raise UserError(
                f"there are {count} workers, but the number of this one is not known; give --shard "
                "(SLURM_ARRAY_TASK_ID and JOB_COMPLETION_INDEX are not set)"
            )
        if not 0 <= number < count:
            raise UserError(
                f"shard {number} does not exist among {count}; shards are numbered from 0 to "
                f"{count - 1}"
            )
        return WorkerShare(number, count)


def _numbers(environment: Mapping[str, str]) -> Iterator[int]:
    """This worker's number by each scheduler that has started it."""
    task = _integer(environment, "SLURM_ARRAY_TASK_ID")
    if task is not None:
        first = _integer(environment, "SLURM_ARRAY_TASK_MIN") or 0
        yield (task - first) // (_integer(environment, "SLURM_ARRAY_TASK_STEP") or 1)
    index = _integer(environment, "JOB_COMPLETION_INDEX")
    if index is not None:
        yield index


def _integer(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    if not text:
        return None
    if not text.isdecimal():
        raise UserError(f"the environment variable {name} must be a whole number, got {text!r}")
    return int(text)
