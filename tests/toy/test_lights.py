"""The toy's vocabulary of light names the lights of its world."""

import numpy as np
import pytest

from dsd_jax.lights import Light, load_lights
from dsd_jax.relighting import relit
from dsd_jax.toy.folder import toy_lights_path
from dsd_jax.toy.making.tokenizers import clip_ids, t5_ids
from dsd_jax.toy.words import parse_light
from dsd_jax.toy.world import LIGHTS, SIDES, STRENGTHS, TINTS, Scene, Subject, light_field, render

VOCABULARY = load_lights(toy_lights_path())
SUBJECT = Subject("cat", "red", "white", "dots")


def light_of(name: str) -> Light:
    """The light of the vocabulary that a light of the world is."""
    return VOCABULARY.read(f"{name} from here" if name in TINTS else name)


def picture_in(name: str) -> np.ndarray:
    """A picture of the world in white light, lit by the operators instead."""
    pixels = np.array(render(SUBJECT, Scene("wall", "northwest")))
    pictures = [relit(pixels, light_of(name).look, np.random.default_rng(n)) for n in range(8)]
    return np.mean(pictures, axis=0)


@pytest.mark.parametrize("aspects", [1, 2, 3])
def test_whatever_is_drawn_names_a_light_of_the_world_in_words_of_the_toy(aspects: int):
    rng = np.random.default_rng(0)
    drawn = {VOCABULARY.draw(rng, aspects) for _ in range(400)}
    named = {parse_light(light.description) or Scene.light for light in drawn}
    assert named <= {*LIGHTS}
    if aspects > 1:
        assert named == {*LIGHTS}
        assert len(drawn) == len(LIGHTS)
    for light in drawn:
        assert VOCABULARY.read(light.description) == light
        for text in (light.description, light.instruction()):
            assert len(t5_ids(text.split())) == len(clip_ids(text.split()))  # all are known
        assert len(light.description.split()) <= 3
        assert len(light.instruction().split()) <= 6


def test_a_light_of_the_world_is_read_by_its_name():
    for name in LIGHTS:
        assert parse_light(light_of(name).description) == name
    assert light_of("warm left") == light_of("warm left soft")


def test_an_order_names_what_is_new_about_the_light():
    order = light_of("warm left hard").instruction(light_of("warm right soft"))
    assert order == "make the light left hard"
    assert light_of("night").instruction() == "make the light night from here"


def test_tints_change_colours_as_they_do_in_the_world():
    white = picture_in("day").mean((0, 1))
    for name, tint in TINTS.items():
        assert picture_in(name).mean((0, 1)) / white == pytest.approx(tint, abs=0.09)


@pytest.mark.parametrize("side", SIDES)
def test_light_from_a_side_falls_off_as_it_does_in_the_world(side: str):
    white = picture_in("day").mean(2)
    for strength in STRENGTHS:
        name = f"day {side} {strength}"
        gains, factors = picture_in(name).mean(2) / white, light_field(name).mean(2)
        right, down = SIDES[side]
        found, wanted = (
            part.mean(abs(down))[:: -(right + down)] for part in (gains, factors)
        )  # from the light's side to the far one
        assert found[-1] / found[0] == pytest.approx(wanted[-1] / wanted[0], abs=0.08)
        assert found.mean() == pytest.approx(wanted.mean(), abs=0.08)
