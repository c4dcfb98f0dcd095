"""Writes stories of the toy world in place of a vision-language model, for `dsd story write`.

It knows nothing but the question. Each panel goes to another background than the one before and
than that of the hero's picture, first to those that the plot names.
"""

import json
import re

import numpy as np

from dsd_jax.toy.words import describe, describe_scene, parse_scene, parse_subject
from dsd_jax.toy.world import BACKGROUNDS, PLACES, Scene, Subject

__all__ = ["STAGE", "tell"]

STAGE = "story"


def tell(said: str, wanted: str, key: str) -> str:
    """Answers a question for a story, or for the prompts of its panels.

    Args:
        said: Words of the question.
        wanted: First field of the answer.
        key: Digest of the question, which decides about the scenes.
    """
    subject = parse_subject(said)
    if subject is None:
        return "The hero is no subject of the toy world."
    if wanted == "prompts":
        scenes = map(parse_scene, re.findall(r"^\d+\. (.*)", said, re.MULTILINE))
        return json.dumps({"prompts": [describe(subject, scene) for scene in scenes if scene]})
    return json.dumps(_story(subject, said, np.random.default_rng(int(key[:16], 16))))


def _story(subject: Subject, said: str, rng: np.random.Generator) -> dict[str, object]:
    counted, plot = re.search(r"(\d+) panels", said), re.search(r"plot: (.*)", said)
    first = parse_scene(said)
    named = [word for word in re.findall(r"\w+", plot[1] if plot else "") if word in BACKGROUNDS]
    others = [name for name in BACKGROUNDS if first is None or name != first.background]
    drawn = [str(name) for name in rng.permutation(others)]
    way = list(dict.fromkeys([*(name for name in named if name in others), *drawn]))
    panels = []
    for number in range(int(counted[1]) if counted else len(way)):
        place = list(PLACES)[int(rng.integers(len(PLACES)))]
        scene = Scene(way[number % len(way)], place)
        caption = f"The {subject.shape} comes to the {scene.background}."
        speech = [f"Hello, {scene.background}!"] if number % 3 == 0 else []
        panels.append({"shows": describe_scene(scene), "caption": caption, "speech": speech})
    return {"title": f"The travels of the {subject.body} {subject.shape}", "panels": panels}
