"""The notebook and the page that show how to play with the toy."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from dsd_jax.toy.world import (
    BACKGROUNDS,
    COLOURS,
    MARKINGS,
    PLACES,
    SHAPES,
    SIDES,
    SIZES,
    STRENGTHS,
    TILTS,
    TINTS,
)

NOTEBOOK = Path(__file__).parents[2] / "integrations" / "notebooks" / "toy.ipynb"


def code_cells() -> list[dict[str, Any]]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_is_stored_as_it_ran():
    outputs = [output for cell in code_cells() for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert "the same star on sea at northeast" in json.dumps(outputs)
    assert {output["output_type"] for output in outputs} == {"execute_result", "stream"}
    assert NOTEBOOK.stat().st_size < 200_000


@pytest.mark.slow
def test_the_notebook_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)  # it needs no file of the checkout
    names: dict[str, Any] = {}
    for cell in code_cells():
        exec("".join(cell["source"]), names)
    assert "the same star on sea at northeast" in capsys.readouterr().out


def test_the_page_about_the_toy_lists_every_word_of_a_description():
    page = (NOTEBOOK.parents[2] / "docs" / "toy.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    listed = {word.strip() for row in rows for cell in row.split("|") for word in cell.split(",")}
    kinds = (COLOURS, SHAPES, MARKINGS, BACKGROUNDS, PLACES, SIZES, TILTS, TINTS, SIDES, STRENGTHS)
    assert set(itertools.chain(*kinds)) - listed == {"big", "upright"}  # go unsaid
