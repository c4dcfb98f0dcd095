"""Flags: what is read, and how the help words it."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import tyro

from dsd_jax.errors import UserError
from dsd_jax.flags import call


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of sampling.

    Attributes:
        steps: number of steps, which is
            said in two lines of the source.
        size: height and width; by default those of the reference.
        vae_sample: Sample the posterior. Otherwise take its mode.
        tiled: Decode in tiles.
    """

    steps: int = 28
    size: tuple[int, int] | None = None
    vae_sample: bool = True
    tiled: bool = True


def paint(
    source: Path,
    folder: Path,
    /,
    *,
    sampling: tyro.conf.OmitArgPrefixes[Sampling] = Sampling(),
    frames: Annotated[Sampling, tyro.conf.arg(name="frame")] = Sampling(steps=2),
    scales: tuple[float, ...] = (),
    dtype: Literal["bfloat16", "float32"] | None = None,
    negative: str = "",
    dry: bool = False,
) -> dict[str, Any]:
    """Paint a picture.

    This second paragraph is longer than a terminal of eighty columns, so that it has to be wrapped.

    Args:
        source: Picture to paint from.
        folder: Folder to write to.
        sampling: How it is sampled.
        frames: How its frames are.
        scales: Scale of each LoRA.
        dtype: Cast to it. Default: nothing
            is cast.
        negative: What is not wanted.
        dry: Write nothing.
    """
    return locals()


def run(*words: str, **settings: Any) -> dict[str, Any]:
    return call(paint, words, "dsd paint", **settings)


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """The help at a width, without the frames, each flag with its text in one line."""

    def text(columns: int = 80, **settings: Any) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit, match="0"):
            run("--help", **settings)
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= columns
        return " ".join(out.translate(str.maketrans("│╭╮╰╯─", " " * 6)).split())

    return text


def test_words_become_values():
    made = run(
        "a.png", "out", "--steps", "4", "--size", "64", "32", "--scales", "1", "0.5",
        "--no_vae_sample", "--frame.steps=3", "--dtype", "float32", "--dry",
    )  # fmt: skip
    assert made["source"] == Path("a.png")
    assert made["folder"] == Path("out")
    assert made["sampling"] == Sampling(4, (64, 32), vae_sample=False)
    assert made["frames"].steps == 3
    assert made["scales"] == (1.0, 0.5)
    assert (made["dtype"], made["negative"], made["dry"]) == ("float32", "", True)


def test_hyphens_are_underscores_and_none_can_be_given():
    made = run("a", "b", "--no-vae-sample", "--size", "None", "--dtype", "None")
    assert made["sampling"] == Sampling(vae_sample=False)
    assert made["dtype"] is None


def test_defaults_of_an_instance():
    made = call(Sampling, ["--steps", "3"], "dsd", default=Sampling(size=(8, 8)))
    assert made == Sampling(3, (8, 8))


def test_positional_arguments_have_names(shown):
    out = shown()
    assert "usage: dsd paint [-h] [OPTIONS] SRC FOLDER" in out
    assert "SRC Picture to paint from. (required)" in out


def test_none_and_empty_defaults_are_not_shown(shown):
    out = shown()
    assert "--size INT INT Height and width; by default those of the reference. (optional)" in out
    assert "--dtype {bfloat16,float32} Cast to it. Default: nothing is cast. (optional)" in out
    assert "--negative STR What is not wanted. (optional)" in out
    assert "--scales [FLOAT [FLOAT ...]] Scale of each LoRA. (optional)" in out
    assert "None" not in out


def test_a_flag_that_turns_something_off_says_what_it_does(shown):
    out = shown()
    assert "--no_vae_sample Take its mode. (default: off)" in out
    assert "--no_tiled Do not decode in tiles. (default: off)" in out
    assert "--dry Write nothing. (default: off)" in out


def test_where_presets_decide_both_flags_are_there(shown):
    out = shown(pairs=True)
    assert "--vae_sample, --no_vae_sample Sample the posterior. Otherwise take its mode." in out
    assert "mode. (default: on)" in out
    assert run("a", "b", "--vae_sample", pairs=True)["sampling"] == Sampling()


def test_texts_are_sentences_in_one_paragraph(shown):
    out = shown()
    assert "Number of steps, which is said in two lines of the source. (default: 28)" in out
    assert "as to be wrapped" in shown(45)


@pytest.mark.parametrize("words", [("a",), ("a", "b", "--stpes", "3"), ("a", "b", "--dtype", "x")])
def test_a_wrong_line_is_refused(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        run(*words)
    assert capsys.readouterr().err


def test_values_that_a_dataclass_refuses_are_told_without_a_box(
    capsys: pytest.CaptureFixture[str],
):
    @dataclasses.dataclass(frozen=True)
    class Grid:
        """A grid.

        Attributes:
            rows: Number of rows.
        """

        rows: int = 2

        def __post_init__(self) -> None:
            if self.rows < 1:
                raise UserError(f"rows must be at least 1, got {self.rows}")

    def draw(grid: Grid = Grid(), other: Grid | None = None) -> tuple[Grid, Grid | None]:
        """Draw a grid.

        Args:
            grid: The grid.
            other: Another one.
        """
        return grid, other

    assert call(draw, ["--grid.rows", "3"], "dsd draw") == (Grid(3), None)
    for words in (["--grid.rows", "0"], ["other:grid", "--other.rows", "0"]):
        with pytest.raises(UserError, match=r"^rows must be at least 1, got 0$"):
            call(draw, words, "dsd draw")
    assert capsys.readouterr() == ("", "")


def test_a_positional_choice_lists_its_choices(capsys: pytest.CaptureFixture[str]):
    def shell(name: Literal["bash", "zsh"], /) -> str:
        """Name a shell.

        Args:
            name: Shell that reads it.
        """
        return name

    assert call(shell, ["zsh"], "dsd") == "zsh"
    with pytest.raises(SystemExit, match="0"):
        call(shell, ["--help"], "dsd")
    assert "usage: dsd [-h] {bash,zsh}" in capsys.readouterr().out


def test_a_path_may_begin_with_the_home_folder() -> None:
    given = call(paint, ["~/a.png", "out"], "dsd paint")
    assert (given["source"], given["folder"]) == (Path.home() / "a.png", Path("out"))


@pytest.mark.parametrize("address", ["gs://bucket/a.png", "https://host/a.png", "s3://b/a.png"])
def test_an_address_is_no_path(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        call(paint, [address, "out"], "dsd paint")
    assert "is the address of something elsewhere" in " ".join(capsys.readouterr().err.split())
