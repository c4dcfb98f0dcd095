"""`dsd quickstart` and `dsd evaluate demo`."""

from pathlib import Path

from dsd_jax.cli import main as dsd
from dsd_jax.quickstart.demo import Sizes, demo
from dsd_jax.quickstart.inputs import TASKS, Budget
from dsd_jax.quickstart.run import quickstart as run_quickstart
from dsd_jax.toy.making.memory import keep_memory

__all__ = ["evaluate_demo", "quickstart"]


def quickstart(
    output_dir: Path = Path("outputs/quickstart"),
    minutes: float = 10.0,
    tasks: tuple[str, ...] = TASKS,
) -> None:
    """Run the whole method on toy weights: grids, judged pairs, training, images and scores.

    One customiser learns three tasks: a subject in a new scene (identity), a scene in a new light
    (relight), and a picture for a depth map (depth). It needs no accelerator, no key and no
    download. If it was stopped, start it again to resume.

    Args:
        output_dir: Folder for all files of the run; its report.html shows the result.
        minutes: Approximate minutes that it may take on two cores. Less time gives a weaker model.
        tasks: Share of each task in the training, TASK=SHARE each; the others are left out.
    """
    keep_memory()
    budget = Budget.of(minutes, tasks)
    print(
        f"Self-distillation on toy weights, about {minutes:g} minutes on two cores.\n"
        f"Everything goes to {output_dir}. If it stops, start it again to resume.",
        flush=True,
    )
    print(run_quickstart(output_dir, budget, dsd, lambda line: print(line, flush=True)))


def evaluate_demo(output_dir: Path = Path("outputs/evaluate"), cases: int = Sizes.cases) -> None:
    """Run every command of an evaluation on toy weights: images, scores, a judge, people, a report.

    It needs no accelerator, no key and no download. If it was stopped, start it again to resume.

    Args:
        output_dir: Folder for all files; report/report.html shows the result.
        cases: Number of subjects, each asked for in a new scene.
    """
    keep_memory()
    sizes = Sizes.of(cases)
    print(f"An evaluation of four methods on toy weights. Everything goes to {output_dir}.")
    page = demo(output_dir, sizes, dsd, lambda line: print(line, flush=True))
    print(f"\nreport: {page}")
