"""The judge: what counts as a verdict, and what becomes of everything else."""

import dataclasses
import json

import pytest

from dsd_jax.data.make.ids import CaptionId, GridId, PromptId
from dsd_jax.data.make.judge import Judge, JudgeConfig, verdict_of
from dsd_jax.data.make.stages import Judgement, Pair
from dsd_jax.data.make.wording import load_wording
from dsd_jax.errors import UserError
from dsd_jax.lights import load_lights
from dsd_jax.llm.messages import Answer, Picture, Request, Unanswered
from dsd_jax.tasks import task_named
from tests.data.make.scripted import (
    GRID,
    MODEL,
    Scripted,
    blocked,
    do,
    in_turn,
    pair,
    panels,
    question_of,
)

WORDING = load_wording(None, "judge")
ASPECTS = task_named("identity").asked().aspects


def judge(ask: Scripted, *pairs: str, **settings: object) -> list[Judgement]:
    config = JudgeConfig("viewer", **settings)  # type: ignore[arg-type]
    judge = Judge(config, WORDING, panels, lambda grid: f"png {grid}".encode())
    return do(judge([pair(ends) for ends in pairs or ("12",)], ask))


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("They match in every detail.\n\nyes", "yes"),
        ("Different hats. No.", "no"),
        ("So the answer is: **Yes**\n", "yes"),
        ("1. x\n2. y\n\n```\nNO\n```", "no"),
        ("There is no difference at all: yes!", "yes"),
        ("Answer: \\boxed{yes}", "yes"),
        ("_no_", "no"),
        ("yes\n\nThey share a hat.", None),
        ("I would say yes and no", None),
        ("Does it end with 'yes' or 'no'?", None),
        ("yes, 90%", None),
        ("Yesterday", None),
        ("maybe", None),
        ("nope", None),
        ("...", None),
        ("", None),
    ],
)
def test_the_verdict_is_the_last_word_of_the_last_line(text: str, verdict: str | None):
    assert verdict_of(text) == verdict


def test_three_turns_of_one_conversation_with_both_panels_in_the_first():
    ask = in_turn("A red fox.", "Both have one white paw.", "It is the same fox. yes")
    (row,) = judge(ask, "31")
    assert (row.id, row.status, row.verdict) == (pair("31").id, "kept", "yes")
    assert [len(request.messages) for request in ask.asked] == [1, 3, 5]
    third = ask.asked[2].messages
    assert [turn.role for turn in third] == ["user", "assistant"] * 2 + ["user"]
    shown = [part for turn in third for part in turn.parts if isinstance(part, Picture)]
    assert [picture.data for picture in shown] == [b"png 3", b"png 1"]  # reference first
    assert third[1].parts == ("A red fox.",)
    assert "as strictly as you can" in question_of(ask.asked[2])
    assert [turn.answer for turn in row.turns] == [
        "A red fox.",
        "Both have one white paw.",
        "It is the same fox. yes",
    ]
    assert row.model == MODEL
    assert row.wording == WORDING.id


def test_no_is_a_reject():
    (row,) = judge(in_turn("a", "b", "Another tail. No"))
    assert (row.status, row.reason, row.verdict) == ("rejected", "no", "no")


@pytest.mark.parametrize(
    ("third", "reason"),
    [
        ("It is hard to say.", "neither_yes_nor_no"),
        (Answer("It is not the same, no", "length", MODEL), "cut_off"),
        (blocked("no"), "blocked"),
        ("", "empty"),
        (Answer("no", "other", MODEL), "ended_oddly"),
    ],
)
def test_anything_else_is_asked_once_more_and_is_never_a_no(third, reason: str):
    ask = in_turn("a", "b", third, third)
    (row,) = judge(ask)
    assert (row.status, row.reason) == ("undecided", reason)
    assert row.verdict is None
    assert [request.sample for request in ask.asked] == [0, 0, 0, 1]
    assert ask.asked[2].messages == ask.asked[3].messages
    assert len(row.turns) == 4

    (row,) = judge(in_turn("a", "b", third, "yes"))
    assert (row.status, len(row.turns)) == ("kept", 4)


