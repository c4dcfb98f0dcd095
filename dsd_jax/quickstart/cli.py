"""`dsd quickstart`."""

from pathlib import Path

from dsd_jax.cli import main as dsd
from dsd_jax.quickstart.run import Budget
from dsd_jax.quickstart.run import quickstart as run_quickstart
from dsd_jax.toy.making.memory import keep_memory

__all__ = ["quickstart"]


def quickstart(output_dir: Path = Path("outputs/quickstart"), minutes: float = 10.0) -> None:
    """Go the whole way on toy weights: grids, judged pairs, training, images, export, a score.

    Needs no accelerator, no key and no download. Stopped and started again, it goes on.

    Args:
        output_dir: For everything that is made; report.html and report.png are the result.
        minutes: About how long it may take on two cores; less time, smaller and weaker.
    """
    keep_memory()
    budget = Budget.of(minutes)
    print(run_quickstart(output_dir, budget, dsd, lambda line: print(line, flush=True)))
