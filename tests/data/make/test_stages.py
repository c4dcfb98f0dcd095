"""Rows are written as JSON with sorted keys and read back; a row of another shape is refused."""

from pathlib import Path

import pytest

from dsd_jax.data.make.parts import Parts
from dsd_jax.data.make.stages import JUDGEMENTS, PROMPTS, STAGES, from_json, to_json
from dsd_jax.errors import UserError
from tests.data.make.made import write_folder


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_every_row_is_read_back(tmp_path: Path, stage):
    rows = list(write_folder(tmp_path).rows(stage))
    assert rows
    assert [from_json(stage, to_json(row)) for row in rows] == rows


def test_a_row_has_only_the_fields_that_are_set(tmp_path: Path):
    parts = write_folder(tmp_path, 1, parts=1)
    line = to_json(parts.read(PROMPTS, 0)[0])
    assert line == (
        '{"id": "0000000000000000-identity", "model": "model-1", "prompt": "a grid of four photos '
        'of a red fox: top-left, top-right 0", "status": "kept", "subject": "red fox", '
        '"task": "identity", "tokens": 20, "wording": "v1@0123"}'
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"kept"', '"maybe"'),
        ('"mode"', '"made"'),
        ("-identity-0-12", "-identity-0"),
        ('"sample": 0', '"sample": "none"'),
        ('"answer": "yes"', '"answer": "\\ud83d"'),
        ("{", "["),
    ],
)
def test_a_row_of_another_shape_is_refused(tmp_path: Path, old: str, new: str):
    line = to_json(write_folder(tmp_path, 1, parts=1).read(JUDGEMENTS, 0)[0])
    assert old in line
    with pytest.raises(ValueError, match="validation error"):
        from_json(JUDGEMENTS, line.replace(old, new))


def test_a_damaged_part_says_which_command_makes_it_again(tmp_path: Path):
    parts: Parts = write_folder(tmp_path, 2, parts=1)
    path = parts.path(JUDGEMENTS, 0)
    path.write_text(path.read_text().replace("kept", "lost"))
    with pytest.raises(UserError, match=r"part-00000.jsonl is damaged; .*`dsd data judge` again"):
        parts.read(JUDGEMENTS, 0)
