"""A judge's answer is one score, or it is none: nothing is guessed."""

import pytest

from dsd_jax.infer.evaluate.answers import read_score
from dsd_jax.infer.evaluate.protocols import load_protocols
from dsd_jax.llm.messages import Answer
from dsd_jax.llm.reading import answer_of

DREAMBENCH, SPLIT = load_protocols(["dreambench++", "split"])


def line(text, finish="stop"):
    return read_score(Answer(text, finish, "m"), DREAMBENCH, "pf")


def of_object(text):
    return read_score(Answer(text, "stop", "m"), SPLIT, "identity")


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Score: 3", 3),
        ("Analysis: a fine cat.\nScore: 0", 0),
        ("**Score:** 4", 4),
        ("score:\n2", 2),
        ("Score: [1]", 1),
        ("Score: Good (3)", 3),
        ("Score: 3/4", 3),
        ("Score: 3 out of 4.", 3),
        ("Score: 3.0", 3),
        ("Score: 3, since 2 legs differ", 3),
        ("Score = 2", 2),
        ("4", 4),
        (" **4**\n", 4),
        ("4/4", 4),
    ],
)
def test_one_score_is_read_however_it_is_dressed(text, score):
    assert line(text) == ("ok", score)


@pytest.mark.parametrize(
    "text",
    [
        "Score: 3\nScore: 3",
        "Analysis: its score: high.\nScore: 3",
        "Score: 0-4",
        "Score: 3 or 4",
        "Score: 3 to 4",
        "Score: 3, 4",
        "Score: 3.5",
        "Score: 3/5",
        "Score: three",
        "Score: [Your Score]",
        "I would give it 3",
        "The score is 3",
        "3 cats, 2 of them red",
        "3 cats",
        "I cannot help with that.",
        "Score: ٣",
    ],
)
def test_anything_else_is_unparsable(text):
    assert line(text) == ("unparsable", None)


@pytest.mark.parametrize("text", ["Score: 7", "Score: -1", "7", "Score: 34", f"Score: 1{'0' * 40}"])
def test_seven_of_four_is_out_of_range(text):
    assert line(text) == ("out_of_range", None)


@pytest.mark.parametrize(
    ("text", "finish", "state"),
    [
        ("Score: 3", "blocked", "refused"),
        ("", "blocked", "refused"),
        ("Score: 3", "length", "unparsable"),
        ("Score: 3", "other", "unparsable"),
        ("", "stop", "unparsable"),
        ("", "not_text", "unparsable"),
        ("Score: 3" + " " * 60_000, "stop", "unparsable"),
    ],
)
def test_an_answer_that_did_not_end_well_has_no_score(text, finish, state):
    assert line(text, finish) == (state, None)


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ('{"reason": "a score of 2?", "score": 3}', ("ok", 3)),
        ('```json\n{"score": "3"}\n```', ("ok", 3)),
        ('{"score": 3.0}', ("ok", 3)),
        ('{"score": 7}', ("out_of_range", None)),
        ('{"score": -1}', ("out_of_range", None)),
        ('{"score": 2.5}', ("unparsable", None)),
        ('{"score": true}', ("unparsable", None)),
        ('{"score": null}', ("unparsable", None)),
        ('{"score": "high"}', ("unparsable", None)),
        ('{"score": 3} {"score": 4}', ("unparsable", None)),
        ('{"mark": 3}', ("unparsable", None)),
        ("Score: 3", ("unparsable", None)),
    ],
)
def test_a_json_answer_is_an_object_with_one_score(text, outcome):
    assert of_object(text) == outcome


def test_thoughts_and_lists_of_parts_are_the_request_layers_business():
    parts = [{"type": "thinking", "thinking": "Score: 1"}, {"type": "text", "text": "Score: 3"}]
    for content in (parts, "<think>Score: 1? Score: 2?</think>Score: 3"):
        answer = answer_of(content, "stop", model="m", request_id="", usage=None)
        assert read_score(answer, DREAMBENCH, "cp") == ("ok", 3)
