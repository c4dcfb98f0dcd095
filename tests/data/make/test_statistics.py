"""Statistics of a work folder: counts that add up, and measures that see repetition."""

import dataclasses
import itertools
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

from dsd_jax.data.make.folder import begun_folder
from dsd_jax.data.make.ids import CaptionId, PromptId
from dsd_jax.data.make.overview import plot_yields, tables
from dsd_jax.data.make.stages import (
    DESCRIPTIONS,
    JUDGEMENTS,
    PAIRS,
    Judgement,
    Pair,
    PanelDrift,
    Prompt,
)
from dsd_jax.data.make.statistics import (
    diversity,
    judging,
    yield_of,
)
from dsd_jax.errors import UserError
from tests.data.make.made import write_folder
from tests.data.make.scripted import pair


def shown(root: Path) -> str:
    return "\n".join(tables(root))


def test_rows_are_counted_by_status_and_reason(tmp_path: Path):
    counts = yield_of(write_folder(tmp_path, 6), JUDGEMENTS)
    assert (counts.rows, counts.kept, counts.finished) == (30, 12, 2)
    assert counts.reasons["undecided", "neither_yes_nor_no"] == 6
    assert counts.models == {"model-1": 30}


def test_the_tables_tell_yields_judgements_diversity_and_subjects(tmp_path: Path):
    write_folder(tmp_path, 6)
    text = shown(tmp_path)
    for words in (
        "near_copy",
        "no_clear_subject",
        "neither_yes_nor_no",
        "red fox",
        "distinct 2-gr",
    ):
        assert words in text
    (line,) = (line for line in text.splitlines() if "undecided" in line and "20.0 %" in line)
    assert "6" in line


def test_an_unfinished_folder_is_shown_as_far_as_it_is(tmp_path: Path):
    parts = write_folder(tmp_path, 6)
    for stage in (JUDGEMENTS, DESCRIPTIONS):
        for part in range(parts.count):
            parts.path(stage, part).unlink()
    assert "0/2" in shown(tmp_path)


def prompt(text: str | None, subject: str = "") -> Prompt:
    return Prompt(
        id=PromptId(CaptionId("0" * 16), "identity"),
        task="identity",
        wording="v1",
        status="kept" if text else "rejected",
        prompt=text,
        subject=subject,
    )


def test_repetition_lowers_every_measure_of_diversity():
    same = diversity(
        prompt("a grid of four red robots: top-left in rain", "robot") for _ in range(9)
    )
    letters = "abcdefghi"
    other = diversity(
        prompt(" ".join(letter * n for n in range(1, 9)), letter) for letter in letters
    )
    assert same.effective == pytest.approx(1)
    assert other.effective == pytest.approx(9)
    assert same.distinct[2] == pytest.approx(1 / 9)
    assert other.distinct[2] == 1
    assert (same.overlap, other.overlap) == (1, 0)
    assert same.subjects == {"robot": 9}


def test_rejected_prompts_do_not_count():
    assert diversity([prompt(None)]).prompts == 0


def test_the_judges_doubts_are_counted(tmp_path: Path):
    judged = judging(write_folder(tmp_path, 6).rows(JUDGEMENTS))
    assert judged.verdicts == {"yes": 12, "no": 6, "undecided": 6, "failed": 6}
    assert judged.undecided_share == 0.2
    assert judged.asked_again == 6
    audit = Judgement(
        id=pair("12").id, mode="grid", wording="v1", turns=(), verdict="yes", status="kept"
    )
    verdicts: tuple[Literal["yes", "no"] | None, ...] = ("yes", "no", None)
    judged = judging(dataclasses.replace(audit, grid_verdict=one) for one in verdicts)
    assert (judged.audited, judged.agreed) == (2, 1)


def test_a_plot_is_drawn(tmp_path: Path):
    write_folder(tmp_path / "made", 6)
    plot_yields(tmp_path / "made", tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 1000


def test_a_folder_of_something_else_is_named(tmp_path: Path):
    with pytest.raises(
        UserError, match="is not a work folder of `dsd data make`: it has no readable making"
    ):
        begun_folder(tmp_path)


def test_the_drift_of_measured_pairs_has_a_table(tmp_path: Path):
    parts = write_folder(tmp_path, 6)
    assert "Drift" not in shown(tmp_path)
    rows = [row for row in parts.read(PAIRS, 0) if isinstance(row, Pair)]
    lengths = itertools.cycle([0.2, 0.4, None])
    moved = [
        dataclasses.replace(
            row, drift=PanelDrift(verdict="still" if length else "cannot tell", largest_px=length)
        )
        for row, length in zip(rows, lengths, strict=False)
    ]
    with parts.writing(PAIRS, 0):
        parts.write(PAIRS, 0, moved)
    text = shown(tmp_path)
    assert "Drift" in text
    assert "0.3" in text
