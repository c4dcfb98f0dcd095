"""Grid prompts: rules that are checked, broken ones asked for again in the same conversation."""

import dataclasses
import math
from collections import Counter

import pytest

from dsd_jax.data.make.ids import CaptionId, PromptId
from dsd_jax.data.make.prompts import PromptsConfig, PromptWriter, subject_of, task_of
from dsd_jax.data.make.stages import Caption, Prompt, Source
from dsd_jax.data.make.wording import load_wording
from dsd_jax.errors import UserError
from dsd_jax.llm.messages import Answer, Unanswered
from tests.data.make.scripted import MODEL, Scripted, blocked, do, in_turn, question_of

GOOD = (
    "a grid of four photos of the same red fox: top-left in snow, top-right on a pier, "
    "bottom-left under neon, bottom-right at dawn"
)
CAPTION = Caption(
    id=CaptionId("0123456789abcdef"),
    caption="a red fox in the snow",
    source=Source(file="a.csv", row=1),
    status="kept",
)


def words(text: str) -> int:
    return len(text.split()) + 2


def write(ask: Scripted, caption: Caption = CAPTION, **settings: object) -> Prompt:
    config = PromptsConfig("writer", **settings)  # type: ignore[arg-type]
    return do(
        PromptWriter(config, load_wording(None, "prompts", config.tasks), words)(caption, ask)
    )


def test_a_good_prompt_is_kept_with_what_led_to_it():
    ask = in_turn(GOOD)
    row = write(ask)
    assert row == Prompt(
        id=PromptId(CAPTION.id, "identity"),
        task="identity",
        wording=load_wording(None, "prompts").id,
        model=MODEL,
        asked=1,
        status="kept",
        prompt=GOOD,
        tokens=words(GOOD),
        subject="red fox",
    )
    (request,) = ask.asked
    assert request.messages[0].role == "system"
    assert "a red fox in the snow" in question_of(request)
    assert (request.item, request.stage, request.sample) == (str(row.id), "prompts", 0)


@pytest.mark.parametrize("wrapped", [f'"{GOOD}"\n', f"**{GOOD}**", f"\n`{GOOD}`", f"“{GOOD}”"])
def test_what_models_wrap_a_prompt_in_is_taken_off(wrapped: str):
    assert write(in_turn(wrapped)).prompt == GOOD


def test_quotation_marks_within_a_prompt_stay():
    prompt = f'{GOOD} under a sign that says "open"'
    assert write(in_turn(prompt)).prompt == prompt


def test_the_subject_of_the_filter_goes_before_a_guess():
    assert (
        write(in_turn(GOOD), dataclasses.replace(CAPTION, subject="a vixen")).subject == "a vixen"
    )


@pytest.mark.parametrize(
    ("bad", "told", "reason"),
    [
        (f"{GOOD} {'very ' * 80}", "it has 105 CLIP tokens where 77 are allowed", "too_long"),
        (GOOD.replace("a grid", "Grid"), 'does not begin with "a grid of"', "beginning"),
        (GOOD.replace("bottom-left", "then"), "what the bottom-left quadrant shows", "quadrants"),
        (f"{GOOD}\nAnother line", "it has more than one line", "several_lines"),
        (GOOD.replace("snow", "sn\x07ow"), "it holds control characters", "control_characters"),
        ("``", "there is nothing in it", "empty"),
    ],
)
def test_a_broken_rule_is_told_in_the_same_conversation(bad: str, told: str, reason: str):
    ask = in_turn(bad, GOOD)
    row = write(ask)
    assert (row.status, row.asked) == ("kept", 2)
    first, second = ask.asked
    assert second.messages[: len(first.messages)] == first.messages
    assert second.messages[-2].role == "assistant"
    assert second.messages[-2].parts == (bad,)
    assert told in question_of(second)
    row = write(in_turn(bad, bad, bad))
    assert (row.status, row.reason, row.asked) == ("rejected", reason, 3)
    assert row.prompt is None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (blocked(), "blocked"),
        (blocked(GOOD), "blocked"),
        (Answer(GOOD, "length", MODEL), "cut_off"),
        (Answer(GOOD, "other", MODEL), "ended_oddly"),
        (" \n", "empty"),
        (GOOD + " very" * 10**6, "too_long"),
    ],
)
def test_what_is_no_whole_answer_is_asked_anew_and_never_kept(answer, reason: str):
    ask = Scripted(lambda request: answer)
    row = write(ask, retries=1)
    assert (row.status, row.reason) == ("rejected", reason)
    assert [request.sample for request in ask.asked] == [0, 1]
    assert ask.asked[0].messages == ask.asked[1].messages


def test_a_question_that_cannot_be_answered_is_a_failed_row():
    def refuse(request):
        raise Unanswered("400: too long")

    row = write(Scripted(refuse))
    assert (row.status, row.reason, row.detail) == (
        "failed",
        "unanswered",
        "400: too long",
    )


def test_captions_are_shared_out_over_the_prompt_sets_by_weight():
    tasks = {"identity": 3.0, "relight": 1.0}
    counts = Counter(task_of(CaptionId(f"{i:016x}"), tasks).name for i in range(4000))
    assert set(counts) == {"identity", "relight"}
    assert 0.7 < counts["identity"] / 4000 < 0.8
    ask = in_turn(GOOD)
    assert write(ask, tasks={"relight": 1}).id.task == "relight"
    assert "only the light" in question_of(ask.asked[0])


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"tasks": {"identiy": 1}}, "no grids are made for 'identiy'; expected identity, relight"),
        ({"tasks": {"depth": 1}}, "no grids are made for 'depth'"),
        ({"tasks": {}}, "tasks needs finite weights above 0"),
        ({"tasks": {"free": 0}}, "tasks needs finite weights above 0"),
        ({"tasks": {"free": math.inf}}, "tasks needs finite weights above 0"),
        ({"tasks": {"free": math.nan}}, "tasks needs finite weights above 0"),
        ({"retries": -1}, "retries must not be negative, got -1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], complaint: str):
    with pytest.raises(UserError, match=complaint):
        PromptsConfig("writer", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        (GOOD, "red fox"),
        ("A grid of four manga panels showing Mira, a tiny knight; top-left ...", "mira"),
        ("a grid of 4 evenly split images of an identical brass robot, top left: x", "brass robot"),
        ("a grid of: top-left x, top-right y", ""),
        ("no quadrants at all", ""),
    ],
)
def test_subjects_are_read_from_prompts(prompt: str, subject: str):
    assert subject_of(prompt) == subject
