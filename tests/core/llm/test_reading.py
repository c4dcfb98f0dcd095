"""The one reader of answers: its text, its JSON, its end and its tokens."""

import json
import time

import pytest

from dsd_jax.llm.gemini import read_content
from dsd_jax.llm.messages import Answer, Usage
from dsd_jax.llm.openai import read_chat
from dsd_jax.llm.reading import answer_of, finish_of, json_of, problem_of, usage_of
from dsd_jax.llm.transport import Raw

HALF = "\ud83d"
HARMONY = "<|channel|>analysis<|message|>hm"


def text_of(content: object) -> str | None:
    """The text, or None for what is not text."""
    answer = answer_of(content, "stop", model="m", request_id="r", usage=None)
    return answer.text if answer.finish == "stop" else None


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("yes", "yes"),
        (None, ""),
        ([], ""),
        (["a", {"type": "text", "text": "b"}, {"text": "c"}], "abc"),
        ([{"type": "output_text", "text": "b"}, {"type": "image_url", "image_url": {}}], "b"),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}], ""),
        ([{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "yes"}], "yes"),
        ([{"text": "hm", "thought": True}, {"text": "yes"}], "yes"),
        ([{"type": "image_url", "image_url": {}}], None),
        ([{"type": "text", "text": {"value": "yes"}}], None),
        ([{"type": "text", "text": "a"}, 3], None),
        ({"type": "text", "text": "a"}, None),
        (3, None),
        (True, None),
        (f"a {HALF} b", None),
        ([{"type": "text", "text": HALF}], None),
        ("a \U0001f600 b", "a \U0001f600 b"),
    ],
)
def test_text_parts_only(content, text):
    assert text_of(content) == text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("<think>Is it? Yes.</think>\n\nyes", "yes"),
        ("<think>\n\n</think>yes", "yes"),
        ("Is it? Yes.</think> yes", "yes"),  # the template wrote the opening tag
        ("<think>Is it? And so on", ""),
        ("<THINKING>hm</THINKING>yes", "yes"),
        ("<seed:think>hm</seed:think>yes", "yes"),
        ("[THINK]hm[/THINK]yes", "yes"),
        ("◁think▷hm◁/think▷yes", "yes"),
        ("<think>a</think>one <think>b</think>two", "one two"),
        ("<think>a <think> b</think>yes", "yes"),
        ([{"type": "text", "text": "<think>hm"}, {"type": "text", "text": "</think>yes"}], "yes"),
        (" I think <b>yes</b>\n", " I think <b>yes</b>\n"),
        ("a <thinker> b", "a <thinker> b"),
        ('<think budget="3">hm</think >yes', "yes"),
        ("&lt;think&gt;hm&lt;/think&gt;yes", "yes"),
        ("<analysis>hm</analysis>yes", "yes"),
        ("<think_start>hm<think_end>yes", "yes"),
        ("<|think|>hm<|/think|>yes", "yes"),
        ("<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>yes<|END_RESPONSE|>", "yes"),
        ("<|begin_of_thought|>hm<|end_of_thought|>yes", "yes"),
        ("<|channel>thought\nhm<channel|>yes", "yes"),
        ("<unused94>thought\nhm<unused95>yes", "yes"),
        (f"{HARMONY}<|end|><|start|>assistant<|channel|>final<|message|>yes<|return|>", "yes"),
        (f"{HARMONY}<|end|>{HARMONY}", ""),
        ("<|channel|>final<|message|>yes", "yes"),
        ("analysisWe say yes.assistantfinalyes", "yes"),
        ("Here is my thought process: hm\n\nHere is my response: yes", "yes"),
        ("a sign that says <think> in neon", ""),  # nobody can tell: the question goes out again
    ],
)
def test_thoughts_are_cut(content, text):
    assert text_of(content) == text


@pytest.mark.parametrize(
    "content",
    [
        "yes<|im_end|>",
        "<|im_start|>assistant\nyes<|im_end|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\nyes<|eot_id|>",
        "<s>yes</s>",
        "<start_of_turn>model\nyes<end_of_turn>",
        "<think>hm</think><answer>\nyes</answer>",
        "<think>hm</think><|begin_of_box|>yes<|end_of_box|>",
        "```text\nyes\n```",
        "\ufeffyes\u200b",
    ],
)
def test_what_a_template_puts_around_an_answer_is_cut(content):
    assert text_of(content) == "yes"


