"""The loader: what a step loads depends on nothing but the step."""

import dataclasses
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from dsd_jax.data.load.loader import Loader, LoaderConfig, PairBatch, Reading
from dsd_jax.data.load.mixture import Portion, by_task
from dsd_jax.data.load.prefetch import mesh_rows, prefetch_to_mesh, to_mesh
from dsd_jax.data.pairs.record import PairRecord, png_bytes
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.data.pairs.writer import PairWriter
from dsd_jax.errors import UserError
from dsd_jax.images import fit, open_image
from dsd_jax.sharding import LOGICAL_TO_MESH, MeshConfig, make_mesh
from tests.tiny_pairs import write_pairs

ROOT = Path(__file__).parents[3]
SHAPES = ((32, 32), (32, 32), (24, 40), (24, 40), (24, 40), (40, 24), (33, 31))
SIZES = ((32, 32), (24, 40), (40, 24))
CONFIG = LoaderConfig(seed=3, sizes=((32, 32),))
DROPPING = LoaderConfig(
    seed=4, sizes=SIZES, instruction=0.5, drop_text=0.2, drop_image=0.1, drop_both=0.3
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    """49 pairs of three aspect ratios and two tasks."""
    path = tmp_path_factory.mktemp("loader") / "pairs"
    return write_pairs(path, 49, shapes=SHAPES, tasks=("identity", "identity", "relight"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    """10 more pairs."""
    return write_pairs(tmp_path_factory.mktemp("loader") / "other", 10, first=100)


def take(loader: Loader, count: int) -> list[PairBatch]:
    return list(islice(loader, count))


def global_ids(loader: Loader, steps: range) -> list[str]:
    return [name for step in steps for name in loader.ids_of(step)]


def assert_same(one: PairBatch, other: PairBatch) -> None:
    for field in dataclasses.fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


# Order


def test_every_record_once_per_epoch_in_another_order_each_time(store: PairStore):
    loader = Loader([store], CONFIG, batch=7)
    epochs = [global_ids(loader, range(7 * e, 7 * e + 7)) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(store.index["id"])
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != list(store.index["id"])
    assert loader.epochs_at(21) == [3.0]


def test_an_epoch_that_does_not_fill_its_last_batch_goes_on_with_the_next(store: PairStore):
    loader = Loader([store], CONFIG, batch=6)
    stream = global_ids(loader, range(49))
    for epoch in range(6):
        assert sorted(stream[49 * epoch : 49 * epoch + 49]) == sorted(store.index["id"])


def test_buckets_have_one_size_and_lose_no_record(store: PairStore):
    loader = Loader([store], DROPPING, batch=5)
    by_size: dict[Any, list[str]] = {}
    for step in range(49):  # 5 epochs
        by_size.setdefault(loader.size_of(step), []).extend(loader.ids_of(step))
    assert {size: len(ids) for size, ids in by_size.items()} == {
        (32, 32): 5 * 21,
        (24, 40): 5 * 21,
        (40, 24): 5 * 7,
    }
    for ids in by_size.values():
        records = len(ids) // 5
        for epoch in range(5):
            assert len(set(ids[records * epoch : records * epoch + records])) == records
    assert Counter(global_ids(loader, range(49))) == dict.fromkeys(store.index["id"], 5)


def test_a_weighted_mixture_keeps_its_proportions_and_every_epoch(
    store: PairStore, other: PairStore
):
    portions = [
        Portion(store, "relight", 0.3),
        Portion(store, "identity", 0.1),
        Portion(other, None, 0.6),
    ]
    loader = Loader(portions, CONFIG, batch=10)
    tasks = dict(zip(store.index["id"], store.index["task"], strict=True))
    for step in range(30):
        found = Counter(tasks.get(name, "other") for name in loader.ids_of(step))
        assert found == {"relight": 3, "identity": 1, "other": 6}
    ids = global_ids(loader, range(64))
    for records, task in ((16, "relight"), (33, "identity"), (10, "other")):
        own = [name for name in ids if tasks.get(name, "other") == task]
        for start in range(0, len(own) - records, records):
            assert len(set(own[start : start + records])) == records
    np.testing.assert_allclose(loader.epochs_at(64), [192 / 16, 64 / 33, 384 / 10])


def test_tasks_get_their_shares_over_all_datasets(store: PairStore, other: PairStore):
    portions = by_task([Portion(store), Portion(other)], {"relight": 3.0, "identity": 1.0})
    assert [(portion.store, portion.task) for portion in portions] == [
        (store, "relight"),
        (store, "identity"),
        (other, "identity"),
    ]
    loader = Loader(portions, CONFIG, batch=8)
    tasks = Counter(
        "relight" if portion == 0 else "identity"
        for step in range(20)
        for portion, _ in loader.mixture.plan(step).samples.tolist()
    )
    assert tasks == {"relight": 120, "identity": 40}


def test_shares_of_tasks_that_the_data_cannot_give_are_refused(store: PairStore):
    with pytest.raises(
        UserError, match=r"has the task 'depth', .*leave it out: `--tasks relight=1`"
    ):
        by_task([Portion(store)], {"depth": 2.0, "relight": 1.0})
    with pytest.raises(UserError, match=r"takes shares of tasks \(relight=1\), but .* a weight of"):
        by_task([Portion(store, weight=2.0)], {"relight": 1.0})


def test_a_mixture_with_buckets_keeps_both(store: PairStore, other: PairStore):
    loader = Loader([Portion(store, weight=1), Portion(other, weight=3)], DROPPING, batch=4)
    steps = 300
    ids = [loader.ids_of(step) for step in range(steps)]
    own = Counter(name for batch in ids for name in batch)
    share = sum(count for name, count in own.items() if name in store.index["id"]) / (4 * steps)
    assert share == pytest.approx(1 / 4, abs=0.005)
    # `other` is square throughout, and squares are 3/7 of `store`
    square = sum(loader.size_of(step) == (32, 32) for step in range(steps)) / steps
    assert square == pytest.approx((3 / 7) / 4 + 3 / 4, abs=0.01)
    counts = [own[name] for name in store.index["id"]]
    assert max(counts) - min(counts) <= 2


def test_stores_without_weights_are_one_pool(store: PairStore, other: PairStore):
    loader = Loader([store, other], CONFIG, batch=59)
    assert sorted(loader.ids_of(0)) == sorted([*store.index["id"], *other.index["id"]])
    assert sorted(loader.ids_of(1)) == sorted(loader.ids_of(0))


def test_the_order_follows_the_records_and_not_the_folder(store: PairStore, tmp_path: Path):
    shutil.copytree(store.path, tmp_path / "moved")
    loader = Loader([store], CONFIG, batch=7)
    moved = Loader([PairStore.open(tmp_path / "moved")], CONFIG, batch=7)
    assert moved.ids_of(11) == loader.ids_of(11)
    assert moved.identity == loader.identity
    reseeded = Loader([store], dataclasses.replace(CONFIG, seed=4), batch=7)
    assert reseeded.ids_of(11) != loader.ids_of(11)


# Hosts, threads, resuming


@pytest.mark.parametrize(("hosts", "threads"), [(1, 0), (1, 5), (2, 3), (3, 16), (6, 0)])
def test_resuming_on_other_hosts_and_threads_loads_the_same(
    store: PairStore, hosts: int, threads: int
):
    reference = take(Loader([store], DROPPING, batch=6), 12)
    resumed = [
        take(
            Loader(
                [store],
                DROPPING,
                batch=6,
                host=host,
                hosts=hosts,
                start_step=5,
                reading=Reading(threads, buffer=4),
            ),
            7,
        )
        for host in range(hosts)
    ]
    for number, whole in enumerate(reference[5:]):
        parts = [batches[number] for batches in resumed]
        assert {part.step for part in parts} == {whole.step}
        assert whole.ids == Loader([store], DROPPING, batch=6).ids_of(whole.step)
        for name in ("ids", "texts", "drop_text", "drop_image", "reference", "target", "rows"):
            joined = [row for part in parts for row in getattr(part, name)]
            np.testing.assert_array_equal(joined, getattr(whole, name), err_msg=name)


def test_draws_belong_to_the_sample_and_not_to_its_place(store: PairStore):
    whole = take(Loader([store], DROPPING, batch=14), 4)
    rows = [13, 2, 5]
    for batch, part in zip(
        whole, take(Loader([store], DROPPING, batch=14, rows=rows), 4), strict=True
    ):
        for name in ("texts", "drop_text", "drop_image", "target"):
            np.testing.assert_array_equal(
                getattr(part, name), [getattr(batch, name)[row] for row in rows]
            )


def test_dropout_is_exclusive_and_in_proportion(store: PairStore):
    batches = take(Loader([store], dataclasses.replace(DROPPING, sizes=((8, 8),)), batch=49), 40)
    text = np.concatenate([batch.drop_text for batch in batches])
    image = np.concatenate([batch.drop_image for batch in batches])
    shares = [(text & ~image).mean(), (image & ~text).mean(), (text & image).mean()]
    np.testing.assert_allclose(shares, [0.2, 0.1, 0.3], atol=0.03)
    moved = [words.startswith("move") for batch in batches for words in batch.texts]
    assert np.mean(moved) == pytest.approx(0.5, abs=0.03)


def test_a_sample_is_its_record(store: PairStore):
    loader = Loader([store], DROPPING, batch=4)
    numbers = {name: number for number, name in enumerate(store.index["id"])}
    for batch in take(loader, 6):
        assert batch.size == loader.size_of(batch.step)
        for row, name in enumerate(batch.ids):
            record = store[numbers[name]]
            assert batch.texts[row] in {record.caption, record.instruction}
            for role in ("reference", "target"):
                picture = fit(open_image(getattr(record, role)), *batch.size)
                np.testing.assert_array_equal(getattr(batch, role)[row], np.asarray(picture))


def test_going_on_with_other_data_is_refused(store: PairStore, other: PairStore):
    saved = Loader([store], CONFIG, batch=6).identity
    Loader([store], CONFIG, batch=6, host=1, hosts=2, reading=Reading(0)).check_resume(saved)
    for loader, difference in (
        (Loader([other], CONFIG, batch=6), "portions was .*, now it is"),
        (Loader([store], CONFIG, batch=8), "batch was 6, now it is 8"),
        (Loader([store], dataclasses.replace(CONFIG, seed=9), batch=6), "seed was 3, now it is 9"),
    ):
        with pytest.raises(UserError, match=difference):
            loader.check_resume(saved)
        assert loader.fingerprint != Loader([store], CONFIG, batch=6).fingerprint


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 7, "hosts": 2}, "a batch of 7 does not divide over 2 hosts; the nearest .* 8"),
        ({"batch": 8, "hosts": 2, "host": 2}, "host must be from 0 to 1, got 2"),
        ({"batch": 0}, "the batch must be at least 1, got 0"),
    ],
)
def test_batches_that_cannot_be_are_refused(
    store: PairStore, options: dict[str, Any], message: str
):
    with pytest.raises(UserError, match=message):
        Loader([store], CONFIG, **options)