def test_an_endless_answer_is_neither_kept_whole_nor_sent_back():
    (row,) = judge(in_turn("a" * 10**7, "b", "c", "yes"))
    assert row.kept
    (row,) = judge(in_turn("a", "a" * 10**7, "a" * 10**7))
    assert (row.status, row.reason) == ("undecided", "too_long")
    assert max(len(turn.answer) for turn in row.turns) == 50_000


def test_a_blocked_first_turn_takes_the_one_chance_of_a_pair():
    (row,) = judge(in_turn(blocked(), "a", "b", "unclear"))
    assert (row.status, row.reason) == ("undecided", "neither_yes_nor_no")
    (row,) = judge(in_turn("a", blocked(), blocked()))
    assert (row.status, row.reason) == ("undecided", "blocked")


def test_a_question_that_cannot_be_answered_keeps_the_turns_before_it():
    def answer(request: Request) -> str:
        if len(request.messages) > 1:
            raise Unanswered("refused")
        return "a fox"

    (row,) = judge(Scripted(answer))
    assert (row.status, row.reason) == ("failed", "unanswered")
    assert [turn.answer for turn in row.turns] == ["a fox"]


NIGHT, LAMP = {"time": "night"}, {"direction": "left"}
LIT = dataclasses.replace(
    pair("12"), task="relight", reference_light=NIGHT, target_light=LAMP, route="grid"
)


def judge_lit(ask: Scripted, one: Pair = LIT, **settings: object) -> Judgement:
    config = JudgeConfig("viewer", **settings)  # type: ignore[arg-type]
    wording = load_wording(None, "judge", ["relight", "light"])
    (row,) = do(Judge(config, wording, panels, lambda grid: b"png")([one], ask))
    return row


def marks(first: object, second: object) -> str:
    return json.dumps({"first_light": first, "second_light": second})


def test_a_pair_of_one_scene_is_asked_about_its_lights():
    ask = in_turn("a", "b", "yes", marks(9, 6))
    row = judge_lit(ask, light={"relight": 6})
    assert (row.status, row.verdict, row.reason) == ("kept", "yes", None)
    assert row.scores == {"first_light": 9, "second_light": 6}
    assert [turn.step for turn in row.turns][-1] == "light.marks"
    question = question_of(ask.asked[-1])
    for light in (NIGHT, LAMP):
        assert f'"{load_lights().light(light).description}"' in question
    shown = [part for part in ask.asked[-1].messages[0].parts if isinstance(part, Picture)]
    assert [picture.data for picture in shown] == [b"png 1", b"png 2"]


def test_a_pair_in_another_light_is_rejected_for_it():
    row = judge_lit(in_turn("a", "b", "yes", marks(9, 5)), light={"relight": 6})
    assert (row.status, row.verdict, row.reason) == ("rejected", "yes", "other_light")
    assert row.scores == {"first_light": 9, "second_light": 5}


def test_marks_of_lights_that_are_no_marks_are_asked_for_again():
    row = judge_lit(in_turn("a", "b", "yes", marks("much", 9), marks(9, 9)), light={"relight": 6})
    assert (row.status, len(row.turns)) == ("kept", 5)
    row = judge_lit(in_turn("a", "b", "yes", marks(11, 9), "none"), light={"relight": 6})
    assert (row.status, row.reason) == ("undecided", "no_valid_scores")

    def answer(request: Request) -> str:
        if request.schema:
            raise Unanswered("refused")
        return "yes"

    row = judge_lit(Scripted(answer), light={"relight": 6})
    assert (row.status, row.reason, len(row.turns)) == ("failed", "unanswered", 3)


def test_lights_are_not_asked_about_where_nothing_hangs_on_the_answer():
    """No threshold for the task, a no about the scene, or a pair without lights."""
    assert len(judge_lit(in_turn("a", "b", "yes")).turns) == 3
    assert len(judge_lit(in_turn("a", "b", "no"), light={"relight": 6}).turns) == 3
    unlit = dataclasses.replace(LIT, target_light=None)
    assert len(judge_lit(in_turn("a", "b", "yes"), unlit, light={"relight": 6}).turns) == 3


