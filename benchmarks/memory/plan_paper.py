"""Plans the paper's recipe (rank 512, batch 160) for hardware that you do not have yet.

    python -m benchmarks.memory.plan_paper [--kinds tpu gpu]      # minutes for every topology

Each row is one `dsd plan PRESET --topology KIND:SHAPE` in a process of its own. Rows by `compiler`
are the real compiler's account; those by `arithmetic` count over the program compiled for eight CPU
devices, which stand in for GPUs if the extra `plan-gpu` is not installed.
Memory is per chip, with VAE and text encoders beside the step. `floor s` is the step's matrix
products at the chip's peak; `collectives` is what a chip sends or receives in a step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results import save

SECTIONS = {
    "tpu": (
        "The paper's recipe on slices of TPUs",
        """`dsd plan` for rank 512 and batch 160: memory in GiB per chip, with VAE and text
encoders beside the step. Rows by `compiler` are its own account.""",
    ),
    "gpu": (
        "The paper's recipe on hosts of GPUs",
        """The same for eight GPUs. Rows are by arithmetic where the extra `plan-gpu` is not
installed. *Seconds* are those of the plan, and depend on what else the machine did.""",
    ),
}

# 256 chips share 160 samples as 32 groups of 8, which divide the tokens of a canvas.
_V6E_256 = ("--mesh.data", "4", "--mesh.fsdp", "8", "--mesh.context", "8")
CASES: dict[str, tuple[tuple[str, str, tuple[str, ...]], ...]] = {
    "tpu": (
        ("v5e_64", "v5e:8x8", ()),
        ("v5p_64", "v5p:4x4x4", ()),
        ("v6e_64", "v6e:8x8", ()),
        ("v6e_64", "v6e:16x16", _V6E_256),
    ),
    "gpu": (("paper", "h100:8", ()), ("h200", "h200:8", ())),
}
KINDS = ("base", "trained", "moments", "batch", "encoders", "activations", "temporary")


def plan(preset: str, topology: str, flags: tuple[str, ...]) -> list[dict[str, Any]]:
    """The plans of one command: as configured, then cheaper ones until one fits."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        words = ["plan", preset, "--topology", topology, "--json", str(path), *flags]
        subprocess.run(
            [sys.executable, "-m", "dsd_jax", *words],
            check=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        return list(json.loads(path.read_text()))


def rows_of(preset: str, topology: str, flags: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of one command."""
    start = time.monotonic()
    return [
        {
            "preset": preset,
            "topology": topology,
            "mesh": " x ".join(f"{k} {v}" for k, v in made["mesh"].items() if v > 1),
            "change": made["change"],
            **{name: made["memory"].get(name, "") for name in KINDS},
            "total GiB": made["total"],
            "of": made["available"],
            "fits": made["fits"],
            "by": made["source"],
            "TFLOP": made["tflops"],
            "floor s": made["step_floor_s"],
            "collectives GiB": round(sum(made["collectives"].values()), 2),
            "seconds": round(time.monotonic() - start),
        }
        for made in plan(preset, topology, flags)
    ]


def main() -> None:
    """Prints the tables and saves them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=list(CASES), default=list(CASES))
    for kind in parser.parse_args().kinds:
        save(__file__, [row for case in CASES[kind] for row in rows_of(*case)], kind)


if __name__ == "__main__":
    main()