def test_mixtures_that_cannot_be_are_refused(store: PairStore, other: PairStore):
    def refused(portions: list[Portion], message: str, **config: Any) -> None:
        with pytest.raises(UserError, match=message):
            Loader(portions, dataclasses.replace(CONFIG, **config), batch=2)

    refused(
        [Portion(store, "relihgt")],
        r"has no task 'relihgt'; did you mean 'relight'\? \(it has identity, relight\)",
    )
    refused([Portion(store, weight=1), Portion(other)], f"{other.path} has no weight but others")
    refused([], "there is no dataset to load")
    refused([Portion(store)], "have the same aspect ratio", sizes=((8, 8), (16, 16)))
    refused([Portion(store)], "sizes must be pairs of a height and a width", sizes=((8, 0),))
    with pytest.raises(UserError, match=f"the weight of {store.path} must be positive, got 0"):
        Portion(store, weight=0)
    with pytest.raises(UserError, match="dropout shares must lie in"):
        LoaderConfig(drop_text=0.6, drop_both=0.6)
    with pytest.raises(UserError, match=r"instruction must be a share in \[0, 1\], got 2"):
        LoaderConfig(instruction=2.0)


def test_portions_as_text(store: PairStore, tmp_path: Path):
    path = str(store.path)
    for text, task, weight in (
        (path, None, None),
        (f"{path}#relight", "relight", None),
        (f"{path}=0.25", None, 0.25),
        (f"{path}#relight=2", "relight", 2.0),
    ):
        portion = Portion.parse(text)
        assert (portion.store.path, portion.task, portion.weight) == (store.path, task, weight)
    odd = tmp_path / "a#b=1"
    odd.symlink_to(store.path)
    assert Portion.parse(str(odd)).task is None
    with pytest.raises(UserError, match="the weight after = must be a number"):
        Portion.parse(f"{path}=1.2.3")
    with pytest.raises(UserError, match="there is no dataset folder"):
        Portion.parse("nowhere#relight")