def test_thoughts_are_found_in_linear_time():
    start = time.process_time()
    assert text_of("<think>" * 500_000) == ""
    assert text_of("</think>" * 500_000 + "yes") == "yes"
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": 1}', {"a": 1}),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ('Here it is:\n```\n{"a": {"b": [1]}}\n```\nI hope it helps {you}.', {"a": {"b": [1]}}),
        ('With {braces} first: {"a": "}{"} then words', {"a": "}{"}),
        ('[{"a": 1}]', {"a": 1}),
        ('{"a": 1}\n{"a": 1}', {"a": 1}),
        ('{"a": 1} or {"a": 2}', None),
        ("{'a': 1}", None),
        ('{"a": 1', None),
        ('{"a": 1, "a": 2}', None),
        ('{"a": 1e999}', None),
        ('{"a": NaN}', None),
        ('{"a": "\\ud83d"}', None),
        ('{"a": ' + "9" * 5000 + "}", None),
        ('{"a": ' + "[" * 2000 + "]" * 2000 + "}", None),
        ('{"a":' * 5000, None),
        ("{" * 40_000, None),
        ("yes", None),
        ("[1]", None),
        ("", None),
    ],
)
def test_the_one_json_object(text, found):
    start = time.process_time()
    assert json_of(text) == found
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("word", "content", "finish"),
    [
        ("stop", "a", "stop"),
        ("STOP", "a", "stop"),
        ("eos", "a", "stop"),
        ("eos_token", "a", "stop"),
        ("end_turn", "a", "stop"),
        (None, "a", "stop"),
        ("", "a", "stop"),
        (None, "", "other"),
        ("length", "a", "length"),
        ("MAX_TOKENS", "a", "length"),
        ("content_filter", "", "blocked"),
        ("PROHIBITED_CONTENT", "", "blocked"),
        ("tool_calls", "", "other"),
        ("fertig", "a", "stop"),
        ("FinishReason.STOP", "a", "stop"),
        ("FINISH_REASON_MAX_TOKENS", "a", "length"),
        ("<|im_end|>", "a", "stop"),
        ("Max Tokens", "a", "length"),
        ("none", "a", "stop"),
        ("none", "", "other"),
        ({"type": "length", "length": 3}, "a", "length"),
        (7, "a", "other"),
        ({}, "a", "other"),
    ],
)
def test_words_for_the_end(word, content, finish):
    assert finish_of(word, content, {"fertig": "stop"}) == finish


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        ((100, None, 10), Usage(100, 0, 10)),
        ((100, 40, 10.0), Usage(100, 40, 10)),
        ((0, 0, 0), Usage(0, 0, 0)),
        ((100, 101, 10), None),
        ((-1, None, 10), None),
        ((100, -1, 10), None),
        ((100, None, 2**63), None),
        ((100, None, float("inf")), None),
        ((float("nan"), None, 10), None),
        ((1.5, None, 10), None),
        (("100", None, 10), None),
        ((True, None, 10), None),
        ((None, None, 10), None),
        (([], None, 10), None),
    ],
)
def test_absurd_usage_is_unknown(counts, usage):
    assert usage_of(*counts) == usage


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (Answer("yes", "stop", "m"), None),
        (Answer(" \n", "stop", "m"), "empty"),
        (Answer("yes", "length", "m"), "cut_off"),
        (Answer("", "blocked", "m"), "blocked"),
        (Answer("", "not_text", "m"), "not_text"),
        (Answer("yes", "other", "m"), "ended_oddly"),
        (Answer("y" * 50_001, "stop", "m"), "too_long"),
    ],
)
def test_problems(answer, problem):
    assert problem_of(answer) == problem


@pytest.mark.parametrize("read", [read_chat, read_content])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'"text"',
        b"[" * 100_000,
        b'{"choices":' * 100_000,
        b'{"choices": 3}',
        b'{"choices": [3]}',
        b'{"choices": [{"message": "yes"}]}',
        b'{"candidates": {"a": 1}}',
        b'{"candidates": [[]], "usageMetadata": 3}',
        b'{"custom_id": "k", "response": null}',
        b'{"key": "k", "response": []}',
    ],
)
def test_what_is_no_answer_is_a_value_error(read, body):
    with pytest.raises(ValueError, match=r"not a|the answer: "):
        read(Raw(body), {})


def test_names_are_short_and_printable():
    body = {"choices": [], "model": "m\x1b[2J" + HALF + "x" * 5000, "id": ["r"]}
    answer = read_chat(Raw(json.dumps(body).encode()), {})
    assert answer.model.startswith("m\ufffd[2J\ufffdxxx")
    assert (len(answer.model), answer.request_id) == (200, "")
