"""Memory of one process that samples canvases of many sizes, one after another.

    python -m benchmarks.memory.canvas_sizes [--sizes 12]

JAX keeps every compiled program, and each size of a canvas needs programs of its own. The pipeline
drops all of them when one size more than `MAX_CANVASES` comes, so the memory after a full set of
sizes is the same for the first set and the last.
"""

import argparse
import gc
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image

from benchmarks.results import save
from dsd_jax.config import FLOAT32
from dsd_jax.infer.denoiser import MAX_CANVASES
from dsd_jax.infer.pipeline import Pipeline

SECTIONS = {
    "": (
        "Canvases of many sizes",
        """Resident memory of one process after each new size: one customised image of the toy
FLUX in two steps. Programs are dropped when one size more than four comes.""",
    ),
}

STEP = 16  # pixels between one size and the next


def resident() -> float:
    """Megabytes of this process that are in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def main() -> None:
    """Samples every size, prints the rows and saves them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, default=3 * MAX_CANVASES)
    count = parser.parse_args().sizes
    pipeline = Pipeline.load("toy", lora_path="toy", precision=FLOAT32, max_sequence_length=16)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    rows = []
    for number in range(count):
        height, width = 32 + STEP * (number % 5), 64 + 2 * STEP * (number // 5)
        start = perf_counter()
        pipeline(
            "a red circle on a beach",
            Image.fromarray(pixels),
            height=height,
            width=width,
            steps=2,
        )
        rows.append(
            {
                "size": number + 1,
                "pixels": f"{height} x {width}",
                "sizes kept": number % MAX_CANVASES + 1,
                "MB": round(resident()),
                "seconds": round(perf_counter() - start, 1),
            }
        )
        print(rows[-1], flush=True)
    save(__file__, rows, kept=MAX_CANVASES)


if __name__ == "__main__":
    main()
