"""The one reader of answers: text, thoughts, JSON, usage and the reason of the end.

Every provider's answers are read here, and every stage gets its text or JSON from here.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from dsd_jax.llm.messages import Answer, Finish, Usage
from dsd_jax.llm.scrub import WITHHELD
from dsd_jax.llm.thoughts import without_thoughts
from dsd_jax.structured import Limits, MalformedError, json_end, parse_json
from dsd_jax.text.plain import text_fault

__all__ = [
    "LONGEST",
    "MOST_BYTES",
    "answer_of",
    "finish_of",
    "is_answer_like",
    "json_of",
    "parsed_body",
    "problem_of",
    "unwrapped",
    "usage_of",
]

LONGEST = 50_000
"""Most characters of an answer's text; no question of this package needs a tenth of it."""
MOST_BYTES = 4 << 20
"""Most bytes of one answer as a provider sends it; all of them are searched for the key."""

_BEFORE_TEXT = b"\xef\xbb\xbf\xff\xfe\0 \t\r\n"  # marks of UTF-8, UTF-16 and UTF-32, and spaces
_ENVELOPE = Limits(size=MOST_BYTES, depth=64, lenient=True)
_OBJECT = Limits(size=4 * LONGEST, depth=32)
_MOST_TOKENS = 100_000_000  # more than any model reads or writes; a larger count is absurd
_LONGEST_NAME = 200  # characters of a model's name or a request's id
_OBJECTS_TRIED = 64  # opening braces at which a JSON object is looked for
_TEXT_TYPES = (None, "text", "output_text")
_THOUGHT_TYPES = ("thinking", "redacted_thinking", "thought", "reasoning", "reasoning_text")
_FINISHES: dict[str, Finish] = {
    **dict.fromkeys(
        """stop eos eos_token eos_token_id eot eot_id end end_turn endoftext im_end stop_sequence
        stop_token stop_str stop_string complete completed finish finished done success natural
        normal ok""".split(),
        "stop",
    ),
    **dict.fromkeys(
        """length max_tokens max_new_tokens max_output_tokens max_completion_tokens max_length
        model_length limit token_limit context_length model_context_window_exceeded""".split(),
        "length",
    ),
    **dict.fromkeys(
        """content_filter content_filtered safety refusal refused blocked blocklist moderation
        sensitive recitation prohibited_content spii language image_safety image_prohibited_content
        image_recitation model_armor""".split(),
        "blocked",
    ),
}


def parsed_body(body: bytes) -> dict[str, Any]:
    """The JSON object that a provider sent.

    Raises:
        ValueError: It is not a JSON object, or too deep or large to be an answer.
    """
    return parse_json(body, "the answer", dict, _ENVELOPE)


def unwrapped(body: dict[str, Any]) -> dict[str, Any]:
    """The answer in a line of a batch's results, or the body itself if it is not such a line.

    Raises:
        ValueError: The line holds none.
    """
    found: object = body
    if "custom_id" in body:
        response = body.get("response")
        found = response.get("body") if isinstance(response, dict) else None
    elif "key" in body:
        found = body.get("response")
    if not isinstance(found, dict):
        raise ValueError("not a line of results with an answer")  # noqa: TRY004 - of the answer
    return found


def is_answer_like(body: bytes) -> bool:
    """Whether bytes that are not in a provider's form were still charged as an answer.

    An error in JSON, or the page of a gateway, is not.
    """
    if not body.lstrip(_BEFORE_TEXT).startswith((b"{", WITHHELD.encode())):
        return False
    try:
        return not unwrapped(parsed_body(body)).get("error")
    except ValueError:
        return True


def answer_of(
    content: object,
    finish: Finish,
    *,
    model: object,
    request_id: object,
    usage: Usage | None,
) -> Answer:
    """An answer from the parts of a provider's form.

    Args:
        content: The content in the provider's form: a text, a list of parts, or None.
        finish: Reason for the end, by `finish_of`.
        model: Name of the answering model, unchecked.
        request_id: The provider's name of the exchange, unchecked.
        usage: Tokens, by `usage_of`.
    """
    text = _text_of(content)
    if text is None and finish in {"stop", "length", "other"}:
        finish = "not_text"
    if usage is not None and (usage.input < 1 or (text and usage.output < 1)):
        usage = None  # words cost tokens: with nothing to count, a budget would never end
    return Answer(
        text=without_thoughts(text or ""),
        finish=finish,
        model=_name(model),
        request_id=_name(request_id),
        usage=usage,
    )


