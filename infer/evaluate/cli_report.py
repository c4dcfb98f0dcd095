"""`dsd evaluate archive` and `report`."""

from collections.abc import Iterator
from pathlib import Path

import tyro

from dsd_jax.errors import UserError, and_more
from dsd_jax.infer.evaluate.adopt import adopt
from dsd_jax.infer.evaluate.archive import Archived, Layout, read_archive, write_archived
from dsd_jax.infer.evaluate.cases import Case, read_cases
from dsd_jax.infer.evaluate.report.make import write_report
from dsd_jax.infer.evaluate.report.parts import ReportSettings
from dsd_jax.infer.evaluate.runs import open_runs
from dsd_jax.terminal import table_text

__all__ = ["archive", "report"]


def archive(
    folder: tyro.conf.Positional[Path],
    cases: Path,
    output_dir: Path,
    layout: Layout = "auto",
    samples: Path | None = None,
) -> None:
    """Turn the archived ratings of DreamBench++ into runs, one for each method.

    They tie the numbers of the paper, whose judge no longer exists, to any judge of today.

    Args:
        folder: Folder with data_human_rating, data_gpt_rating, data_dino_rating, data_clipi_rating
            and data_clipt_rating, or some of them.
        cases: Cases of DreamBench++, from `dsd evaluate prepare`.
        output_dir: Folder for the runs. A run that is there keeps its images and other ratings.
        layout: Files to read: loose as the authors released them, merged by their scripts, or auto
            for both, which must agree.
        samples: Folder of the archived images of these methods, which the runs then refer to.
    """
    asked = read_cases(cases)
    read = read_archive(folder, asked, layout)
    rows, notes = [], []
    for archived in read.methods:
        if samples is not None:
            try:
                adopt(archived.name, samples, cases, output_dir / archived.method, partial=True)
            except UserError as error:
                notes.append(f"{archived.name} has no images: {error}")
        write_archived(archived, asked, output_dir / archived.method)
        rows.append(_counted(archived, asked))
    columns = ("method", "human", "GPT-4o", "metrics", "missing", "unusable")
    print(table_text(columns, rows))
    for archived in read.methods:
        notes += [f"{archived.name}: {note}" for note in _gaps(archived, asked)]
    if read.ignored:
        notes.append(f"ablations are left out: {and_more(read.ignored)}")
    for note in notes:
        print(f"note: {note}")
    print(f"wrote {len(rows)} runs to {output_dir}")


def _counted(archived: Archived, cases: list[Case]) -> list[str]:
    human = sum(rating.judge.startswith("human/") for rating in archived.ratings)
    numbers = (
        human,
        len(archived.ratings) - human,
        sum(map(len, archived.scores.values())),
        archived.missing(cases).total(),
        archived.unusable.total(),
    )
    return [archived.name, *(f"{number:,}" for number in numbers)]


def _gaps(archived: Archived, cases: list[Case]) -> Iterator[str]:
    for name, count in archived.missing(cases).items():
        yield f"{name} has no number for {count:,} of {len(cases):,} cases"
    for state, count in archived.unusable.items():
        yield f"{count:,} numbers are {state.replace('_', ' ')}"


def report(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    output_dir: Path = Path("report"),
    title: str = "Evaluation",
    settings: tyro.conf.OmitArgPrefixes[ReportSettings] = ReportSettings(),
) -> None:
    """Write what judges, people and metrics say about runs: tables, intervals, gaps, costs, images.

    It writes report.html (one file with its images inside), report.md, report.tex, numbers.csv and
    missing.csv.

    Args:
        runs: Run folders on the same cases. Differences are those to the first.
        output_dir: Folder for the files.
        title: Title of the report.
        settings: Contents of the report.
    """
    for path in write_report(open_runs(runs), output_dir, title, settings):
        print(f"wrote {path}")
