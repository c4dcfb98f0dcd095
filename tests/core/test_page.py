"""Pages in one file: what they hold, and what they let in."""

import base64
import io
import math
import re
from pathlib import Path

import pytest
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.interval import Interval
from dsd_jax.page import SMALL, Card, Dot, Page, Picture, data_uri

EVIL = "<script>alert(1)</script>\"'&"


def test_foreign_words_are_words_wherever_they_stand():
    page = Page(EVIL)
    page.heading(EVIL)
    page.text(EVIL)
    page.link(EVIL, EVIL)
    page.code([EVIL])
    page.table([(EVIL, EVIL), (EVIL, EVIL)])
    page.cards([Card([Picture(Image.new("RGB", (4, 4)), EVIL)], EVIL, [(EVIL, EVIL)])])
    page.curve([(1, 2.0), (2, 1.0)], EVIL, EVIL)
    text = str(page)
    assert "<script" not in text
    assert "default-src 'none'" in text  # not even a script that got in would run
    assert "http" not in text.replace("http-equiv", "")  # nothing is fetched


def test_every_card_can_be_shown_large_and_closed_again():
    page = Page("x")
    page.cards([Card([Picture(Image.new("RGB", (4, 4)))], "one")])
    page.cards([Card([Picture(Image.new("RGB", (4, 4)), marked=True)], "two")])
    ids = re.findall(r'id="(card-\d+)"', str(page))
    assert len(set(ids)) == 2
    assert re.findall(r'href="#(card-\d+)"', str(page)) == ids
    assert str(page).count('href="#closed"') == 2
    assert str(page).count('class="marked small"') == 1


def test_a_card_without_pictures_opens_nothing():
    page = Page("x")
    page.cards([Card([], "the image is damaged", [("file", "a.png")])])
    assert "<dt>file</dt>" in str(page)
    assert 'href="#card' not in str(page)


def test_large_pictures_are_made_smaller_and_small_ones_keep_every_bit():
    small = Image.effect_noise((SMALL, 20), 50).convert("RGB")
    kind, _, data = data_uri(small).partition(";base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as kept:
        assert kind == "data:image/png"
        assert kept.tobytes() == small.tobytes()
    kind, _, data = data_uri(Image.new("RGBA", (1000, 500))).partition(";base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as kept:
        assert (kind, kept.size) == ("data:image/webp", (640, 320))


def test_letters_that_cannot_be_written_are_replaced(tmp_path: Path):
    page = Page("x")
    page.text("half \ud83d, backwards \u202e")
    page.write(tmp_path / "page.html")
    assert "half \ufffd, backwards \ufffd" in (tmp_path / "page.html").read_text(encoding="utf-8")


def ticks(points: list[tuple[float, float]]) -> tuple[list[str], list[str]]:
    """The labels of the values from low to high, and of the positions."""
    page = Page("x")
    page.curve(points, "step", "loss")
    up, along = (
        re.findall(rf'class="{side}" style="[^"]*">([^<]*)<', str(page)) for side in ("up", "along")
    )
    return up, along


@pytest.mark.parametrize(
    ("points", "up", "along"),
    [
        ([(0, 0.0), (100, 9.0)], "0 2 4 6 8 10", "0 20 40 60 80 100"),
        ([(10, 2.1), (30, 0.11)], "0.1 0.2 0.5 1 2 5", "10 15 20 25 30"),
        ([(1, 1.0), (2, 1.0)], "0 0.2 0.4 0.6 0.8 1", "1 1.2 1.4 1.6 1.8 2"),
        ([(1, -1.0), (2, math.nan), (3, -1.0)], "-1 -0.8 -0.6 -0.4 -0.2 0", "1 1.5 2 2.5 3"),
    ],
)
def test_axes_have_round_numbers(points: list[tuple[float, float]], up: str, along: str):
    assert ticks(points) == (up.split(), along.split())


def test_a_curve_needs_two_points():
    page = Page("x")
    page.curve([(1, 2.0), (2, math.inf)], "step", "loss")
    assert "too few points" in str(page)


def test_a_page_that_cannot_be_written_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        Page("x").write(tmp_path / "file" / "page.html")


def test_a_wide_table_scrolls_in_its_own_box_and_has_titles_over_columns():
    page = Page("t")
    page.table([["a", "b", "c"], ["1", "<2>", "3"]], [("", 1), ("both & all", 2)], folded=False)
    text = str(page)
    assert '<div class="scroll"><table class="unfolded">' in text
    assert '<th colspan="2">both &amp; all</th>' in text
    assert "<td>&lt;2&gt;</td>" in text


def test_points_of_a_plot_have_names_and_intervals():
    page = Page("t")
    dots = [
        Dot("<ours>", Interval(0.2, 0.1, 0.3), Interval(0.5, 0.4, 0.6)),
        Dot("theirs", Interval(0.8, 0.7, 0.9), Interval(0.5, 0.4, 0.6)),
    ]
    page.scatter(dots, "novelty", "identity")
    text = str(page)
    assert "identity (upwards) by novelty" in text
    left, right = re.findall(r'<span class="name" style="(.*?)">(.*?)</span>', text)
    assert left == ("left: 20.00%; top: 50.00%", "&lt;ours&gt;")
    assert right[0] == "right: 20.00%; top: 56.00%"  # moved down, for they share a level
    assert text.count("<path d=") == text.count('<path class="dot"') == 2


def test_one_point_without_spread_is_a_plot():
    page = Page("t")
    page.scatter([Dot("ours", Interval(0, 0, 0), Interval(1, 1, 1))], "x", "y")
    assert "nan" not in str(page)
    assert '<path class="dot"' in str(page)  # its two lines have no length


def test_a_list_of_contents_leads_to_every_section():
    page = Page("t", contents=True)
    for words in ("one", "<two>"):
        page.heading(words)
    page.heading("part", 3)
    text = str(page)
    assert '<li><a href="#section-1">&lt;two&gt;</a></li>' in text
    assert '<h2 id="section-1">&lt;two&gt;</h2>' in text
    assert text.index("<nav>") < text.index("<h2")
    assert "<nav>" not in str(Page("t"))
