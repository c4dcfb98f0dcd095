"""Chooses the records of a step's batch: datasets and tasks by weight, one size per batch.

A *portion* is a dataset, or one task of it. A *stream* is the records of one size of a portion, in
an order that is shuffled anew in every epoch; an epoch of a stream holds each of its records once.
A batch has one size. Sizes take turns in proportion to their number of records (by weight, if
portions are weighted), and the samples of a batch are divided among the portions by weight. A batch
that reaches the end of a stream's epoch takes its remaining samples from the next epoch, so no
record is left out.

Without weights, all portions are one pool: one shuffle over all, one epoch over all.
"""

import dataclasses
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dsd_jax.data.load.encoded import EncodedStore
from dsd_jax.data.load.order import Interleave, key_of, permute
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.errors import UserError, did_you_mean
from dsd_jax.types import Int

__all__ = ["ORDER_VERSION", "Mixture", "Plan", "Portion", "by_task", "nearest_size"]

ORDER_VERSION = 1  # changes when the same seed gives another order
_SPEC = re.compile(r"(?P<path>.+?)(?:#(?P<task>[a-z][a-z0-9_-]*))?(?:=(?P<weight>[0-9.]+))?")
_PLANS_KEPT = 16

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Portion:
    """A part of the training data.

    Attributes:
        store: a dataset.
        task: only its records of this task; None for all.
        weight: share of the samples, relative to other portions. If all are None, each counts by
            its number of records.
        encoded: moments and embeddings to load instead of pixels.
    """

    store: PairStore
    task: str | None = None
    weight: float | None = None
    encoded: EncodedStore | None = None

    def __post_init__(self) -> None:
        if self.weight is not None and not self.weight > 0:
            raise UserError(f"the weight of {self.store.path} must be positive, got {self.weight}")
        if self.encoded is not None and self.encoded.dataset != self.store.fingerprint:
            raise UserError(
                f"{self.encoded.path} was encoded from another dataset than {self.store.path}; "
                "encode this one with `dsd data encode`"
            )

    @classmethod
    def parse(cls, text: str) -> "Portion":
        """Opens `PATH`, `PATH#TASK`, `PATH=WEIGHT` or `PATH#TASK=WEIGHT`.

        Raises:
            UserError: the text is not of this form, or there is no such dataset or task.
        """
        exact = Path(text).is_dir()  # a folder may have # or = in its name
        parts = _SPEC.fullmatch(text)
        if exact or parts is None:
            return cls(PairStore.open(text))
        try:
            weight = None if parts["weight"] is None else float(parts["weight"])
        except ValueError:
            raise UserError(f"{text!r}: the weight after = must be a number") from None
        return cls(PairStore.open(parts["path"]), parts["task"], weight)

    def describe(self) -> dict[str, object]:
        """Everything that the order depends on, as JSON."""
        return {"dataset": self.store.fingerprint, "task": self.task, "weight": self.weight}

    def records(self) -> Int[np.ndarray, " n"]:
        """Numbers of its records.

        Raises:
            UserError: the dataset has no records of this task.
        """
        found = self.store.records_of(self.task)
        if not len(found):
            tasks = self.store.manifest.tasks
            raise UserError(
                f"{self.store.path} has no task {self.task!r}{did_you_mean(str(self.task), tasks)} "
                f"(it has {', '.join(tasks)})"
            )
        return found


def by_task(portions: Sequence[Portion], shares: Mapping[str, float]) -> list[Portion]:
    """Divides whole datasets by task, and weights each task by its share of the samples.

    Tasks without a share are left out. A task that is in several datasets is drawn from them in
    proportion to their records.

    Raises:
        UserError: A dataset has a task or a weight of its own already, or none has a task.
    """
    told = " ".join(f"{task}={share:g}" for task, share in shares.items())
    for portion in portions:
        if portion.task is not None or portion.weight is not None:
            raise UserError(
                f"the recipe takes shares of tasks ({told}), but {portion.store.path} is given a "
                "task or a weight of its own; leave that out, or set `--tasks None`"
            )
    found = []
    for task, share in shares.items():
        counts = [portion.store.manifest.tasks.get(task, 0) for portion in portions]
        if not any(counts):
            others = " ".join(f"{name}={own:g}" for name, own in shares.items() if name != task)
            raise UserError(
                f"no dataset has the task {task!r}, and the recipe takes a share of it ({told}); "
                f"give one that has, or leave it out: `--tasks {others or None}`"
            )
        found += [
            dataclasses.replace(portion, task=task, weight=share * count / sum(counts))
            for portion, count in zip(portions, counts, strict=True)
            if count
        ]
    return found


def nearest_size(shapes: Int[np.ndarray, "N 2"], sizes: Sequence[Size]) -> Int[np.ndarray, " N"]:
    """The index of the size nearest to each picture in aspect ratio, on a logarithmic scale.

    Args:
        shapes: height and width of pictures.
        sizes: heights and widths to choose from.
    """
    ratios = np.log([height / width for height, width in sizes])
    own = np.log(shapes[:, 0] / shapes[:, 1])
    return np.abs(own[:, None] - ratios[None, :]).argmin(1)


class _Stream(NamedTuple):
    """The records of one size in one pool."""

    key: int
    portion: Int[np.ndarray, " n"]
    record: Int[np.ndarray, " n"]

    def at(self, positions: Int[np.ndarray, " m"]) -> Int[np.ndarray, "m 2"]:
        """(portion, record) at positions of the endless stream."""
        size = len(self.record)
        epochs, offsets = np.divmod(positions, size)
        members = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            own = epochs == epoch
            members[own] = permute(offsets[own], size, key_of(self.key, int(epoch)))
        return np.stack([self.portion[members], self.record[members]], axis=-1)


