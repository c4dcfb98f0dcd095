"""Times a checkpoint from disk to arrays on the device, against reading the bytes.

    python -m benchmarks.speed.load_time [--double 4 --single 8] [--folder DIR]

Random bfloat16 weights of FLUX.1-dev's width (fewer blocks by default), in diffusers layout and as
Orbax. `read` reads the same files sequentially into memory and forgets them; `fill` writes as many
bytes into new memory, as loading must in the end. A virtual machine whose host takes back unused
memory pays more for that than for the rest. Files are in the page cache for all rows alike, unless
--cold drops it before each (needs root).
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import numpy as np

from benchmarks.results import save
from benchmarks.speed.convert_full_size import write_random
from dsd_jax.config import BFLOAT16, Execution
from dsd_jax.convert.jobs import to_jax
from dsd_jax.convert.open import open_component
from dsd_jax.models import abstract, load
from dsd_jax.weights import READERS, empty

SECTIONS = {
    "": (
        "Loading",
        """Seconds from a checkpoint to arrays on the device, against reading the same bytes, and
against writing as many into new memory (fill).""",
    ),
}

CHUNK = 2**24
FILLED = 2**26  # bytes of an array; kernels have 18 to 132 MB


def read_all(folder: Path) -> int:
    """Reads every byte below a folder; returns their number."""
    total = 0
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while chunk := file.read(CHUNK):
                    total += len(chunk)
    return total


def fill_new(size: int) -> None:
    """Writes bytes into new arrays, in as many threads as loading."""
    parts = [empty((FILLED,), np.uint8) for _ in range(size // FILLED)]
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(lambda part: part.fill(1), parts))


def load_model(folder: Path, execution: Execution) -> None:
    """Opens, checks and loads a transformer, and waits for its arrays."""
    component = open_component(folder)
    model = abstract(component.config, precision=BFLOAT16, execution=execution)
    jax.block_until_ready(jax.tree.leaves(load(model, component.source)))


def seconds_of(run: Callable[[], Any], *, cold: bool, repeats: int) -> float:
    """Shortest time of a few runs, which is the least disturbed by the rest of the machine."""
    times = []
    for _ in range(repeats):
        if cold:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("1")
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
    return min(times)


def main() -> None:
    """Writes, times, prints, saves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--double", type=int, default=4)
    parser.add_argument("--single", type=int, default=8)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        torch_folder, jax_folder = Path(name) / "torch", Path(name) / "jax"
        write_random(torch_folder, arguments.double, arguments.single)
        to_jax(torch_folder, jax_folder)
        for layout, folder in (("safetensors", torch_folder), ("orbax", jax_folder)):
            nbytes = read_all(folder)
            size = nbytes / 1e9

            def timed(run: Callable[[], Any]) -> float:
                return seconds_of(run, cold=arguments.cold, repeats=arguments.repeats)

            base = timed(lambda folder=folder: read_all(folder))
            cases = {"read": base, "fill": timed(lambda nbytes=nbytes: fill_new(nbytes))}
            for scan in (False, True):
                execution = Execution(scan_layers=scan)
                label = "load, scanned" if scan else "load, unrolled"
                cases[label] = timed(lambda f=folder, e=execution: load_model(f, e))
            for case, seconds in cases.items():
                row = {"layout": layout, "what": case, "seconds": round(seconds, 2)}
                rows.append(
                    {**row, "GB/s": round(size / seconds, 2), "vs_read": round(seconds / base, 2)}
                )
                print(rows[-1], flush=True)
    save(__file__, rows, gigabytes=round(size, 2), cold=arguments.cold)


if __name__ == "__main__":
    main()
