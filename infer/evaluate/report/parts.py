"""Parts of a report, before they become text, a page or a file of numbers."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.aggregate import AGGREGATORS, AggregatorName
from dsd_jax.infer.evaluate.gaps import Gap
from dsd_jax.infer.evaluate.panels import Panel, Rated
from dsd_jax.page import Dot

__all__ = ["Report", "ReportSettings", "Row", "Section", "Table"]


@dataclasses.dataclass(frozen=True)
class ReportSettings:
    """Contents of a report.

    Attributes:
        aggregator: Rules that make one number of many ratings: official, dsd-baseline, dsd-ours,
            macro. Differences are compared by the first.
        calibration: Files of `dsd evaluate calibrate`, by which means are corrected.
        paper: Print the published numbers of Table 1 too, marked as published.
        allow_mixed: Let ratings of different judges or rubrics stand in one column.
        draws: Draws of the bootstrap over subjects.
        seed: Seed of these draws.
        gallery: Largest number of cases that the page shows with their images.
    """

    aggregator: tuple[AggregatorName, ...] = tuple(AGGREGATORS)
    calibration: tuple[Path, ...] = ()
    paper: bool = False
    allow_mixed: bool = False
    draws: int = 10_000
    seed: int = 0
    gallery: int = 40

    def __post_init__(self) -> None:
        if not self.aggregator:
            raise UserError(f"aggregator names one or more of {', '.join(AGGREGATORS)}")
        if self.draws < 1 or self.gallery < 0:
            raise UserError(
                "draws must be at least 1 and gallery at least 0, got "
                f"{self.draws} and {self.gallery}"
            )


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of words.

    Attributes:
        title: A line above it.
        columns: Names of the columns.
        rows: A cell for each column.
        blocks: Titles over groups of columns, with the number of columns of each.
        notes: Lines below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    blocks: Sequence[tuple[str, int]] = ()
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        title: Its heading.
        words: A paragraph under the heading.
        tables: Tables.
        points: Methods of a plot, whose axes are `axes`.
    """

    title: str
    words: str = ""
    tables: Sequence[Table] = ()
    points: Sequence[Dot] = ()
    axes: tuple[str, str] = ("", "")


@dataclasses.dataclass(frozen=True)
class Row:
    """A number with everything that it depends on, as the CSV file has it."""

    method: str
    protocol: str
    judge: str
    aggregator: str
    cases: str
    number: str
    value: float
    low: float | None = None
    high: float | None = None
    std: float | None = None
    published: bool = False


@dataclasses.dataclass(frozen=True)
class Report:
    """A report before it is written.

    Attributes:
        sections: Its parts, without the gallery.
        rows: All numbers.
        gaps: Everything that is missing.
        runs: The runs.
        panels: Their ratings.
    """

    sections: Sequence[Section]
    rows: Sequence[Row]
    gaps: Sequence[Gap]
    runs: Sequence[Rated]
    panels: Sequence[Panel]
