"""Words for pairs: every panel and every direction once, rules checked, losses named."""

from collections.abc import Callable

import pytest

from dsd_jax.data.make.describe import CaptionConfig, Describer
from dsd_jax.data.make.stages import Description, Words
from dsd_jax.data.make.wording import load_wording
from dsd_jax.errors import UserError
from dsd_jax.llm.messages import Answer, Picture, Request, Unanswered
from tests.data.make.scripted import GRID, MODEL, Scripted, do, pair, panels, question_of


def told(request: Request) -> str:
    """A description of one panel, or an instruction from one to another."""
    shown = [
        part.data.decode()[-1] for part in request.messages[0].parts if isinstance(part, Picture)
    ]
    return (
        f"a fox as in panel {shown[0]}" if len(shown) == 1 else f"move it from {' to '.join(shown)}"
    )


def describe(
    answer: Callable[[Request], str | Answer], *pairs: str, **settings: object
) -> tuple[list[Description], Scripted]:
    ask = Scripted(answer)
    config = CaptionConfig("viewer", **settings)  # type: ignore[arg-type]
    describer = Describer(config, load_wording(None, "caption"), lambda x: len(x.split()), panels)
    return do(describer([pair(ends) for ends in pairs], ask)), ask


def test_both_ways_are_described_and_no_panel_twice():
    rows, ask = describe(told, "12", "13")
    first = rows[0]
    assert (first.status, first.model) == ("kept", MODEL)
    assert first.forward == Words(
        caption="a fox as in panel 2",
        caption_model=MODEL,
        instruction="move it from 1 to 2",
        instruction_model=MODEL,
    )
    assert first.reverse is not None
    assert first.reverse.caption == "a fox as in panel 1"
    assert first.reverse.instruction == "move it from 2 to 1"
    assert sorted(request.item for request in ask.asked) == [
        f"{GRID}-{name}" for name in ("1", "12", "13", "2", "21", "3", "31")
    ]


def test_one_way_and_one_kind_alone():
    rows, ask = describe(told, "12", both_ways=False, instruction=False)
    assert rows[0].forward.caption == "a fox as in panel 2"
    assert rows[0].forward.instruction is None
    assert rows[0].reverse is None
    assert len(ask.asked) == 1


@pytest.mark.parametrize(
    ("bad", "complaint", "reason"),
    [
        ("Transform the fox into gold", 'holds the word "transform"', "about_pictures"),
        ("make the IMAGE darker", 'holds the word "image"', "about_pictures"),
        ("move it\nand then again", "more than one line", "several_lines"),
    ],
)
def test_instructions_keep_to_their_rules(bad: str, complaint: str, reason: str):
    rows, ask = describe(lambda r: bad, "12", description=False, both_ways=False)
    assert (rows[0].status, rows[0].reason) == ("rejected", reason)
    assert complaint in question_of(ask.asked[1])
    assert len(ask.asked) == 3


def test_a_description_that_is_too_long_is_asked_for_again():
    def answer(request: Request) -> str:
        return "fox " * 78 if len(request.messages) == 1 else "a fox"

    rows, ask = describe(answer, "12", instruction=False, both_ways=False)
    assert rows[0].forward.caption == "a fox"
    assert "78 CLIP tokens where 77 are allowed" in question_of(ask.asked[1])


def test_a_pair_with_one_kind_of_words_left_is_kept():
    def answer(request: Request) -> str:
        if len(request.messages[0].parts) == 2:
            raise Unanswered("too large")
        return told(request)

    rows, _ = describe(answer, "12")
    assert rows[0].status == "kept"
    assert rows[0].forward.no_caption == "unanswered"
    assert rows[0].forward.instruction == "move it from 1 to 2"


def test_a_pair_without_words_is_failed_or_rejected():
    def refuse(request: Request) -> str:
        raise Unanswered("too large")

    rows, _ = describe(refuse, "12")
    assert (rows[0].status, rows[0].reason) == ("failed", "unanswered")
    rows, _ = describe(lambda r: Answer("", "blocked", MODEL), "12")
    assert (rows[0].status, rows[0].reason) == ("rejected", "blocked")


def test_no_words_at_all_is_refused():
    with pytest.raises(UserError, match="a pair needs words: description, instruction, or both"):
        CaptionConfig("viewer", description=False, instruction=False)
