"""Answers the questions of `dsd data`, `evaluate` and `story` offline, about the toy world alone.

It answers in words, by the same interface as real models. As a language model it knows the toy
world's grammar; as a vision model it measures pixels with the pixel judge. It answers only for a
provider of kind `toy` and model `toy`; nothing else falls back to it.
"""

import dataclasses
import functools
import io
import json
import re

import numpy as np
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.llm.config import ProviderConfig
from dsd_jax.llm.messages import Answer, Picture, Request
from dsd_jax.llm.reading import answer_of, parsed_body
from dsd_jax.llm.transport import Access, Failed, Raw
from dsd_jax.toy import rater, writer
from dsd_jax.toy.judge import SUBJECT, Seen, judge
from dsd_jax.toy.words import (
    OPENINGS,
    PANELS,
    describe,
    describe_grid,
    describe_order,
    describe_subject,
    parse_light,
    parse_subject,
)
from dsd_jax.toy.world import BACKGROUNDS, PANEL, SIZES, Scene

__all__ = ["MODEL", "ToyTransport", "answer"]

MODEL = "toy"
_MARKS = 10  # of the scale of scores
_GEOMETRY = ("background", "place", "size", "tilt")
_ASPECTS = {  # what the marks are given for
    "form": ("shape",),
    "colour": ("body",),
    "material": ("mark",),
    "details": ("marking",),
    "identity": SUBJECT,
    "viewpoint": ("background",),
    "layout": ("place", "size"),
    "pose": ("shape", "tilt"),
    "things": (*SUBJECT, "background"),
}


class ToyTransport:
    """Answers within this process; see `dsd_jax.llm.transport.Transport`."""

    def __init__(self, provider: ProviderConfig, access: Access = Access()) -> None:  # noqa: ARG002
        """Needs no key.

        Raises:
            UserError: The provider names another model, as if that one answered.
        """
        if provider.model != MODEL:
            raise UserError(
                f'kind "toy" has one model, "{MODEL}", got {provider.model!r}; set model = '
                f'"{MODEL}", or the kind of the provider that has that model'
            )

    async def send(self, request: Request) -> Raw:
        """Answers at once.

        Raises:
            Failed: The question is not one of the stages'.
        """
        return Raw(json.dumps({"text": answer(request)}).encode())

    def read(self, raw: Raw) -> Answer:
        """Reads an answer, see `Transport.read`."""
        body = parsed_body(raw.body)
        if "text" not in body:
            raise ValueError("no text")
        return answer_of(body["text"], "stop", model=MODEL, request_id="", usage=None)

    async def close(self) -> None:
        """Nothing is open."""


def answer(request: Request) -> str:
    """Answers a question of a stage; a function of the request alone.

    Raises:
        Failed: It is the question of another stage, or lacks its pictures.
    """
    match request.stage.split("/")[0]:
        case "captions":
            return _names_subject(request)
        case "prompts":
            return _grid_prompt(request)
        case "judge":
            return _judgement(request)
        case "caption":
            return _caption(request)
        case rater.STAGE:
            return _rating(request)
        case writer.STAGE:
            return _story(request)
    raise Failed("invalid", f"the toy model knows nothing of the stage {request.stage!r}")


def _texts(request: Request) -> list[str]:
    """All texts of the user, first to last."""
    turns = (turn for turn in request.messages if turn.role == "user")
    return [part for turn in turns for part in turn.parts if isinstance(part, str)]


def _said(request: Request) -> str:
    """All words of the user, first to last."""
    return "\n".join(_texts(request))


def _names_subject(request: Request) -> str:
    subject = parse_subject(_said(request))
    return json.dumps(
        {
            "clear": subject is not None,
            "subject": "" if subject is None else describe_subject(subject),
            "reason": "it names a toy" if subject else "it names no subject of the toy world",
        }
    )


def _grid_prompt(request: Request) -> str:
    subject = parse_subject(_said(request))
    if subject is None:
        return "The caption names no subject of the toy world."
    rng = np.random.default_rng(int(request.key(MODEL)[:16], 16))
    if _still(request):
        size = list(SIZES)[int(rng.integers(len(SIZES)))]
        scene = dataclasses.replace(Scene.draw(rng), size=size, light=Scene.light)
        if lights := _panel_lights(_said(request)):
            scenes = [dataclasses.replace(scene, light=light) for light in lights]
            return describe_grid(subject, scenes)
        return describe(subject, scene)
    # Four different backgrounds, so that the panels can be told apart.
    backgrounds = rng.permutation(list(BACKGROUNDS))[: len(PANELS)].tolist()
    scenes = [Scene.draw(rng, background) for background in backgrounds]
    return describe_grid(subject, scenes, OPENINGS[int(rng.integers(len(OPENINGS)))])


def _still(request: Request) -> bool:
    """Whether the question is about one scene in several lights, before a camera that stands."""
    return "camera" in _said(request)


def _panel_lights(said: str) -> list[str]:
    """The lights that the panels of a grid are to have; none for a single scene."""
    told = [re.findall(rf"{panel} ([^;.]*)[;.]", said) for panel in PANELS]
    if not all(told):
        return []
    return [_told_light(clauses[-1]) for clauses in told]


def _told_light(phrase: str) -> str:
    """The light that a phrase names; words that the toy world lacks say nothing."""
    return parse_light(phrase) or Scene.light


# What it sees


def _shown(request: Request) -> list[Picture]:
    """All pictures of a conversation, first to last."""
    return [part for turn in request.messages for part in turn.parts if isinstance(part, Picture)]


def _pictures(request: Request, count: int) -> list[Seen]:
    """The contents of the first pictures of a conversation.

    Raises:
        Failed: There are not so many.
    """
    parts = _shown(request)
    if len(parts) < count:
        raise Failed("invalid", f"{count} pictures are needed, there are {len(parts)}")
    return [_seen(part.data) for part in parts[:count]]


