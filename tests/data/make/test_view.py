"""The page to look at: whole, self-contained, and deaf to markup in what models said."""

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dsd_jax.data.make.stages import (
    DESCRIPTIONS,
    GRIDS,
    JUDGEMENTS,
    PAIRS,
    CutGrid,
    Pair,
    Turn,
)
from dsd_jax.data.make.view import write_page
from dsd_jax.errors import UserError
from tests.data.make.made import EVIL, write_folder


class Elements(HTMLParser):
    """Every tag with its attributes, the way a browser reads them, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def page(folder: Path, limit: int = 100, **made: object) -> str:
    parts = write_folder(folder / "made", **made)  # type: ignore[arg-type]
    write_page(parts, folder / "page.html", limit, "foxes")
    return (folder / "page.html").read_text(encoding="utf-8")


def test_every_grid_pair_and_word_is_there(tmp_path: Path):
    text = page(tmp_path, grids=6)
    found = Elements(text)
    pairs = [attributes for tag, attributes in found.tags if attributes.get("class") == "pair"]
    assert len(pairs) == 36
    assert {pair["data-verdict"] for pair in pairs} == {
        "yes",
        "no",
        "undecided",
        "failed",
        "rejected before the judge",
    }
    assert {pair["data-reason"] for pair in pairs} >= {"near_copy", "neither_yes_nor_no", ""}
    assert "no1 → 3 " in found.text  # once
    assert "1 → 3 no" not in found.text
    boxes = [attributes["style"] for tag, attributes in found.tags if tag == "i"]
    assert len(boxes) == 24
    assert "left: 51.562%; top: 1.562%; width: 46.875%; height: 46.875%" in boxes
    assert text.count("data:image/webp;base64,") + text.count("data:image/png;base64,") == 6
    assert "a grid of four photos of a tin robot" in found.text
    assert "move the red fox from 1 to 2" in found.text


def test_what_a_model_said_cannot_become_markup(tmp_path: Path):
    plain, evil = page(tmp_path / "a"), page(tmp_path / "b", said=EVIL)
    tags = [(tag, list(names)) for tag, names in Elements(plain).tags]
    assert [(tag, list(names)) for tag, names in Elements(evil).tags] == tags
    assert "document.title='owned'" in Elements(evil).text
    assert "<script>document" not in evil
    assert "\u202e" not in evil


def test_spaces_of_other_scripts_stay_as_they_are(tmp_path: Path):
    assert "赤い\u3000狐\u00a0!" in Elements(page(tmp_path, said="赤い\u3000狐\u00a0!")).text


def test_the_policy_lets_no_script_run_but_ours(tmp_path: Path):
    text = page(tmp_path)
    (policy,) = (
        attributes["content"]
        for tag, attributes in Elements(text).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in str(policy)
    assert "default-src 'none'" in str(policy)


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path):
    found = Elements(page(tmp_path))
    assert not [1 for _, attributes in found.tags if "src" in attributes]
    assert "http" not in page(tmp_path / "again").replace("http-equiv", "")


def test_every_grid_can_be_shown_large_and_closed_again(tmp_path: Path):
    found = Elements(page(tmp_path, grids=2))
    places = {attributes["id"] for tag, attributes in found.tags if tag == "figure"}
    links = {str(attributes["href"]) for _, attributes in found.tags if "href" in attributes}
    assert links == {"#closed", *(f"#{place}" for place in places)}
    assert len(places) == 2
    pictures = [names for _, names in found.tags if str(names.get("href")).startswith("#grid-")]
    assert {names.get("aria-label") for names in pictures} == {"Enlarge the grid"}


def test_of_many_grids_a_sample_is_shown(tmp_path: Path):
    text = page(tmp_path, limit=3, grids=10)
    assert text.count("<article") == 3
    assert "3 of 10 grids, a sample" in text


def test_a_rejected_grid_is_shown_with_its_reason(tmp_path: Path):
    parts = write_folder(tmp_path, 1, parts=1)
    (grid,) = parts.read(GRIDS, 0)
    parts.write(
        PAIRS,
        0,
        [
            CutGrid(
                id=grid.id,
                prompt_id=grid.prompt_id,
                task=grid.task,
                status="rejected",
                reason="uneven",
            )
        ],
    )
    parts.write(JUDGEMENTS, 0, [])
    write_page(parts, tmp_path / "page.html", 10, "foxes")
    found = Elements((tmp_path / "page.html").read_text(encoding="utf-8"))
    (row,) = (attributes for _, attributes in found.tags if attributes.get("class") == "pair")
    assert row["data-reason"] == "uneven"
    assert row["data-verdict"] == "rejected before the judge"


def test_a_pair_shows_its_lights_and_the_steps_of_its_task(tmp_path: Path):
    parts = write_folder(tmp_path, 1, parts=1)
    pairs = [row for row in parts.read(PAIRS, 0) if isinstance(row, Pair)]
    lit = {
        "reference_light": {"direction": "left", "source": "lamp"},
        "target_light": {"time": "night"},
    }
    parts.write(PAIRS, 0, [dataclasses.replace(row, **lit) for row in pairs])  # type: ignore[arg-type]
    turn = Turn(step="relight.step_2", sample=0, finish="stop", model="m", answer="Nothing moved.")
    answered = {"turns": (turn,), "scores": {"first_light": 9, "second_light": 7}}
    judged = [dataclasses.replace(row, **answered) for row in parts.read(JUDGEMENTS, 0)]  # type: ignore[arg-type]
    parts.write(JUDGEMENTS, 0, judged)
    grids = [dataclasses.replace(row, route="shared") for row in parts.read(GRIDS, 0)]
    parts.write(GRIDS, 0, grids)
    write_page(parts, tmp_path / "page.html", 10, "foxes")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "1 → 2 left, lamp → night" in Elements(text).text
    assert "first light 9, second light 7" in Elements(text).text
    assert '<dt>described</dt><dd dir="auto">Nothing moved.' in text
    assert '<dt>route</dt><dd dir="auto">shared' in text


def test_an_unfinished_folder_shows_what_there_is(tmp_path: Path):
    parts = write_folder(tmp_path, 4)
    for stage in (PAIRS, JUDGEMENTS, DESCRIPTIONS):
        parts.path(stage, 0).unlink()
    write_page(parts, tmp_path / "page.html", 10, "foxes")
    assert (tmp_path / "page.html").read_text().count("<article") == 4


def test_without_grids_there_is_no_page(tmp_path: Path):
    parts = write_folder(tmp_path, 1, parts=1)
    parts.path(GRIDS, 0).unlink()
    with pytest.raises(UserError, match="no finished part of `grids` to look at"):
        write_page(parts, tmp_path / "page.html", 10, "foxes")
