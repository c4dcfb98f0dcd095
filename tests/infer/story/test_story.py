"""Pages of a story: layouts, letters in their boxes, files that do not change, bad story files."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.story.letters import run
from dsd_jax.errors import UserError
from dsd_jax.images import open_image
from dsd_jax.infer.cli import ModelFlags
from dsd_jax.infer.story.book import write_book
from dsd_jax.infer.story.cli import draw
from dsd_jax.infer.story.draw import bind, check
from dsd_jax.infer.story.layout import Box, Layout, load_layout
from dsd_jax.infer.story.letters import Letters
from dsd_jax.infer.story.page import Picture, letter
from dsd_jax.infer.story.place import Words
from dsd_jax.infer.story.script import Panel, Story, read_story, write_story
from dsd_jax.marks import GENERATED
from tests.marked import TYPE, source_types
from tests.random_flux import picture

SQUARE = (300, 300)


def lettered(*words: Words, subject=(0.3, 0.4, 0.7, 0.9), **more):
    return letter(Picture(picture(), words, subject), SQUARE, Letters(), "panel 1", **more)


class TestLayouts:
    @pytest.mark.parametrize("name", ["2x4", "3-3-2", "manga"])
    def test_eight_panels_fill_a_page_and_do_not_touch(self, name):
        layout = load_layout(name)
        ((*boxes,),) = layout.pages(8)
        page = Box(0, 0, *layout.page).grown(-layout.margin)
        assert len(boxes) == 8
        assert all(page.holds(box) for box in boxes)
        for i, box in enumerate(boxes):
            assert not any(box.grown(layout.gutter // 2).common(other) for other in boxes[:i])
        assert max(box.bottom for box in boxes) == page.bottom
        assert {min(box.left for box in boxes), max(box.right for box in boxes)} == {
            page.left,
            page.right,
        }

    def test_manga_begins_on_the_right(self):
        boxes = load_layout("manga").boxes(3)
        assert boxes[1].left > boxes[2].right
        left_to_right = load_layout("3-3-2").boxes(2)
        assert left_to_right[0].right < left_to_right[1].left

    def test_a_longer_story_goes_on_with_rows_of_the_same_height(self):
        layout = load_layout("2x4")
        first, second = layout.pages(10)
        assert (len(first), len(second)) == (8, 2)
        assert second == first[:2]
        assert layout.boxes(1)[0].width == layout.page[0] - 2 * layout.margin

    def test_a_file_adds_layouts(self, tmp_path):
        own = tmp_path / "own.toml"
        own.write_text("[strip]\npage = [900, 330]\nrows = [[1, 2]]\n")
        first, second = load_layout("strip", own).boxes(2)
        assert second.width == pytest.approx(2 * first.width, abs=2)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("page = [900, 330]\nrows = [[1, 0]]", "widths and heights must be above 0"),
            ("page = [900, 330]\nrows = []", "rows must have at least one row"),
            ("page = [200, 200]\nrows = [[1, 1]]", r"a panel of \d+x140 pixels is smaller than"),
            ("page = [900, 330]\nrows = [[1]]\nheights = [1, 1]", "1 rows but 2 heights"),
            ("page = [900, 330]\nrows = [[1]]\ngap = 3", "gap"),
        ],
    )
    def test_a_layout_that_cannot_be_is_a_message(self, tmp_path, text, message):
        own = tmp_path / "own.toml"
        own.write_text(f"[strip]\n{text}\n")
        with pytest.raises(UserError, match=message):
            load_layout("strip", own)

    def test_a_near_name_is_offered(self):
        with pytest.raises(UserError, match=r"no layout 'mango'; .*manga'\?"):
            load_layout("mango")


class TestLetters:
    def test_no_letter_leaves_its_box_in_three_scripts(self):
        for counts in run(12).values():
            assert counts["outside"] == 0
            assert counts["set"] > counts.total() / 2

    def test_texts_keep_off_the_subject_and_stand_in_reading_order(self):
        words = Words("caption", "It was late."), Words("balloon", "Who is there?")
        for right_to_left in (False, True):
            drawn = lettered(*words, right_to_left=right_to_left)
            first, second = (one.box for one in drawn.placed)
            assert not drawn.subject.common(first)
            assert not drawn.subject.common(second)
            assert not first.common(second)
            beside = second.right <= first.left if right_to_left else second.left >= first.right
            assert second.top >= first.bottom or (beside and second.top >= first.top)

    def test_the_same_text_is_set_alike(self):
        words = Words("balloon", "Ça va?")
        first, second = lettered(words), lettered(words)
        np.testing.assert_array_equal(np.asarray(first.image), np.asarray(second.image))

    def test_a_longer_text_has_smaller_letters(self):
        short, long = (
            lettered(Words("caption", "On the hill " * count)).placed[0].setting
            for count in (1, 20)
        )
        assert short.size > long.size
        assert len(long.lines) > len(short.lines)

    def test_a_word_is_cut_only_where_it_is_wider_than_its_panel(self):
        for word, whole in (("Again?", True), ("Donaudampfschifffahrt" * 2, False)):
            (drawn,) = lettered(Words("balloon", word), subject=(0.3, 0.3, 0.9, 0.95)).placed
            assert (drawn.setting.lines == (word,)) == whole
            assert "".join(line.rstrip("-") for line in drawn.setting.lines) == word

    def test_a_text_that_cannot_be_set_is_a_message(self):
        with pytest.raises(UserError, match=r"\d+ letters do not fit in panel 1 of 300x300 pixels"):
            lettered(Words("caption", "On the hill " * 200))
        with pytest.raises(UserError, match=r"has no '愛' \(U\+611B\), which the text of panel 1"):
            lettered(Words("caption", "愛"))

    def test_a_font_that_is_none(self, tmp_path):
        (tmp_path / "a.ttf").write_text("text")
        with pytest.raises(UserError, match=r"a\.ttf is no font that can be read"):
            Letters(tmp_path / "a.ttf")


def story(count: int = 3, **more) -> Story:
    panels = [Panel(f"a cat, scene {i}", f"Scene {i}.", ("Meow!",), i) for i in range(count)]
    return Story("The <Cat>", tuple(panels), **more)


@pytest.fixture
def painted(tmp_path) -> Path:
    """A folder with a story whose panels are painted."""
    write_story(tmp_path, story())
    (tmp_path / "panels").mkdir()
    for i in range(3):
        picture(i).save(tmp_path / "panels" / f"panel-{i + 1:02d}.png")
    return tmp_path


class TestBooks:
    layout = Layout((420, 560), ((1, 1), (1,)), right_to_left=True)

    def test_pages_a_pdf_and_an_archive_with_the_same_bytes_each_time(self, painted):
        made = []
        for _ in range(2):
            paths = bind(read_story(painted), painted, self.layout, Letters(), GENERATED)
            made.append({path.name: path.read_bytes() for path in paths})
        assert list(made[0]) == ["page-1.png", "story.pdf", "story.cbz"]
        assert made[0] == made[1]
        assert open_image(painted / "page-1.png").size == (420, 560)
        assert source_types(made[0]["page-1.png"]) == [TYPE]
        assert made[0]["story.pdf"].startswith(b"%PDF-")
        assert made[0]["story.pdf"].count(b"/Type /Page\n") == 1
        with zipfile.ZipFile(painted / "story.cbz") as archive:
            assert archive.namelist() == ["page-1.png", "ComicInfo.xml"]
            about = archive.read("ComicInfo.xml").decode()
        assert "<Title>The &lt;Cat&gt;</Title>" in about
        assert "<Manga>YesAndRightToLeft</Manga>" in about
        assert str(painted).encode() not in b"".join(made[0].values())

    def test_pages_of_a_longer_story_go(self, tmp_path):
        page = Image.new("RGB", (64, 64))
        write_book(tmp_path, "a", [page, page], None)
        write_book(tmp_path, "a", [page], None)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "page-1.png", "story.cbz", "story.pdf",
        ]  # fmt: skip

    def test_a_missing_panel_is_named(self, painted):
        (painted / "panels" / "panel-02.png").unlink()
        with pytest.raises(UserError, match=r"there is no .*panel-02\.png; paint the panels"):
            bind(story(), painted, self.layout, Letters(), None)

    def test_texts_and_the_reference_are_tried_before_the_model_is_loaded(
        self, tmp_path, monkeypatch
    ):
        def loaded(flags: ModelFlags) -> None:
            raise AssertionError

        monkeypatch.setattr(ModelFlags, "load", loaded)
        long = Panel("a cat", "word " * 900)
        for told, panel in (
            (r"there is no image at .*reference\.png", Panel("a cat")),
            ("letters do not fit in panel 2", long),
        ):
            write_story(tmp_path, Story("a", (Panel("a cat"), panel)))
            with pytest.raises(UserError, match=told):
                draw(tmp_path)
            picture().save(tmp_path / "reference.png")

    def test_a_reference_outside_of_the_folder_is_not_read(self, tmp_path):
        picture().save(tmp_path / "private.png")
        folder = tmp_path / "story"
        folder.mkdir()
        (folder / "link.png").symlink_to(tmp_path / "private.png")
        for outside in ("../private.png", str(tmp_path / "private.png"), "link.png"):
            told = Story("a", (Panel("a cat"),), reference=outside)
            with pytest.raises(UserError, match="outside of the story's folder; copy the picture"):
                check(told, folder, self.layout, Letters())


class TestStoryFiles:
    def test_it_comes_back(self, tmp_path):
        write_story(tmp_path, story(layout="manga"))
        assert read_story(tmp_path) == story(layout="manga")

    def test_one_panel_gets_another_seed(self):
        assert [panel.seed for panel in story().with_new_seed(2).panels] == [0, 2, 2]
        with pytest.raises(UserError, match="there is no panel 4; panels are 1 to 3"):
            story().with_new_seed(4)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"panels": []}, "a story needs at least one panel"),
            ({"panels": [{"prompt": "a"}, {"caption": "b"}]}, "panel 2: `prompt` is missing"),
            ({"panels": [{"prompt": " "}]}, "panel 1: prompt is empty; describe all that the"),
            ({"panels": ["a cat"]}, "panel 1 must be an object such as"),
            ({"panels": "a cat"}, "`panels`: "),
            ({"title": "a\u0000b"}, r"title must be one line of printable text, got 'a\\x00b'"),
            (
                {"panels": [{"prompt": "a", "subject": [0.5, 0, 0.2, 1]}]},
                "panel 1: .*from 0 to 1, got",
            ),
            ({"panels": [{"prompt": "a", "seed": -1}]}, "a seed must be from 0"),
            ({"panel": 3}, "unknown key `panel`; did you mean 'panels'"),
        ],
    )
    def test_a_file_that_holds_something_else_is_a_message(self, tmp_path, change, message):
        write_story(tmp_path, story())
        path = tmp_path / "story.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(UserError, match=message):
            read_story(tmp_path)

    def test_a_folder_without_a_story(self, tmp_path):
        with pytest.raises(UserError, match=r"there is no .*story\.json"):
            read_story(tmp_path)
