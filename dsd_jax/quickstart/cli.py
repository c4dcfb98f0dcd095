"""`dsd quickstart`."""

from pathlib import Path

from dsd_jax.cli import main as dsd
from dsd_jax.quickstart.inputs import Budget
from dsd_jax.quickstart.run import quickstart as run_quickstart
from dsd_jax.toy.making.memory import keep_memory

__all__ = ["quickstart"]


def quickstart(output_dir: Path = Path("outputs/quickstart"), minutes: float = 10.0) -> None:
    """Run the whole method on toy weights: grids, judged pairs, training, images and a score.

    It needs no accelerator, no key and no download. If it was stopped, start it again to resume.

    Args:
        output_dir: Folder for all files of the run; its report.html shows the result.
        minutes: Approximate minutes that it may take on two cores. Less time gives a weaker model.
    """
    keep_memory()
    budget = Budget.of(minutes)
    print(
        f"Self-distillation on toy weights, about {minutes:g} minutes on two cores.\n"
        f"Everything goes to {output_dir}. If it stops, start it again to resume.",
        flush=True,
    )
    print(run_quickstart(output_dir, budget, dsd, lambda line: print(line, flush=True)))