def scores(**changed: object) -> str:
    return json.dumps({**dict.fromkeys(ASPECTS, 9), "subject": "a fox", **changed})


def test_scores_decide_by_their_least():
    (row,) = judge(in_turn(scores(colour=8)), mode="scores", least=8)
    assert row.kept
    assert row.scores == {**dict.fromkeys(ASPECTS, 9), "colour": 8}
    (row,) = judge(in_turn(scores(colour=7)), mode="scores", least=8)
    assert (row.status, row.reason) == ("rejected", "no")


@pytest.mark.parametrize(
    "bad",
    [
        scores(colour=131184.67),
        scores(colour=11),
        scores(colour=-1),
        scores(colour=True),
        scores(colour="9"),
        scores(colour=None),
        '{"form": 9}',
        "[9, 9, 9, 9, 9]",
        "9 9 9 9 9",
        "{" * 100_000,
        blocked(scores()),
    ],
)
def test_scores_out_of_range_are_no_scores(bad):
    ask = in_turn(bad, bad)
    (row,) = judge(ask, mode="scores")
    assert row.status == "undecided"
    assert row.scores is None
    assert ask.asked[0].schema is not None
    (row,) = judge(in_turn(bad, scores()), mode="scores")
    assert row.kept


def groups(*found: list[int]) -> str:
    return json.dumps({"subject": "a fox", "groups": list(found)})


def test_a_grid_is_judged_by_one_question():
    ask = in_turn(groups([1, 2, 4], [3]))
    rows = judge(ask, "12", "13", "24", mode="grid", audit=0)
    assert [row.verdict for row in rows] == ["yes", "no", "yes"]
    (request,) = ask.asked
    assert request.item == str(GRID)
    assert Picture(f"png {GRID}".encode()) in request.messages[0].parts


def test_an_audited_pair_has_both_verdicts_and_its_own_decides():
    ask = in_turn(groups([1, 2, 3, 4]), "a", "b", "Another nose: no")
    (row,) = judge(ask, mode="grid", audit=1)
    assert (row.verdict, row.grid_verdict, row.status) == ("no", "yes", "rejected")
    assert [turn.step for turn in row.turns] == ["grid", "step_1", "step_2", "step_3"]
    assert row.mode == "grid"


def test_the_audit_takes_its_share():
    pairs = [f"{a}{b}" for a in range(1, 5) for b in range(1, 5) if a != b]
    asked = 0
    for k in range(40):
        ask = Scripted(lambda request: groups([1, 2, 3, 4]) if request.schema else "so: yes")
        config = JudgeConfig("viewer", mode="grid", audit=0.25)
        grid = GridId(PromptId(CaptionId(f"{k:016x}"), "identity"), 0)
        rows = [pair(ends, grid) for ends in pairs]
        do(Judge(config, WORDING, panels, lambda grid: b"png")(rows, ask))
        asked += sum(request.schema is None for request in ask.asked) // 3
    assert 80 < asked < 160  # of 480 pairs


@pytest.mark.parametrize(
    "bad", [groups([1, 2], [3]), groups([1, 2], [2, 3, 4]), groups([1, 2, 3, 4, 5]), "{}", "1,2"]
)
def test_groups_that_miss_or_repeat_a_panel_are_undecided(bad: str):
    rows = judge(in_turn(bad, bad), "12", "34", mode="grid", audit=0)
    assert [row.reason for row in rows] == ["no_valid_groups"] * 2


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match="least is a mark from 0 to 10, got 11"):
        JudgeConfig("viewer", least=11)
    with pytest.raises(UserError, match="audit is a share from 0 to 1, got 5"):
        JudgeConfig("viewer", audit=5)
    with pytest.raises(UserError, match="light of relight is a mark from 0 to 10, got 60"):
        JudgeConfig("viewer", light={"relight": 60})
    with pytest.raises(
        UserError, match=r"light of identity: no light is asked .* of relight; leave"
    ):
        JudgeConfig("viewer", light={"identity": 6})
    with pytest.raises(UserError, match="there is no task 'relite'"):
        JudgeConfig("viewer", light={"relite": 6})
