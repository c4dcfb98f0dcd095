"""Texts of the requests: ours, a user's in place of them, and what a wrong file is told."""

from pathlib import Path

import pytest

from dsd_jax.data.make.wording import load_wording
from dsd_jax.errors import UserError


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_foreign_words_are_filled_in_as_they_are():
    wording = load_wording(None, "prompts")
    filled = wording("identity", caption="a {caption} with {faults} and \\1")
    assert filled.endswith("a {caption} with {faults} and \\1")
    assert "{" not in filled.removesuffix("a {caption} with {faults} and \\1")


def test_every_text_keeps_the_clauses_of_the_paper():
    prompts, judge = load_wording(None, "prompts"), load_wording(None, "judge")
    for task in ("identity", "relight", "expression", "free"):
        for quadrant in ("top-left", "top-right", "bottom-left", "bottom-right"):
            assert quadrant in prompts.texts[task]
    assert "a grid of" in prompts.texts["system"]
    assert "77" in prompts.texts["system"]
    assert "as strictly as you can" in judge.texts["step_3"]
    assert "yes or no" in judge.texts["step_3"]


def test_a_file_replaces_single_texts_and_changes_the_id_of_that_stage_alone(tmp_path: Path):
    path = write(tmp_path, 'name = "paper"\n[judge]\nstep_1 = "What do both show?"\n')
    ours, own = load_wording(None, "judge"), load_wording(path, "judge")
    assert own("step_1") == "What do both show?"
    assert own("step_2") == ours("step_2")
    assert own.id.startswith("paper@")
    digest = own.id.partition("@")[2]
    assert digest != ours.id.partition("@")[2]
    same = load_wording(path, "caption").id.partition("@")[2]
    assert same == load_wording(None, "caption").id.partition("@")[2]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[judge]\nstep_1 = "x"\n', 'needs a name, such as name = "paper"'),
        ('name = "x"\n[judges]\nstep_1 = "x"\n', r"no \[judges\]; did you mean 'judge'\?"),
        ('name = "x"\n[judge]\nstep1 = "x"\n', r"no text 'step1'; did you mean 'step_1'\?"),
        ('name = "x"\n[judge]\nstep_1 = 3\n', "judge.step_1 must be a text"),
        (
            'name = "x"\n[relight.judge]\nstep1 = "x"\n',
            r"\[judge\] has no text 'relight.step1'; did you mean 'relight.step_1'\?",
        ),
        ('name = "x"\n[prompts]\nfree = "go"\n', "must hold {caption} and no others"),
        ('name = "x"\n[judge]\nstep_1 = "{x}"\n', "must hold no fields and no others"),
        ('name = "x\n', "not TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, complaint: str):
    with pytest.raises(UserError, match=complaint):
        load_wording(write(tmp_path, text), "judge")


def test_texts_of_a_task_count_only_where_it_is_made(tmp_path: Path):
    plain, lit = load_wording(None, "judge"), load_wording(None, "judge", ["identity", "relight"])
    assert not any("." in name for name in plain.texts)
    assert lit.texts.items() > plain.texts.items()
    assert "camera" in lit("relight.step_3")
    assert plain.id != lit.id
    path = write(tmp_path, 'name = "mine"\n[relight.judge]\nstep_1 = "What stands still?"\n')
    assert load_wording(path, "judge", ["relight"])("relight.step_1") == "What stands still?"
    assert load_wording(path, "judge").texts == plain.texts


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot read .*none.toml: No such file"):
        load_wording(tmp_path / "none.toml", "judge")
