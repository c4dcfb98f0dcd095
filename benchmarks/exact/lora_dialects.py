"""Reads and writes LoRA files of every dialect on a tiny FLUX, and compares outputs.

    python -m benchmarks.exact.lora_dialects   # from the root of the repository; CPU, half a minute

One random adapter is written in each dialect. `round trip`: every factor keeps its bits when the
file is read, written as PEFT and as kohya, and read again. Then relative differences of the
velocity in float32: to `PyTorch`, diffusers' transformer with the products B A added to its
weights; to `diffusers`, that transformer after loading our PEFT file; to `base`, without adapter,
which must not be small.
"""

import logging
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from benchmarks.results import save
from dsd_jax.convert.lora.read import read_lora
from dsd_jax.convert.lora.write import write_lora
from dsd_jax.lora import Adapter
from tests.lora_dialects import (
    DIALECTS,
    TINY,
    Pairs,
    attention_only,
    random_pairs,
    split,
    write_dialect,
)
from tests.parity.compare import relative_error
from tests.parity.lora_reference import make_pipeline, make_transformer, run_ours, run_theirs

SECTIONS = {
    "": (
        "LoRA dialects",
        """One random adapter in every dialect: exactness of the round trip, and outputs against
PyTorch and against the base model.""",
    ),
}

RANK, ALPHA = 4, 6.0
LAYOUTS = ("peft", "kohya")


def same(one: Adapter, other: Adapter) -> bool:
    """Whether two adapters have the same factors, to the bit."""
    return one.factors.keys() == other.factors.keys() and all(
        factor.tobytes() == other.factors[path].tobytes() for path, factor in one.factors.items()
    )


def merged(pairs: Pairs, scale: float) -> np.ndarray:
    """Velocity of the PyTorch model with the products added to its weights."""
    model = make_transformer()
    with torch.no_grad():
        for name, (a, b) in split(pairs).items():
            model.get_submodule(name).weight += scale * torch.from_numpy(b @ a)
    return run_theirs(model)


def row(dialect: str, folder: Path) -> dict[str, Any]:
    """One line of the table."""
    pairs = random_pairs(rank=RANK)
    adapter, report = read_lora(write_dialect(folder, dialect, pairs, TINY, ALPHA), TINY)
    files = {layout: write_lora(folder / layout, adapter, TINY, layout) for layout in LAYOUTS}
    exact = all(same(adapter, read_lora(path, TINY)[0]) for path in files.values())

    ours = run_ours([(adapter, 1.0)], merged=False)
    model = make_transformer()
    make_pipeline(model).load_lora_weights(files["peft"])
    kept = attention_only(pairs) if "XLabs" in dialect else pairs
    scale = ALPHA / RANK if report.alphas else 1.0
    return {
        "dialect": dialect,
        "layers": report.linears,
        "rank": ", ".join(map(str, report.ranks)),
        "alpha": ", ".join(f"{alpha:g}" for alpha in report.alphas) or "as rank",
        "round trip": "exact" if exact else "differs",
        "PyTorch": f"{relative_error(ours, merged(kept, scale)):.1e}",
        "diffusers": f"{relative_error(ours, run_theirs(model)):.1e}",
        "base": f"{relative_error(ours, run_theirs(make_transformer())):.2f}",
    }


def main() -> None:
    diffusers.utils.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    rows = []
    for dialect in DIALECTS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(dialect, Path(folder)))
    save(__file__, rows, rank=RANK, alpha=ALPHA, width=TINY.width)


if __name__ == "__main__":
    main()