def finish_of(word: object, content: object, words: Mapping[str, Finish]) -> Finish:
    """Translates a provider's word for the end of an answer.

    Many servers say nothing (null) when an answer is complete; this counts as `stop` if there is
    content.

    Args:
        word: The provider's word, unchecked.
        content: The content of the answer.
        words: Words of this server and what they mean, before the known ones.
    """
    if isinstance(word, dict):  # {"type": "stop"}
        word = word.get("type", word.get("reason", word))
    if isinstance(word, str) and word in words:
        return words[word]
    plain = _plain(word) if isinstance(word, str) else word
    if plain in (None, "", "none", "null"):
        return "stop" if content else "other"
    return _FINISHES.get(plain, "other") if isinstance(plain, str) else "other"


def _plain(word: str) -> str:
    """A word for the end in lower case, without the additions of enums and templates."""
    bare = re.sub(r"[\s.-]+", "_", word.strip("<|> ").lower())
    return re.sub(r"^finish_?reason_", "", bare)


def usage_of(read: object, cached: object, written: object) -> Usage | None:
    """Tokens from three counts of a provider; None if a count is missing or absurd.

    Args:
        read: Tokens of the question.
        cached: Tokens of the question that the provider had cached; None if it does not say.
        written: Tokens of the answer.
    """
    counts = [_count(each) for each in (read, 0 if cached is None else cached, written)]
    if None in counts:
        return None
    made = Usage(*(int(each or 0) for each in counts))
    return made if made.cached <= made.input else None


def problem_of(answer: Answer) -> str | None:
    """One word for what an answer lacks to be used; None if it has a complete text."""
    if answer.finish != "stop":
        known = {"blocked": "blocked", "length": "cut_off", "not_text": "not_text"}
        return known.get(answer.finish, "ended_oddly")
    if len(answer.text) > LONGEST:
        return "too_long"
    return None if answer.text.strip() else "empty"


def json_of(text: str) -> dict[str, Any] | None:
    """Finds the one JSON object in a text, whatever words stand around it.

    None if there is no object, or if there are different ones.
    """
    if len(text) > LONGEST:
        return None
    found: list[dict[str, Any]] = []
    position = tried = 0
    while (position := text.find("{", position)) >= 0 and tried < _OBJECTS_TRIED:
        tried += 1
        try:
            end = json_end(text, position)
            found.append(parse_json(text[position:end], "the answer", dict, _OBJECT))
        except MalformedError:
            return None
        except (ValueError, RecursionError):
            position += 1
        else:
            position = end
    return found[0] if found and all(each == found[0] for each in found) else None


def _text_of(content: object) -> str | None:
    """The text of a content; None if it is not text, or not one that UTF-8 can hold."""
    if content is None:
        return ""
    if isinstance(content, list):
        content = _joined(content)
    if not isinstance(content, str) or text_fault(content):
        return None
    return content


def _joined(parts: list[Any]) -> str | None:
    """The texts of a list of parts; thoughts and pictures beside them are passed over."""
    texts: list[str] = []
    others = 0
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif not isinstance(part, dict):
            return None
        elif part.get("thought") or part.get("type") in _THOUGHT_TYPES:
            continue
        elif part.get("type") in _TEXT_TYPES and "text" in part:
            if not isinstance(part["text"], str):
                return None
            texts.append(part["text"])
        else:
            others += 1
    return None if others and not texts else "".join(texts)


def _count(value: object) -> int | None:
    """A number of tokens; None if the value is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value) or value != int(value) or not 0 <= value <= _MOST_TOKENS:
        return None
    return int(value)


def _name(value: object) -> str:
    """A short printable name that UTF-8 can hold; empty for other values than text."""
    text = value if isinstance(value, str) else ""
    return "".join(x if x.isprintable() else "\ufffd" for x in text[:_LONGEST_NAME])
