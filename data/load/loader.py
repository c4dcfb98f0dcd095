"""Loads batches of pairs by step.

The global batch of a step is a function of (datasets, mixture, sizes, seed, batch size, step) and
of nothing else: not of hosts, threads, or earlier batches. So there is no state to save; a run that
was stopped resumes at `start_step`, on any number of hosts.

The choice of the text and of what is dropped is a hash of (seed, step, id), so it does not depend
on a sample's place in the batch.
"""

import dataclasses
import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple

import grain
import numpy as np

from dsd_jax.data.load.encoded import Embedding, Moments
from dsd_jax.data.load.mixture import ORDER_VERSION, Mixture, Portion
from dsd_jax.data.load.order import draws
from dsd_jax.data.pairs.record import PairRecord
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.errors import UserError
from dsd_jax.images import fit, open_image
from dsd_jax.structured import json_value
from dsd_jax.types import Bool, Int, UInt8

__all__ = ["Loader", "LoaderConfig", "PairBatch", "Reading"]

Size = tuple[int, int]
_ENDLESS = 2**60  # samples; Grain wants a length


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """The settings that turn pairs into samples. The numbers of a run depend on them.

    Attributes:
        seed: seed of the order and of the draws.
        sizes: height and width of a frame in pixels. A batch has one size; a record goes to the
            size nearest to its target's aspect ratio.
        instruction: share of the pairs with both texts that show their instruction, not their
            caption.
        drop_text, drop_image, drop_both: shares of the samples without text, without reference
            image, and without both; exclusive, as in InstructPix2Pix (section 3.2.1).
    """

    seed: int = 0
    sizes: tuple[Size, ...] = ((512, 512),)
    instruction: float = 0.0
    drop_text: float = 0.0
    drop_image: float = 0.0
    drop_both: float = 0.0

    def __post_init__(self) -> None:
        shares = self.drop_text, self.drop_image, self.drop_both
        if min(shares) < 0 or sum(shares) > 1:
            raise UserError(f"dropout shares must lie in [0, 1] and sum to at most 1; got {shares}")
        if not 0 <= self.instruction <= 1:
            raise UserError(f"instruction must be a share in [0, 1], got {self.instruction}")


@dataclasses.dataclass(frozen=True)
class Reading:
    """The way records are read. The numbers of a run do not depend on it.

    Attributes:
        threads: threads that read and decode. With 0, a record is read when it is asked for.
        buffer: samples that are read ahead.
        skip_bad: put the next record of the stream in the place of one that cannot be read, and
            list it in the batch, instead of stopping the run.
    """

    threads: int = 16
    buffer: int = 32
    skip_bad: bool = False


@dataclasses.dataclass(frozen=True)
class PairBatch:
    """This host's part of the batch of a step: `b` samples of `global_size`.

    After `prefetch_to_mesh`, arrays hold the whole batch; ids and texts stay those of the host.

    Attributes:
        step: step of the batch.
        global_size: samples of the batch over all hosts.
        rows: positions of these samples in the batch, ascending.
        size: height and width of a frame in pixels.
        ids: ids of these records.
        texts: caption or instruction, as drawn; kept even if the text is dropped.
        drop_text: samples to be trained with the empty prompt instead.
        drop_image: samples to be trained with zero condition tokens instead.
        reference, target: pixels; None if moments are given.
        canvas, condition: moments of [reference | target] and [reference | black].
        text: embeddings of `texts`.
        skipped: ids of records that could not be read and were replaced.
    """

    step: int
    global_size: int
    rows: Int[np.ndarray, " own"]
    size: Size
    ids: list[str]
    texts: list[str]
    drop_text: Bool[Any, " b"]
    drop_image: Bool[Any, " b"]
    reference: UInt8[Any, "b H W 3"] | None = None
    target: UInt8[Any, "b H W 3"] | None = None
    canvas: Moments | None = None
    condition: Moments | None = None
    text: Embedding | None = None
    skipped: tuple[str, ...] = ()


class _Sample(NamedTuple):
    """One sample of a batch; `arrays` by the names of `PairBatch`."""

    id: str
    text: str
    drop_text: bool
    drop_image: bool
    arrays: dict[str, Any]
    skipped: tuple[str, ...]


