"""Plans full-size sampling and LoRA training with weights in few bits.

    pip install 'dsd-jax[plan-gpu]' libtpu
    python -m benchmarks.memory.few_bits [--only v5e:1x1]

Each row is one `dsd plan PRESET --topology KIND:SHAPE` in a process of its own, see
`plan_paper.py`. Sampling rows are one step of one image of two frames of 512 x 512. Training rows
are on encoded data, with neither VAE nor text encoders in memory. Rows by `compiler` are its own
account of memory; `budget` is the memory that a row has to fit.
"""

import argparse
import dataclasses
from typing import Any

from benchmarks.memory.plan_paper import plan
from benchmarks.results import save
from dsd_jax.quantise import WeightKind

SECTIONS = {
    "": (
        "Full-size memory with weights in few bits",
        """`dsd plan` for FLUX.1-dev with `--weights`: GiB per chip. Sampling: one step of one image
of two frames of 512 x 512, with true guidance in one batch where it says so. Training: a LoRA on
encoded data, by the paper's recipe or at rank 128.""",
    ),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A plan, and the memory in GiB that it has to fit."""

    job: str
    topology: str
    budget: float
    weights: WeightKind | None
    flags: tuple[str, ...]


_SAMPLE = ("--job", "sample", "--batch_size", "1")
_ONE = ("--encoded", "--lora.rank", "128", "--batch_size", "1", "--mesh.fsdp", "1")
_SHARE = ("--encoded", "--optimizer.accumulate", "20")
ROWS = (
    *(
        Row(f"sampling{', guided' if guided else ''}", "v5e:1x1", 16, kind, (*_SAMPLE, *guided))
        for kind in ("int8", "int4")
        for guided in ((), ("--guided",))
    ),
    *(Row("paper's recipe", "h100:8", 40, kind, _SHARE) for kind in (None, "int8")),
    *(Row("rank 128", "h100:1", 24, kind, _ONE) for kind in (None, "int8", "int4")),
)


def main() -> None:
    """Prints the table and saves it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="*", help="topologies; nothing is saved then")
    only = parser.parse_args().only
    rows: list[dict[str, Any]] = []
    for row in ROWS:
        if only is not None and row.topology not in only:
            continue
        kind = () if row.weights is None else ("--weights", row.weights)
        made = plan("paper", row.topology, (*row.flags, *kind))[0]
        memory = made["memory"]
        rows.append(
            {
                "job": row.job,
                "topology": row.topology,
                "weights": row.weights or "bfloat16",
                "base GiB": memory["base"],
                "beside": round(made["total"] - memory["base"], 2),
                "total": made["total"],
                "budget": row.budget,
                "fits": made["total"] < row.budget and made["problem"] is None,
                "by": made["source"],
            }
        )
        print(rows[-1], flush=True)
    if only is None:
        save(__file__, rows)


if __name__ == "__main__":
    main()