@functools.lru_cache(maxsize=4096)  # one conversation shows the same pictures three times
def _seen(data: bytes) -> Seen:
    with Image.open(io.BytesIO(data)) as picture:
        return judge(_sized(picture.convert("RGB")))


def _sized(picture: Image.Image) -> np.ndarray:
    if picture.size != (PANEL, PANEL):
        picture = picture.resize((PANEL, PANEL), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def _subject_words(seen: Seen) -> str:
    """The clear words about a subject: `red star with blue dots`, or less."""
    if seen.subject is not None:
        return describe_subject(seen.subject)
    marks = " ".join(word for word in (seen.mark, seen.marking) if word)
    named = f"{seen.body or ''} {seen.shape or 'thing'}".strip()
    return f"{named} with {marks}" if marks else named


def _scene_words(seen: Seen) -> str:
    """The clear words about a scene: `on snow at northwest small warm left hard`, or less."""
    words = ["on", seen.background, "at", seen.place] if seen.background and seen.place else []
    unsaid = (None, Scene.size, Scene.tilt, Scene.light)
    words += [word for word in (seen.size, seen.tilt, seen.light) if word not in unsaid]
    return " ".join(map(str, words))


def _differences(first: Seen, second: Seen, *, still: bool = False) -> list[str]:
    """Says in words why two pictures may not show the identical subject, or the same scene."""
    found = []
    for name in (*SUBJECT, *_GEOMETRY) if still else SUBJECT:
        one, other = getattr(first, name), getattr(second, name)
        if one is None or other is None:
            found.append(f"the {name} is unclear")
        elif one != other:
            found.append(f"the {name} is {one} in the first and {other} in the second")
    return found


# The judge


def _judgement(request: Request) -> str:
    wanted = (request.schema or {}).get("properties", {})
    if "groups" in wanted:
        return _groups(request)
    first, second = _pictures(request, 2)
    if "first_light" in wanted:
        told = re.findall(r'"([^"]*)"', _said(request))
        lights = zip(wanted, (first, second), told, strict=False)
        return json.dumps({n: _MARKS * (seen.light == _told_light(t)) for n, seen, t in lights})
    differences = _differences(first, second, still=_still(request))
    if "subject" in wanted:
        return _scores(first, second, [name for name in wanted if name != "subject"])
    asked = sum(turn.role == "user" for turn in request.messages)
    if asked == 1:
        return f"Both show a thing: a {_subject_words(first)}, and a {_subject_words(second)}."
    if asked == 2:
        lines = ((_subject_words(seen), _scene_words(seen)) for seen in (first, second))
        return "\n".join(
            f"In the {which} it is a {subject}, {scene or 'in a scene that is unclear'}."
            for which, (subject, scene) in zip(("first", "second"), lines, strict=True)
        )
    if differences:
        return f"They differ: {'; '.join(differences)}. No"
    return f"Both show the same {_subject_words(first)}. Yes"


def _scores(first: Seen, second: Seen, aspects: list[str]) -> str:
    def mark(*names: str) -> int:
        equal = [
            getattr(first, name) is not None and getattr(first, name) == getattr(second, name)
            for name in names
        ]
        return _MARKS * sum(equal) // len(equal)

    marks = {aspect: mark(*_ASPECTS[aspect]) for aspect in aspects}
    return json.dumps({**marks, "subject": _subject_words(first)})


def _groups(request: Request) -> str:
    parts = _shown(request)
    if not parts:
        raise Failed("invalid", "there is no picture of a grid")
    with Image.open(io.BytesIO(parts[0].data)) as opened:
        picture = opened.convert("RGB")
    width, height = picture.width // 2, picture.height // 2
    seen = [
        judge(_sized(picture.crop((x * width, y * height, (x + 1) * width, (y + 1) * height))))
        for y in (0, 1)
        for x in (0, 1)
    ]
    still = _still(request)
    groups: list[list[int]] = []
    for number, panel in enumerate(seen, start=1):
        same = (g for g in groups if not _differences(seen[g[0] - 1], panel, still=still))
        group = next(same, None)
        if group is None:
            groups.append([number])
        else:
            group.append(number)
    return json.dumps({"subject": _subject_words(seen[0]), "groups": groups})


# The captioner


def _caption(request: Request) -> str:
    seen = _pictures(request, 2 if len(_shown(request)) > 1 else 1)
    if len(seen) == 1:
        return f"a {_subject_words(seen[0])} {_scene_words(seen[0])}".strip()
    before, after = (one.light for one in seen)
    # Of two lights it says half the time what is to change, and half the time what is to be seen.
    # So a student can be asked by either.
    if _in_two_lights(request) and before and after and before != after and _coin(request):
        return describe_order(before, after)
    return f"this thing {_scene_words(seen[1]) or 'here'}"


def _in_two_lights(request: Request) -> bool:
    return re.search(r"\blights?\b", _texts(request)[-1].lower()) is not None


def _coin(request: Request) -> bool:
    return int(request.key(MODEL), 16) % 2 == 0


# The rater


def _rating(request: Request) -> str:
    seen = _pictures(request, max(1, len(_shown(request))))
    texts = _texts(request)
    return rater.rate(request, seen, texts[-1] if texts else "", request.key(MODEL))


# The writer of stories


def _story(request: Request) -> str:
    wanted = next(iter((request.schema or {}).get("properties", {})), "")
    if wanted == "hero":
        (seen,) = _pictures(request, 1)
        return json.dumps({"hero": f"a {_subject_words(seen)}", "scene": _scene_words(seen)})
    return writer.tell(_said(request), wanted, request.key(MODEL))
