"""Converts a transformer of FLUX.1-dev's real size to JAX and back, and compares every tensor.

    python -m benchmarks.speed.convert_full_size [--folder DIR] [--double 19 --single 38]

Writes 24 GB of random bfloat16 weights in diffusers layout, runs `dsd convert to-jax` and
`dsd convert to-torch` each in a process of its own, and prints the wall time, the peak memory of
the process, and the time of a plain copy of the same bytes, all on the same disk. The tensors must
come back byte for byte. At most 48 GB of disk are used at a time.
"""

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import ml_dtypes
import numpy as np

from benchmarks.results import save
from dsd_jax.config import flux_dev
from dsd_jax.convert.flux.config import flux_to_json
from dsd_jax.convert.flux.diffusers import flux_diffusers
from dsd_jax.convert.io import open_weights
from dsd_jax.convert.jobs import to_jax, to_torch
from dsd_jax.convert.writer import write_weights

SECTIONS = {
    "": (
        "Conversion at the real size",
        """A transformer of FLUX.1-dev's size, random bfloat16 bits, to Orbax and back; every
tensor is compared by SHA-256. Peak memory is the process's largest resident set.""",
    ),
}


def write_random(folder: Path, double: int, single: int) -> dict[str, str]:
    """Random bit patterns (no NaN) in every tensor; returns the SHA-256 of each."""
    config = dataclasses.replace(
        flux_dev(condition_embed=False), double_depth=double, single_depth=single
    )
    specs = flux_diffusers(config).their_specs(ml_dtypes.bfloat16)
    rng = np.random.default_rng(0)
    digests: dict[str, str] = {}

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, (shape, _) in specs.items():
            bits = rng.integers(0, 0x7F80, shape, dtype=np.uint16)
            digests[name] = hashlib.sha256(bits).hexdigest()
            yield name, bits.view(ml_dtypes.bfloat16)

    write_weights(folder, specs, tensors())
    (folder / "config.json").write_text(json.dumps(flux_to_json(config)))
    return digests


def run_apart(function: Callable[..., Any], *arguments: Any) -> tuple[float, float]:
    """Runs a function in a fresh process: (seconds, peak resident GB, imports included)."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_timed, args=(send, function, arguments))
    process.start()
    send.close()
    try:
        result: tuple[float, float] = receive.recv()
    except EOFError:
        raise SystemExit(f"{function.__name__} failed") from None
    process.join()
    return result


def _timed(send: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    start = time.monotonic()
    function(*arguments)
    seconds = time.monotonic() - start
    send.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6))


def copy(source: str, target: str) -> None:
    """A plain copy of a folder, on disk when it returns."""
    shutil.copytree(source, target)
    for file in Path(target).iterdir():
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())


def digests_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every tensor of a folder of safetensors."""
    with open_weights(folder) as weights:
        return {
            name: hashlib.sha256(weights.read(name).view(np.uint8)).hexdigest()
            for name in weights.tensors
        }


def main() -> None:
    """Writes, converts both ways, compares, prints, saves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", default=None, help="where to work; default: a temporary one")
    parser.add_argument("--double", type=int, default=19)
    parser.add_argument("--single", type=int, default=38)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        work = Path(name)
        source, jax_folder, back = work / "torch", work / "jax", work / "back"
        before = write_random(source, arguments.double, arguments.single)
        size = sum(file.stat().st_size for file in source.glob("*.safetensors")) / 1e9
        rows = []

        def add(step: str, seconds: float, peak: float) -> None:
            row = {"step": step, "seconds": round(seconds, 1), "GB/s": round(size / seconds, 2)}
            rows.append({**row, "peak_memory_gb": round(peak, 2)})
            print(rows[-1], flush=True)

        add("plain copy", *run_apart(copy, str(source), str(work / "copy")))
        shutil.rmtree(work / "copy")
        add("to-jax", *run_apart(to_jax, str(source), str(jax_folder)))
        shutil.rmtree(source)
        add("to-torch", *run_apart(to_torch, str(jax_folder), str(back)))
        shutil.rmtree(jax_folder)
        after = digests_of(back)
        if before != after:
            different = [name for name in before if before[name] != after.get(name)]
            raise SystemExit(f"{len(different)} tensors differ, the first is {different[0]}")
    print(f"{len(before)} tensors, {size:.2f} GB, byte-identical")
    save(__file__, rows, gigabytes=round(size, 2), identical_tensors=len(before))


if __name__ == "__main__":
    main()
