"""Text that UTF-8 cannot hold is named at the entrance, whatever it is nested in."""

import json
import os

import pytest

from dsd_jax.errors import UserError
from dsd_jax.text.plain import check_text, text_fault


@pytest.mark.parametrize("text", ["", "a cat", "ein Küken 🐤", "\0\x1b\u200d\ufffd\U0010ffff"])
def test_text_that_can_be_stored_comes_back_as_it_is(text: str):
    assert check_text(text, "--text") == text
    assert text_fault({text: [text]}) is None


def test_half_a_character_is_refused_by_name():
    half = json.loads('"a cat \\ud83d"')
    with pytest.raises(UserError, match=r"--text holds the half character \\ud83d, which UTF-8"):
        check_text(half, "--text")


def test_a_byte_of_the_command_line_is_refused_by_name():
    with pytest.raises(UserError, match="--text holds the byte 0xe9, which is not UTF-8"):
        check_text(os.fsdecode(b"caf\xe9"), "--text")


def test_the_place_of_a_fault_is_said():
    row = json.loads('{"id": 1, "words": {"captions": ["a", "b\\udc00"]}, "image": null}')
    assert text_fault(row) == (
        "words.captions.1 holds the half character \\udc00, which UTF-8 cannot hold"
    )
    assert text_fault(json.loads('{"a": {"x\\ud800": 1}}')) == (
        "a name in a holds the half character \\ud800, which UTF-8 cannot hold"
    )


def test_depth_is_no_danger():
    nested: object = "fine"
    for _ in range(50_000):
        nested = [nested]
    assert text_fault(nested) is None
