"""Computes a report of several runs and writes its files."""

from collections.abc import Sequence
from pathlib import Path

from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.infer.evaluate.aggregate import Design
from dsd_jax.infer.evaluate.gaps import Gap, gaps_of
from dsd_jax.infer.evaluate.measured import measure
from dsd_jax.infer.evaluate.numbers import Sampler
from dsd_jax.infer.evaluate.panels import panels_of, read_rated
from dsd_jax.infer.evaluate.report.calibrated import calibration_section
from dsd_jax.infer.evaluate.report.page import page_of
from dsd_jax.infer.evaluate.report.parts import Report, ReportSettings, Row
from dsd_jax.infer.evaluate.report.ratings import (
    missing_section,
    overall_section,
    published_section,
    table_1_sections,
)
from dsd_jax.infer.evaluate.report.sections import (
    agreement_section,
    costs_section,
    differences_section,
    judges_section,
    metrics_section,
    novelty_sections,
    runs_section,
)
from dsd_jax.infer.evaluate.report.text import csv_text, latex_text, markdown_text
from dsd_jax.infer.evaluate.runs import Run
from dsd_jax.progress import phase

__all__ = ["make_report", "write_report"]


def make_report(runs: Sequence[Run], settings: ReportSettings = ReportSettings()) -> Report:
    """Computes all numbers.

    Args:
        runs: Runs on the same cases. Differences are those to the first.
        settings: Contents of the report.

    Raises:
        UserError: A file of a run is damaged, an aggregator is unknown, or different judges would
            stand in one column.
    """
    if not runs:
        raise UserError("a report needs a run; name the folders of runs")
    rated = [read_rated(run) for run in runs]
    design = Design(runs[0].cases)
    panels = panels_of(rated, design, allow_mixed=settings.allow_mixed)
    metrics = measure(runs, design)
    sampler = Sampler(design, settings.draws, settings.seed)
    gaps = [gap for each in rated for gap in gaps_of(each, panels)]
    rows: list[Row] = []
    sections = [
        runs_section(rated),
        *table_1_sections(panels, settings, rows),
        *published_section(settings, rows),
        *overall_section(panels, settings, sampler, rows),
        *metrics_section(metrics, sampler, rows),
        *differences_section(panels, metrics, runs[0].method, settings, sampler),
        *novelty_sections(panels, metrics, settings, sampler),
        *missing_section(panels, gaps, settings, rows),
        *judges_section(panels),
        *agreement_section(panels, metrics),
        *calibration_section(panels, settings, rows),
        *costs_section(rated),
    ]
    return Report(sections, rows, gaps, rated, panels)


def write_report(
    runs: Sequence[Run], folder: Path, title: str, settings: ReportSettings = ReportSettings()
) -> list[Path]:
    """Computes a report and writes it as a page, as text, and as files of numbers.

    Returns:
        The files: report.html, report.md, report.tex, numbers.csv and missing.csv.

    Raises:
        UserError: See `make_report`; or a file cannot be written.
    """
    with phase("computing the numbers"):
        report = make_report(runs, settings)
    with phase("writing the report"):
        contents = {
            "report.html": str(page_of(title, report, settings.gallery)),
            "report.md": markdown_text(title, report),
            "report.tex": latex_text(report),
            "numbers.csv": csv_text(Row, report.rows),
            "missing.csv": csv_text(Gap, report.gaps),
        }
        for name, content in contents.items():
            write_file(folder / name, content)
    return [folder / name for name in contents]
