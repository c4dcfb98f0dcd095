"""`dsd evaluate audit build` and `ask`: the curation question before people and judges."""

from pathlib import Path

import tyro

from dsd_jax.data.make.audit import Asking, ask_runs, sample_run
from dsd_jax.infer.evaluate.cli_judge import Budget
from dsd_jax.infer.evaluate.queries import load_judge
from dsd_jax.infer.evaluate.runs import open_run

__all__ = ["ask", "build"]


def build(
    making: tyro.conf.Positional[Path], output_dir: Path, count: int = 400, seed: int = 0
) -> None:
    """Draw pairs that `dsd data judge` judged, half of them accepted, as a run.

    Show it to people with `dsd evaluate study build --mode same`, then compare with `dsd evaluate
    audit --labels`. The audit weights the pairs to their shares of all that were judged.

    Args:
        making: Work folder of `dsd data make`.
        output_dir: Folder for the run.
        count: Number of pairs. A precision of 0.95 ± 0.02 takes about 457 accepted ones.
        seed: Seed of the draw.
    """
    run = sample_run(making, output_dir, count, seed)
    print(f"wrote {len(run.images)} judged pairs to {output_dir}")


def ask(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    judge: Path,
    asking: tyro.conf.OmitArgPrefixes[Asking] = Asking(),
    budget: tyro.conf.OmitArgPrefixes[Budget] = Budget(),
) -> None:
    """Ask a judge the curation question about every image of runs.

    Several rounds tell how often it changes its mind, both orders how much the order decides.

    Args:
        runs: Folders of runs, such as those of `dsd evaluate audit build` and `probes`.
        judge: TOML file of the judge, as for `dsd evaluate judge`.
    """
    config = budget.applied(load_judge(judge))
    opened = [open_run(folder) for folder in runs]
    for run, count in zip(opened, ask_runs(opened, config, asking), strict=True):
        print(f"{run.folder}: {count} new answers")
