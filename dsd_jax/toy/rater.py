"""Rates images of the toy world in place of a vision-language model, for `dsd evaluate judge`.

A score is the share of the attributes that are right, as the pixel judge sees them. The rater knows
nothing but the question: its pictures, its texts and its stage. It differs from the exact truth in
three ways: it sees the pictures as the protocol sends them (JPEG), an unclear attribute is a wrong
one, and one answer in eight is off by one. The digest of the question, the number of the round
included, decides which.
"""

import json
import re
from collections.abc import Mapping, Sequence

import numpy as np

from dsd_jax.llm.messages import Request
from dsd_jax.toy.judge import SUBJECT, Seen
from dsd_jax.toy.words import parse_scene, parse_subject
from dsd_jax.toy.world import Scene

__all__ = ["SLIPS", "STAGE", "rate"]

STAGE = "evaluate"
"""The stages of these questions are `evaluate/PROTOCOL/ASPECT`."""
SLIPS = 1 / 8
"""Share of the scores that are one too high or one too low."""
_SCENE = ("background", "place")  # what every scene says
_UNUSUAL = ("size", "tilt", "light")  # what it says if it is not the usual one

Checks = Mapping[str, bool]


def rate(request: Request, seen: Sequence[Seen], prompt: str, key: str) -> str:
    """Answers a question about an image in the form that it asks for.

    Args:
        request: The question.
        seen: Contents of its pictures. The last is the image; the reference, if shown, is before.
        prompt: The last text of the question, which is the prompt if the question shows one.
        key: Digest of the question, which decides about slips.
    """
    _, protocol, aspect = request.stage.split("/")
    reference, image = seen[0], seen[-1]
    new = {name: not _equal(reference, image, name) for name in _SCENE}
    if aspect == "novelty":
        share, wrong = _share(new), "taken over"
        checks: Checks = new
    elif aspect in ("cp", "identity", "sc"):
        checks = {name: _equal(reference, image, name) for name in SUBJECT}
        share, wrong = _share(checks), "different"
        if protocol == "dsd-debiased":  # a copy is worth nothing, however alike its subject is
            share = min(share, _share(new))
    else:
        checks = _followed(prompt, image)
        share, wrong = _share(checks), "not as asked"
    named = ", ".join(name for name, right in checks.items() if not right)
    reason = f"{wrong}: {named}" if named else "nothing is wrong"
    return _worded(request, _score(request, share, key), reason)


def _equal(one: Seen, other: Seen, name: str) -> bool:
    """Whether an attribute is clear in both pictures, and the same."""
    value = getattr(one, name)
    return value is not None and value == getattr(other, name)


def _followed(prompt: str, image: Seen) -> Checks:
    """Checks an image for everything that a prompt asks for."""
    checks = {"thing": image.shape is not None}
    subject, scene = parse_subject(prompt), parse_scene(prompt)
    if subject is not None:
        checks |= {name: getattr(image, name) == getattr(subject, name) for name in SUBJECT}
    if scene is not None:
        unusual = [name for name in _UNUSUAL if getattr(scene, name) != getattr(Scene, name)]
        asked = (*_SCENE, *unusual)
        checks |= {name: getattr(image, name) == getattr(scene, name) for name in asked}
    return checks


def _share(checks: Checks) -> float:
    return sum(checks.values()) / len(checks)


def _score(request: Request, share: float, key: str) -> int:
    """The share on the scale that the texts state, `from 0 to 4`, after a slip."""
    texts = (part for turn in request.messages for part in turn.parts if isinstance(part, str))
    stated = re.findall(r"\b0 to (\d+)\b", " ".join(texts))
    highest = max(map(int, stated), default=4)
    score = round(share * highest)
    rng = np.random.default_rng(int(key[:16], 16))
    if rng.random() < SLIPS:
        step = 1 if rng.random() < 0.5 else -1
        score += step if 0 <= score + step <= highest else -step
    return score


def _worded(request: Request, score: int, reason: str) -> str:
    fields = (request.schema or {}).get("properties", {})
    if not fields:
        return f"Score: {score}"
    return json.dumps({name: score if name == "score" else reason for name in fields})
