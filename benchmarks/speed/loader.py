"""Counts pairs per second of the loader, against a torch DataLoader that does the same work.

    python -m benchmarks.speed.loader [--pairs 128] [--repeats 5]

Pairs of two 512 x 512 pictures: decode, centre crop, resize, batches of 16 as uint8; and cached
moments of the VAE in bfloat16. The torch side reads the same image files (or arrays) from a folder
in shuffled order. Ours reads ArrayRecord, checks a sha256 per image, and shuffles globally. Every
case has a process of its own; all read from the page cache. Memory is what the process and its
workers grow by (proportional set size, its peak over the batches of one epoch) once everything is
imported.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import ml_dtypes
import numpy as np
from PIL import Image

from benchmarks.results import measure, save
from dsd_jax.data.load.encoded import (
    ENCODED_STEM,
    Binding,
    EncodedPair,
    EncodedStore,
    Moments,
    pack_encoded,
    write_encoded_manifest,
)
from dsd_jax.data.load.loader import Loader, LoaderConfig, Reading
from dsd_jax.data.load.mixture import Portion
from dsd_jax.data.pairs.record import PairRecord
from dsd_jax.data.pairs.shards import ShardWriter, shard_name
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.data.pairs.writer import PairWriter
from dsd_jax.images import fit, open_image

SECTIONS = {
    "": (
        "The loader",
        "Pairs per second against a torch DataLoader in the same run.",
    ),
}

SIDE, BATCH = 512, 16
MOMENTS = (4, SIDE // 8, 2 * SIDE // 8, 16)  # mean and log variance of canvas and condition
FORMATS = {"jpeg q95": (".jpg", {"quality": 95}), "png": (".png", {}), "moments": (".npy", {})}


def picture(seed: int) -> Image.Image:
    """Smooth shapes with fine texture, whose file is about as large as a photograph's."""
    rng = np.random.default_rng(seed)
    canvas = np.zeros((SIDE, SIDE, 3))
    for cells, height in ((4, 90), (16, 40), (64, 14), (256, 5)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        wide = np.asarray(noise.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float64)
        canvas += (wide / 255 - 0.5) * height * 2
    return Image.fromarray((canvas + 128).clip(0, 255).astype(np.uint8))


def write_data(root: Path, count: int) -> dict[str, float]:
    """Writes the same pairs as files and as datasets; returns kilobytes per pair by format."""
    sizes = {}
    for name, (suffix, options) in FORMATS.items():
        folder = root / name
        folder.mkdir()
        if name == "moments":
            rng = np.random.default_rng(0)
            for i in range(count):
                values = rng.standard_normal(MOMENTS, np.float32).astype(ml_dtypes.bfloat16)
                np.save(folder / f"{i}{suffix}", values.view(np.uint16))
            write_encoded(root, folder, count)
        else:
            for i in range(2 * count):
                picture(i).save(folder / f"{i}{suffix}", **options)
            with PairWriter(root / f"{name}-pairs") as writer:
                for i in range(count):
                    files = [(folder / f"{j}{suffix}").read_bytes() for j in (2 * i, 2 * i + 1)]
                    writer.add(
                        PairRecord.from_images(
                            id=str(i), reference=files[0], target=files[1], caption=f"picture {i}"
                        )
                    )
        sizes[name] = sum(path.stat().st_size for path in folder.iterdir()) / count / 1e3
    return sizes


def write_encoded(root: Path, folder: Path, count: int) -> None:
    """Moments for the records of the JPEG dataset."""
    store = PairStore.open(root / "jpeg q95-pairs")
    target = root / "moments-pairs"
    target.mkdir()
    writer = ShardWriter(target, shard_name(ENCODED_STEM, 0))
    for i in range(count):
        arrays = np.load(folder / f"{i}.npy").view(ml_dtypes.bfloat16)
        canvas, condition = Moments(*arrays[:2]), Moments(*arrays[2:])
        pair = EncodedPair(str(i), f"picture {i}", "", canvas, condition)
        writer.write(pack_encoded(pair, "bfloat16"))
    shard = writer.commit({"order": list(range(count))})
    binding = Binding(store.fingerprint, ((SIDE, SIDE),), "bfloat16", "random")
    write_encoded_manifest(target, binding, [shard])


def ours(root: Path, name: str, threads: int) -> Iterator[Any]:
    """Batches of this package."""
    if name == "moments":
        store = PairStore.open(root / "jpeg q95-pairs")
        portion = Portion(store, encoded=EncodedStore.open(root / "moments-pairs"))
    else:
        portion = Portion(PairStore.open(root / f"{name}-pairs"))
    config = LoaderConfig(sizes=((SIDE, SIDE),))
    return iter(Loader([portion], config, batch=BATCH, reading=Reading(threads)))


def theirs(root: Path, name: str, workers: int) -> Iterator[Any]:
    """Batches of torch, epoch after epoch."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    folder, suffix = root / name, FORMATS[name][0]

    class Pairs(Dataset):
        def __len__(self) -> int:
            return len(list(folder.iterdir())) // (1 if name == "moments" else 2)

        def __getitem__(self, i: int) -> Any:
            if name == "moments":
                return torch.from_numpy(np.load(folder / f"{i}{suffix}")).view(torch.bfloat16)
            paths = (folder / f"{j}{suffix}" for j in (2 * i, 2 * i + 1))
            return [np.array(fit(open_image(path), SIDE, SIDE)) for path in paths]

    loader = DataLoader(
        Pairs(), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    while True:
        yield from loader


def memory() -> float:
    """Megabytes of proportional set size, of this process and its children."""
    own = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    total = 0
    for pid in [str(os.getpid()), *own]:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1e3


CASES: dict[str, Callable[[Path, str], Iterator[Any]]] = {
    "ours, 16 threads": lambda root, name: ours(root, name, 16),
    "ours, 2 threads": lambda root, name: ours(root, name, 2),
    "torch, 0 workers": lambda root, name: theirs(root, name, 0),
    "torch, 2 workers": lambda root, name: theirs(root, name, 2),
}


def run_case(root: Path, name: str, case: str, count: int, repeats: int) -> dict[str, Any]:
    """One case, in this process."""
    if case.startswith("torch"):
        import torch.utils.data  # noqa: F401 - counted before, not as growth
    before = memory()
    batches = CASES[case](root, name)

    def epoch() -> None:
        for _ in islice(batches, count // BATCH):
            pass

    seconds = measure(epoch, repeats)
    peak = max(memory() for _ in islice(batches, count // BATCH))
    return {
        "data": name,
        "loader": case,
        "pairs_per_s": round(count // BATCH * BATCH / seconds, 1),
        "memory_mb": round(peak - before),
    }


def main() -> None:
    """Writes the data, runs every case in a process of its own, and saves the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--case", nargs=3, metavar=("ROOT", "DATA", "LOADER"))
    arguments = parser.parse_args()
    if arguments.case:
        root, name, case = arguments.case
        row = run_case(Path(root), name, case, arguments.pairs, arguments.repeats)
        print(json.dumps(row), flush=True)
        os._exit(0)  # loaders have threads and workers that nobody waits for
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sizes = write_data(Path(folder), arguments.pairs)
        for name in FORMATS:
            for case in CASES:
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.speed.loader",
                    "--case",
                    folder,
                    name,
                    case,
                ]
                command += ["--pairs", str(arguments.pairs), "--repeats", str(arguments.repeats)]
                result = subprocess.run(command, check=True, capture_output=True, text=True)
                rows.append(json.loads(result.stdout))
                print(rows[-1], flush=True)
    kilobytes = {name: round(size) for name, size in sizes.items()}
    save(__file__, rows, pairs=arguments.pairs, batch=BATCH, side=SIDE, kilobytes=kilobytes)


if __name__ == "__main__":
    main()