class Loader:
    """Endless batches, beginning at a step.

        loader = Loader([PairStore.open("pairs")], LoaderConfig(seed=1), batch=160)
        for batch in loader: ...

    Grain's threads read and decode at most `buffer` samples ahead, and only those of this host.
    Records are decoded as late as possible; a sample of two 512 x 512 frames takes 1.5 MB.
    """

    def __init__(
        self,
        stores: Sequence[PairStore | Portion],
        config: LoaderConfig,
        *,
        batch: int,
        host: int = 0,
        hosts: int = 1,
        rows: Sequence[int] | Int[np.ndarray, " b"] | None = None,
        start_step: int = 0,
        reading: Reading = Reading(),
    ) -> None:
        """Opens only the indices.

        Args:
            stores: datasets, or parts of them with weights.
            config: see `LoaderConfig`.
            batch: samples per step, over all hosts.
            host, hosts: this host loads part `host` of `hosts` equal parts of every batch.
            rows: instead, the samples of every batch that it loads (see
                `dsd_jax.data.load.prefetch.mesh_rows`).
            start_step: first step.
            reading: the way records are read.

        Raises:
            UserError: the batch does not divide over the hosts, `Mixture` refuses the datasets, or
                encoded data has other sizes.
        """
        portions = [store if isinstance(store, Portion) else Portion(store) for store in stores]
        self.config, self.batch, self.start_step = config, batch, start_step
        self.mixture = Mixture(portions, config.sizes, seed=config.seed, batch=batch)
        self.portions = self.mixture.portions
        self.rows = _rows(batch, host, hosts) if rows is None else np.asarray(rows, np.int64)
        self._options = grain.ReadOptions(reading.threads, reading.buffer if reading.threads else 0)
        self._skip_bad = reading.skip_bad
        self._encoded, self._embedded = _check_encoded(self.portions, config.sizes)

    @property
    def identity(self) -> dict[str, object]:
        """Everything that a step's batch depends on, as JSON: equal identities load the same."""
        return {
            "order_version": ORDER_VERSION,
            "batch": self.batch,
            "portions": [portion.describe() for portion in self.portions],
            **json_value(dataclasses.asdict(self.config)),
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 of `identity`."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def check_resume(self, saved: Mapping[str, object]) -> None:
        """Refuses to resume a run that was loading other data.

        Args:
            saved: `identity` of that run.

        Raises:
            UserError: names what differs.
        """
        now = self.identity
        for name in sorted(now | dict(saved)):
            if now.get(name) != saved.get(name):
                raise UserError(
                    f"the data is not what the saved run was loading: {name} was "
                    f"{saved.get(name)}, now it is {now.get(name)}; use that, or start anew"
                )

    @property
    def null_text(self) -> Embedding | None:
        """Embedding of the empty prompt, where embeddings are loaded."""
        encoded = self.portions[0].encoded
        return encoded.null if encoded is not None else None

    def size_of(self, step: int) -> Size:
        """Height and width of the frames of a step, in pixels."""
        return self.mixture.plan(step).size

    def ids_of(self, step: int) -> list[str]:
        """Ids of the global batch of a step; nothing is read or decoded."""
        samples = self.mixture.plan(step).samples
        return [self._id(portion, record) for portion, record in samples.tolist()]

    def epochs_at(self, step: int) -> list[float]:
        """Epochs completed before a step: one number, or one per weighted portion."""
        return self.mixture.epochs(step)

    def __iter__(self) -> Generator[PairBatch, None, None]:
        """Yields batches from `start_step` on, without end.

        Raises:
            UserError: a record cannot be read; the step, the record and its shard are named.
        """
        dataset = grain.MapDataset.source(_Source(self)).to_iter_dataset(self._options)
        with closing(iter(dataset)) as samples:
            step = self.start_step
            while True:
                yield self._batch(step, list(islice(samples, len(self.rows))))
                step += 1

    def _batch(self, step: int, samples: list[_Sample]) -> PairBatch:
        arrays = {
            name: _stack([sample.arrays[name] for sample in samples]) for name in samples[0].arrays
        }
        return PairBatch(
            step,
            self.batch,
            self.rows,
            self.mixture.plan(step).size,
            [sample.id for sample in samples],
            [sample.text for sample in samples],
            np.asarray([sample.drop_text for sample in samples]),
            np.asarray([sample.drop_image for sample in samples]),
            skipped=tuple(name for sample in samples for name in sample.skipped),
            **arrays,
        )

    def sample(self, step: int, row: int) -> _Sample:
        """Sample `row` of the global batch of a step."""
        plan = self.mixture.plan(step)
        portion, record = plan.samples[row].tolist()
        try:
            return self._load(step, plan.size, portion, record)
        except UserError as error:
            if not self._skip_bad:
                raise UserError(
                    f"step {step}: {error}; --skip_bad_records puts the next record in its place"
                ) from None
        skipped = [self._id(portion, record)]
        for portion, record in self.mixture.neighbours(step, row).tolist():
            try:
                sample = self._load(step, plan.size, portion, record)
            except UserError:
                skipped.append(self._id(portion, record))
            else:
                return sample._replace(skipped=tuple(skipped))
        raise UserError(f"step {step}: none of {len(skipped)} records can be read; verify the data")

    def _id(self, portion: int, record: int) -> str:
        return str(self.portions[portion].store.index["id"][record])

    def _load(self, step: int, size: Size, portion: int, record: int) -> _Sample:
        own, config = self.portions[portion], self.config
        pair = own.store[record] if own.encoded is None else own.encoded[record]
        of_text, of_drop = draws(config.seed, step, pair.id)
        instructed = bool(pair.instruction) and (not pair.caption or of_text < config.instruction)
        arrays: dict[str, Any]
        if isinstance(pair, PairRecord):
            arrays = {
                "reference": self._pixels(own, pair.id, pair.reference, size),
                "target": self._pixels(own, pair.id, pair.target, size),
            }
        else:
            arrays = {"canvas": pair.canvas, "condition": pair.condition}
            if self._embedded:
                arrays["text"] = pair.instruction_text if instructed else pair.caption_text
        text_end = config.drop_text
        image_end = text_end + config.drop_image
        both_end = image_end + config.drop_both
        return _Sample(
            pair.id,
            pair.instruction if instructed else pair.caption,
            drop_text=of_drop < text_end or image_end <= of_drop < both_end,
            drop_image=text_end <= of_drop < both_end,
            arrays=arrays,
            skipped=(),
        )

    @staticmethod
    def _pixels(portion: Portion, name: str, data: bytes, size: Size) -> UInt8[np.ndarray, "H W 3"]:
        try:
            return np.asarray(fit(open_image(data), *size))
        except UserError as error:
            raise UserError(f"record {name!r} of {portion.store.path}: {error}") from None


class _Source:
    """Grain's data source: this host's samples, counted from the start step."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, number: Any) -> _Sample:
        step, own = divmod(int(number), len(self._loader.rows))
        return self._loader.sample(self._loader.start_step + step, int(self._loader.rows[own]))


def _rows(batch: int, host: int, hosts: int) -> Int[np.ndarray, " b"]:
    if batch % hosts:
        near = max(hosts, round(batch / hosts) * hosts)
        raise UserError(
            f"a batch of {batch} does not divide over {hosts} hosts; the nearest that does: {near}"
        )
    if not 0 <= host < hosts:
        raise UserError(f"host must be from 0 to {hosts - 1}, got {host}")
    own = batch // hosts
    return np.arange(host * own, (host + 1) * own)


def _stack(values: list[Any]) -> Any:
    """Stacks arrays, or named tuples of arrays, along a batch axis."""
    if isinstance(values[0], tuple):
        kind = type(values[0])
        return kind(*(np.stack(column) for column in zip(*values, strict=True)))
    return np.stack(values)


def _check_encoded(portions: Sequence[Portion], sizes: Sequence[Size]) -> tuple[bool, bool]:
    """Checks the encoded data; returns whether moments, and whether embeddings, are loaded."""
    encoded = [portion.encoded for portion in portions]
    stores = [store for store in encoded if store is not None]
    if not stores:
        return False, False
    if len(stores) < len(encoded):
        lacks = portions[encoded.index(None)].store.path
        raise UserError(f"{lacks} is not encoded but others are; encode all of them, or none")
    first = stores[0]
    for store in stores:
        if store.binding.sizes != tuple(sizes):
            raise UserError(
                f"{store.path} was encoded at sizes {list(store.binding.sizes)}, but the sizes "
                f"asked for are {list(sizes)}; encode again, or ask for those"
            )
        alike = ("dtype", "autoencoder", "text", "text_tokens")
        if any(getattr(store.binding, n) != getattr(first.binding, n) for n in alike):
            raise UserError(
                f"{store.path} and {first.path} were encoded with different weights, dtypes or "
                "lengths of texts"
            )
    return True, first.binding.text is not None
