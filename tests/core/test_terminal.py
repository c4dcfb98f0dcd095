"""Tables and facts as text: every cell is there at any width, and nothing is coloured."""

import pytest
from rich.cells import cell_len

from dsd_jax.terminal import facts_text, table_text

COLUMNS = ("stage", "parts", "kept", "maybe charged", "dollars")
ROWS = [
    ("captions", "4/4", "300", "", "0.00"),
    ("  near_copy", "", "", "12", ""),
    ("描述 of pairs that are rather long", "3/4", "1,441", "7", "1,234.56"),
]


def test_a_table_that_fits_has_a_line_for_each_row():
    text = table_text(COLUMNS, ROWS, title="Yields", width=80)
    assert text.splitlines() == [
        "Yields",
        "stage                               parts   kept  maybe charged   dollars",
        "captions                              4/4    300                     0.00",
        "  near_copy                                                  12",
        "描述 of pairs that are rather long    3/4  1,441              7  1,234.56",
    ]


def test_a_long_first_cell_is_wrapped_before_the_others_move():
    text = table_text(COLUMNS, ROWS, width=60)
    assert text.splitlines()[1] == "captions                 4/4    300                     0.00"
    assert text.splitlines()[-1] == "  are rather long"


@pytest.mark.parametrize("width", [20, 45, 60, 80])
def test_no_cell_is_lost_and_no_line_is_too_long(width: int):
    text = table_text(COLUMNS, ROWS, title="Yields of a work folder", width=width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    shown = set(text.replace(":", " ").split())
    assert {word for row in ROWS for cell in row for word in cell.split()} <= shown
    assert {word for name in COLUMNS[1:] for word in name.split()} <= shown


def test_where_a_table_does_not_fit_every_cell_follows_its_column():
    assert table_text(COLUMNS, ROWS[:2], width=30).splitlines() == [
        "captions",
        "  parts: 4/4",
        "  kept: 300",
        "  dollars: 0.00",
        "  near_copy",
        "    maybe charged: 12",
    ]


def test_an_empty_table_has_its_columns():
    assert table_text(("task", "pairs"), [], width=80) == "task  pairs"


def test_facts_stay_to_the_right_of_their_names():
    facts = [("disk", "a path " * 8), ("hub", ""), ("[torch]", "/a/path/" + "x" * 40)]
    text = facts_text(facts, indent="  ", width=45)
    assert text.splitlines() == [
        "  disk     a path a path a path a path a path",
        "           a path a path a path",
        "  hub",
        "  [torch]  /a/path/xxxxxxxxxxxxxxxxxxxxxxxxxx",
        "           xxxxxxxxxxxxxx",
    ]


def test_foreign_letters_cannot_steer_the_terminal():
    assert "\x1b" not in table_text(("a", "b"), [("\x1b[31mred", "\x1b[2J")], width=80)
    assert "\x1b" not in facts_text([("a", "\x1b]0;title")])


def test_the_width_is_that_of_the_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "30")
    assert len(table_text(COLUMNS, ROWS[:1]).splitlines()) == 4