class Plan(NamedTuple):
    """The global batch of one step: its size, and the portion and record of each sample."""

    size: Size
    samples: Int[np.ndarray, "B 2"]


class Mixture:
    """Plans of batches over portions."""

    def __init__(
        self, portions: Sequence[Portion], sizes: Sequence[Size], *, seed: int, batch: int
    ) -> None:
        """Sorts records into streams.

        Args:
            portions: at least one.
            sizes: height and width of a frame in pixels; a record goes to the size nearest to its
                target's aspect ratio.
            seed: seed of the shuffles.
            batch: samples per step, over all hosts.

        Raises:
            UserError: nothing to load, an unknown task, weights for some portions only, or
                impossible sizes.
        """
        self.portions, self.sizes, self.batch = tuple(portions), tuple(sizes), batch
        if not portions:
            raise UserError("there is no dataset to load; give at least one")
        if not sizes or min(map(min, sizes)) < 1:
            raise UserError(f"sizes must be pairs of a height and a width, got {list(sizes)}")
        if len({height / width for height, width in sizes}) < len(sizes):
            raise UserError(
                f"two of the sizes {list(sizes)} have the same aspect ratio; a record could not "
                "tell which is meant"
            )
        if batch < 1:
            raise UserError(f"the batch must be at least 1, got {batch}")
        weighted = [portion.weight is not None for portion in portions]
        if any(weighted) and not all(weighted):
            lacks = portions[weighted.index(False)].store.path
            raise UserError(f"{lacks} has no weight but others have; give all of them one, or none")
        pools = [[i] for i in range(len(portions))] if any(weighted) else [range(len(portions))]
        self.pool_sizes: list[int] = []
        weights: list[list[Fraction]] = []  # weights of the streams, [pool][size]
        self._streams: list[list[_Stream]] = []
        for members in pools:
            streams = self._sort(members, seed)
            total = sum(len(stream.record) for stream in streams)
            # 0.1 means a tenth, not the nearest binary number.
            share = Fraction(str(portions[members[0]].weight or 1))
            weights.append([share * len(stream.record) / total for stream in streams])
            self.pool_sizes.append(total)
            self._streams.append(streams)
        by_size = [sum(column, Fraction()) for column in zip(*weights, strict=True)]
        self._used = [k for k, weight in enumerate(by_size) if weight]
        self._turns = Interleave(tuple(by_size[k] for k in self._used))
        self._pools_of = {
            k: [pool for pool in range(len(pools)) if weights[pool][k]] for k in self._used
        }
        self._dealt = {
            k: Interleave(tuple(weights[pool][k] for pool in self._pools_of[k])) for k in self._used
        }
        self._plans: OrderedDict[int, Plan] = OrderedDict()
        self._lock = threading.Lock()

    def _sort(self, members: Sequence[int], seed: int) -> list[_Stream]:
        """Streams of a pool, one per size, empty ones included."""
        records = [self.portions[i].records() for i in members]
        portion = np.repeat(np.asarray(members, np.int64), [len(own) for own in records])
        record = np.concatenate(records)
        shapes = np.concatenate(
            [
                self.portions[i].store.target_sizes[own]
                for i, own in zip(members, records, strict=True)
            ]
        )
        size = nearest_size(shapes, self.sizes)
        described = [self.portions[i].describe() for i in members]
        return [
            _Stream(key_of(seed, described, self.sizes[k]), portion[size == k], record[size == k])
            for k in range(len(self.sizes))
        ]

    def plan(self, step: int) -> Plan:
        """The batch of a step. Safe to call from many threads."""
        with self._lock:  # all threads want the same few steps, and one of them computes each
            plan = self._plans.get(step)
            if plan is None:
                plan = self._plans[step] = self._work_out(step)
                if len(self._plans) > _PLANS_KEPT:
                    self._plans.popitem(last=False)
            return plan

    def _work_out(self, step: int) -> Plan:
        ((turn, number),) = self._turns.run(step, 1)
        size = self._used[turn]
        pools = self._pools_of[size]
        dealt = list(self._dealt[size].run(number * self.batch, self.batch))
        source = np.asarray([stream for stream, _ in dealt])
        position = np.asarray([position for _, position in dealt], np.int64)
        samples = np.empty((self.batch, 2), np.int64)
        for stream, pool in enumerate(pools):
            own = source == stream
            if own.any():
                samples[own] = self._streams[pool][size].at(position[own])
        return Plan(self.sizes[size], samples)

    def neighbours(self, step: int, row: int) -> Int[np.ndarray, "n 2"]:
        """The records after a sample in its stream, which replace it if it cannot be read."""
        ((turn, number),) = self._turns.run(step, 1)
        size = self._used[turn]
        ((stream, position),) = self._dealt[size].run(number * self.batch + row, 1)
        own = self._streams[self._pools_of[size][stream]][size]
        return own.at(position + 1 + np.arange(len(own.record) - 1))

    def epochs(self, step: int) -> list[float]:
        """Epochs of each pool that the samples before a step make up.

        One number without weights, else one per portion.
        """
        seen = [0] * len(self.pool_sizes)
        for turn, batches in enumerate(self._turns.counts(step)):
            size = self._used[turn]
            counts = self._dealt[size].counts(batches * self.batch)
            for pool, count in zip(self._pools_of[size], counts, strict=True):
                seen[pool] += count
        return [count / size for count, size in zip(seen, self.pool_sizes, strict=True)]
