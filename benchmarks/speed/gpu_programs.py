"""The sampling step of FLUX.1-dev as the compiler for GPUs builds it, without a GPU.

    pip install 'dsd-jax[plan-gpu]'
    python -m benchmarks.speed.gpu_programs [--kinds h100 h200] [--only TEXT]

Two frames of 512 x 512, bfloat16. Each row is one compiled program: memory by the compiler's
account, bytes between GPUs, and the number of kernels of each kind that a step starts. Kernels are
tuned on a GPU alone, so no row holds a time. Without a GPU, the compiler counts weights in host
memory as if they lay on the device, so offloading has no row.
"""

import argparse
import dataclasses
import os
import time
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from benchmarks.memory.sampling_memory import Case, compiled_step
from benchmarks.results import save
from dsd_jax.config import Execution
from dsd_jax.hlo import collectives, kernels
from dsd_jax.sharding import MeshConfig

SECTIONS = {
    "": (
        "The sampling step on GPUs",
        """FLUX.1-dev, two frames of 512 x 512, compiled for GPUs on a machine without one; memory
in GiB per GPU. `products` are Triton and cuBLAS kernels, `fused` the compiler's other kernels.
The time to compile depends on what else the machine did; both kinds take about the same.""",
    ),
}

GIB = 2**30
SCANNED = Execution(scan_layers=True, attention="cudnn")
UNROLLED = dataclasses.replace(SCANNED, scan_layers=False)


def cases(kind: str) -> list[tuple[str, Case, bool]]:
    """The programs of a kind of GPU: a label, the case, and whether guidance is on."""
    one, eight = f"{kind}:1", f"{kind}:8"
    return [
        ("scanned", Case(one, 1, MeshConfig(), SCANNED), False),
        ("scanned, guided", Case(one, 1, MeshConfig(), SCANNED), True),
        ("int8", Case(one, 1, MeshConfig(), SCANNED, "int8"), False),
        ("int8, guided", Case(one, 1, MeshConfig(), SCANNED, "int8"), True),
        ("int4", Case(one, 1, MeshConfig(), SCANNED, "int4"), False),
        ("fsdp 8", Case(eight, 8, MeshConfig(fsdp=-1, data=1), SCANNED), False),
        (
            "tensor 4 x context 2",
            Case(eight, 1, MeshConfig(data=1, tensor=4, context=-1), SCANNED),
            False,
        ),
        ("unrolled", Case(one, 1, MeshConfig(), UNROLLED), False),
    ]


def row(label: str, case: Case, *, guided: bool) -> dict[str, Any]:
    """Compiles one program and reads what it needs."""
    start = time.monotonic()
    compiled = compiled_step(case, guided=guided)
    memory, text = compiled.memory_analysis(), compiled.as_text() or ""
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return {
        "topology": case.topology,
        "program": label,
        "images": case.batch,
        "arguments": round(memory.argument_size_in_bytes / GIB, 2),
        "temporary": round(memory.temp_size_in_bytes / GIB, 2),
        "total": round(used / GIB, 2),
        **kernels(text),
        "collectives GiB": round(sum(collectives(text).values()) / GIB, 2),
        "compile s": round(time.monotonic() - start),
    }


def main() -> None:
    """Prints the table and saves it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kinds", nargs="+", default=["h100", "h200"])
    parser.add_argument("--only", help="programs whose label has this text; nothing is saved")
    given = parser.parse_args()
    rows = []
    for kind in given.kinds:
        for label, case, guided in cases(kind):
            if given.only is None or given.only in label:
                rows.append(row(label, case, guided=guided))
                print(rows[-1], flush=True)
    if given.only is None:
        save(__file__, rows)


if __name__ == "__main__":
    main()