# Bad records


@pytest.fixture
def damaged(store: PairStore, tmp_path: Path) -> PairStore:
    """The store with one bit of record 5 flipped."""
    shutil.copytree(store.path, tmp_path / "damaged")
    damaged = PairStore.open(tmp_path / "damaged")
    shard, _ = damaged.shards.locate(5)
    path = damaged.path / damaged.manifest.shards[shard].name
    data = bytearray(path.read_bytes())
    data[data.find(store[5].target) + 40] ^= 1
    path.write_bytes(data)
    return PairStore.open(damaged.path)


def test_a_damaged_record_stops_the_run_and_is_named(damaged: PairStore):
    loader = Loader([damaged], CONFIG, batch=7)
    bad = next(step for step in range(7) if "pair-5" in loader.ids_of(step))
    batches = iter(loader)
    for _ in range(bad):
        next(batches)
    with pytest.raises(UserError, match=rf"step {bad}: record \d+ of shard .*copy the shard again"):
        next(batches)


def test_a_damaged_record_is_skipped_only_if_told_to(store: PairStore, damaged: PairStore):
    loader = Loader([damaged], CONFIG, batch=7, reading=Reading(skip_bad=True))
    healthy = take(Loader([store], CONFIG, batch=7), 7)
    for batch, whole in zip(take(loader, 7), healthy, strict=True):
        if "pair-5" not in whole.ids:
            assert_same(batch, whole)
            continue
        row = whole.ids.index("pair-5")
        assert batch.skipped == ("pair-5",)
        # the next of the stream stands in
        after = (whole.ids + Loader([store], CONFIG, batch=7).ids_of(whole.step + 1))[row + 1]
        assert batch.ids == [*whole.ids[:row], after, *whole.ids[row + 1 :]]


