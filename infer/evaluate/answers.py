"""Reads the score in a judge's answer: exactly one, or the reason why there is none."""

import re

from dsd_jax.infer.evaluate.protocols import Protocol
from dsd_jax.infer.evaluate.ratings import State
from dsd_jax.llm.messages import Answer
from dsd_jax.llm.reading import json_of, problem_of

__all__ = ["read_score"]

_NAMED = re.compile(r"\bscore\b[*_`\"]*\s*[:=：]", re.IGNORECASE)
# `3`, `**3**`, `[3]`, `Good (3)`, `3/4`, `3.0`. What follows must not make it a range, a fraction
# of another scale or a decimal number.
_VALUE = re.compile(
    r"[^\w+-]*(?P<words>[a-z][a-z ]{0,20})?[^\w+-]*(?P<number>[-+]?[0-9]+)(?:\.0+)?"
    r"(?:\s*(?:/|out of)\s*(?P<of>[0-9]+))?"
    r"(?!\s*(?:[-–—~/:.,]|to|or)\s*[0-9]|[0-9])(?P<rest>[^\n]*)",
    re.IGNORECASE,
)
_MARKS = " \t\r\n*_`\"')].!"  # may follow an answer that is a number alone


def read_score(answer: Answer, protocol: Protocol, aspect: str) -> tuple[State, int | None]:
    """The state of an answer, and its score where that is "ok".

    Nothing is guessed: two scores, a range, a fraction of another scale, an answer that was cut off
    and words without a number are "unparsable"; a number outside of the scale is "out_of_range".
    Thoughts have been cut by the request layer.
    """
    if problem := problem_of(answer):
        return ("refused" if problem == "blocked" else "unparsable"), None
    if protocol.questions[aspect].fields:
        found = _in_object(answer.text)
    else:
        found = _in_line(answer.text, protocol.scale)
    if found is None:
        return "unparsable", None
    return ("ok", found) if 0 <= found <= protocol.scale else ("out_of_range", None)


def _in_object(text: str) -> int | None:
    score = (json_of(text) or {}).get("score")
    if isinstance(score, str) and re.fullmatch(r"\s*[-+]?[0-9]{1,9}\s*", score):
        return int(score)
    if isinstance(score, int | float) and not isinstance(score, bool) and score == int(score):
        return int(score)
    return None


def _in_line(text: str, scale: int) -> int | None:
    """The number after the only `Score:`, or a number that is the whole answer."""
    named = list(_NAMED.finditer(text))
    if len(named) > 1:
        return None
    found = _VALUE.match(text, named[0].end() if named else 0)
    if found is None or (found["of"] is not None and int(found["of"]) != scale):
        return None
    alone = found["words"] is None and not text[found.start("rest") :].strip(_MARKS)
    return int(found["number"]) if named or alone else None