# Memory


def test_memory_stays_bounded_with_large_images(tmp_path: Path):
    """Pictures of 6.8 MB each: what is read ahead is cut to size, not kept decoded.

    A thread holds about four copies of one picture while it is decoded, turned, converted and cut:
    108 MB with four threads. Kept decoded, 24 samples would be 324 MB more.
    """
    image = png_bytes(Image.new("RGB", (1500, 1500), (1, 2, 3)))
    with PairWriter(tmp_path / "pairs") as writer:
        for i in range(24):
            writer.add(PairRecord(str(i), image, image, (1500, 1500), (1500, 1500), "a plain"))
    script = """
import resource, sys
from dsd_jax.data.load.loader import Loader, LoaderConfig, Reading
from dsd_jax.data.pairs.store import PairStore

config = LoaderConfig(sizes=((64, 64),))
loader = Loader([PairStore.open(sys.argv[1])], config, batch=8, reading=Reading(4, 16))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
next(iter(loader))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "pairs")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(result.stdout) < 250


# To devices


class Endless:
    """Batches of one loader, counted, with an error at some step."""

    def __init__(self, loader: Loader, error_at: int | None = None) -> None:
        self.loader, self.error_at, self.made, self.closed = loader, error_at, 0, False

    def __iter__(self) -> Iterator[PairBatch]:
        try:
            for batch in self.loader:
                if batch.step == self.error_at:
                    raise UserError("a bad record")
                self.made += 1
                yield batch
        finally:
            self.closed = True


@pytest.fixture
def mesh() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


def test_batches_lie_over_the_mesh(store: PairStore, mesh: jax.sharding.Mesh):
    rows = mesh_rows(mesh, 8)
    assert rows.tolist() == list(range(8))
    expected = take(Loader([store], DROPPING, batch=8), 3)
    batches = prefetch_to_mesh(Loader([store], DROPPING, batch=8, rows=rows), mesh)
    for batch, whole in zip(batches, expected, strict=False):
        assert_same(batch, whole)
        assert isinstance(batch.target, jax.Array)
        assert batch.target.sharding == NamedSharding(mesh, PartitionSpec(LOGICAL_TO_MESH["batch"]))
        assert batch.target.addressable_shards[0].data.shape[0] == 2
        assert batch.drop_text.dtype == bool
    batches.close()


def test_a_batch_that_the_mesh_does_not_divide_is_refused(mesh: jax.sharding.Mesh):
    with pytest.raises(
        UserError, match="a batch of 6 does not divide over the 4 parts of the mesh"
    ):
        mesh_rows(mesh, 6)


def test_an_error_comes_out_behind_the_batches_before_it(store: PairStore, mesh: jax.sharding.Mesh):
    source = Endless(Loader([store], CONFIG, batch=4), error_at=3)
    batches = prefetch_to_mesh(source, mesh)
    assert [next(batches).step for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="a bad record"):
        next(batches)
    assert source.closed


def test_a_finite_source_ends(store: PairStore, mesh: jax.sharding.Mesh):
    batches = prefetch_to_mesh(take(Loader([store], CONFIG, batch=4), 5), mesh)
    assert [batch.step for batch in batches] == [0, 1, 2, 3, 4]


def test_prefetching_is_bounded_and_ends_with_its_threads(
    store: PairStore, mesh: jax.sharding.Mesh
):
    with pytest.raises(UserError, match="size must be at least 1, got 0"):
        prefetch_to_mesh([], mesh, size=0)
    before = threading.active_count()
    source = Endless(Loader([store], CONFIG, batch=4, reading=Reading(2, 4)))
    batches = prefetch_to_mesh(source, mesh, size=2)
    next(batches)
    deadline = time.monotonic() + 60
    while source.made < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert source.made == 4  # one taken, two waiting, one in hand
    batches.close()
    assert source.closed
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before  # threads of earlier tests may end meanwhile


def test_to_mesh_keeps_what_is_not_an_array(store: PairStore, mesh: jax.sharding.Mesh):
    (batch,) = take(Loader([store], CONFIG, batch=4), 1)
    placed = to_mesh(batch, mesh)
    assert (placed.ids, placed.texts, placed.step) == (batch.ids, batch.texts, batch.step)
    assert placed.canvas is None
