import dataclasses
import itertools

import numpy as np
import pytest

from dsd_jax.toy.words import (
    OPENINGS,
    T5_LENGTH,
    describe,
    describe_grid,
    describe_pair,
    describe_scene,
    parse_grid,
    parse_light,
    parse_scene,
    parse_subject,
)
from dsd_jax.toy.world import (
    BACKGROUNDS,
    COLOURS,
    LIGHTS,
    MARKINGS,
    PANEL,
    PLACES,
    SHAPES,
    SIZES,
    TILTS,
    Scene,
    Subject,
    disparity,
    grid,
    is_held_out,
    layers,
    light_field,
    render,
    subjects,
)

CAT = Subject("cat", "red", "white", "dots")
SNOW = Scene("snow", "northwest", "small", "tilted", "night left hard")
SCENES = [Scene(*words) for words in itertools.product(BACKGROUNDS, PLACES, SIZES, TILTS, LIGHTS)]


def test_every_tenth_subject_is_held_out_by_its_words_alone():
    held, known = subjects(held_out=True), subjects(held_out=False)
    assert len(held) + len(known) == len(SHAPES) * len(COLOURS) * (len(COLOURS) - 1) * len(MARKINGS)
    assert len(held) + len(known) > 4000
    assert 0.08 < len(held) / (len(held) + len(known)) < 0.12
    assert not set(held) & set(known)
    assert all(map(is_held_out, held))
    assert not any(map(is_held_out, known))
    # Every word is seen in training: what is new about the held-out ones is the combination.
    for name in ("shape", "body", "mark", "marking"):
        assert {getattr(s, name) for s in held} <= {getattr(s, name) for s in known}
    # The split is part of what the weights are: it must not move.
    assert held[0] == Subject("circle", "red", "yellow", "half")


def test_drawing_is_a_function_of_what_is_drawn():
    picture = render(CAT, SNOW)
    assert picture.shape == (PANEL, PANEL, 3)
    np.testing.assert_array_equal(picture, render(CAT, SNOW))


@pytest.mark.parametrize("name", ["shape", "body", "mark", "marking"])
def test_every_word_of_a_subject_shows(name: str):
    choices = {"shape": SHAPES, "body": COLOURS, "mark": COLOURS, "marking": MARKINGS}[name]
    pictures = {}
    for word in choices:
        words = {"shape": "cat", "body": "pink", "mark": "green", "marking": "half", name: word}
        if words["body"] != words["mark"]:
            pictures[word] = render(Subject(**words), Scene("sea", "northwest")).astype(int)
    for one, other in itertools.combinations(pictures.values(), 2):
        assert (np.abs(one - other).max(2) > 40).sum() >= 12  # pixels


@pytest.mark.parametrize("name", ["background", "place", "size", "tilt", "light"])
def test_every_word_of_a_scene_shows(name: str):
    choices = {
        "background": list(BACKGROUNDS), "place": list(PLACES), "size": list(SIZES),
        "tilt": list(TILTS), "light": list(LIGHTS),
    }[name]  # fmt: skip
    pictures = [
        render(CAT, Scene(**{"background": "sea", "place": "northwest", name: word})).astype(int)
        for word in choices
    ]
    step = 15 if name == "light" else 40  # levels; lights change all pixels
    for one, other in itertools.combinations(pictures, 2):
        assert (np.abs(one - other).max(2) > step).sum() >= 12


def test_a_light_multiplies_the_albedo_of_all_pixels():
    """So what a picture shows is known without its light, and nothing moves when it is relit."""
    scene = Scene("room", "southeast")
    albedo = render(CAT, scene).astype(float)
    for light in LIGHTS:
        lit = render(CAT, dataclasses.replace(scene, light=light))
        assert np.abs(lit - albedo * light_field(light)).max() <= 1


def test_light_from_a_side_falls_off_across_the_panel():
    left, above = light_field("day left hard"), light_field("day above hard")
    assert (np.diff(left, axis=1) < 0).all()
    assert (np.diff(left, axis=0) == 0).all()
    assert (np.diff(above, axis=0) < 0).all()
    np.testing.assert_array_equal(light_field("day right hard"), left[:, ::-1])
    assert light_field("day left soft").min() > left.min() > 0.5
    assert (light_field("day") == 1).all()


def test_relit_scenes_differ_in_light_alone():
    rng = np.random.default_rng(0)
    drawn = [SNOW.relit(rng) for _ in range(300)]
    assert {scene.light for scene in drawn} == {*LIGHTS} - {SNOW.light}
    assert all(dataclasses.replace(scene, light=SNOW.light) == SNOW for scene in drawn)


def test_the_subject_is_nearest_and_the_ground_before_the_rest():
    scene = Scene("snow", "northwest")
    depth = disparity("square", scene)
    horizon = BACKGROUNDS["snow"][2]
    place = layers("square", "dots", *dataclasses.astuple(scene)[1:4])[..., 0]
    assert depth.shape == (PANEL, PANEL)
    assert 0 <= depth.min() < depth.max() <= 1
    assert depth[place == 1].min() > depth[horizon:][place[horizon:] == 0].max()
    assert depth[horizon:, -1].min() > depth[:horizon, -1].max()
    assert (np.diff(depth[horizon:, -1]) > 0).all()


def test_edges_are_smooth():
    """A border that crosses pixels gives them colours in between."""
    picture = render(Subject("circle", "white", "black", "spot"), Scene("room", "northwest"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 25


def test_a_grid_holds_its_panels_in_reading_order():
    scenes = SCENES[::80][:4]
    picture = grid(CAT, scenes)
    for number, scene in enumerate(scenes):
        row, column = divmod(number, 2)
        panel = picture[row * PANEL :, column * PANEL :][:PANEL, :PANEL]
        np.testing.assert_array_equal(panel, render(CAT, scene))


def test_prompts_of_several_panels_may_leave_the_subject_unnamed():
    scenes = SCENES[::80][:4]
    assert describe_grid(None, scenes).startswith("a grid of this thing, top-left on ")
    text = describe_pair(SNOW)
    assert text == f"two pictures of this thing, right-hand {describe_scene(SNOW)}"
    assert parse_subject(text) is None


def test_words_are_read_back_exactly():
    for number, subject in enumerate(subjects(held_out=False)[::60]):
        scene = SCENES[number % len(SCENES)]
        text = describe(subject, scene)
        assert parse_subject(text) == subject
        assert parse_scene(text) == scene
    for scene in SCENES:
        assert parse_scene(describe(None, scene)) == scene
        assert parse_subject(describe(None, scene)) is None


@pytest.mark.parametrize(
    ("text", "light"),
    [
        ("warm light from the left, hard", "warm left hard"),
        ("Light it from above", "day above soft"),
        ("hard cool light", "cool"),
        ("a red cat on snow", None),
        ("right-hand on snow at northwest", None),
    ],
)
def test_lights_are_read_from_words(text: str, light: str | None):
    assert parse_light(text) == light


@pytest.mark.parametrize("opening", OPENINGS)
def test_grid_prompts_are_read_back_and_keep_to_the_rules(opening: str):
    scenes = tuple(SCENES[:: len(SCENES) // 4][:4])
    text = describe_grid(CAT, scenes, opening)
    assert parse_grid(text) == (CAT, scenes)
    assert text.startswith("a grid of ")
    assert "\n" not in text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat on a beach",
        describe(CAT, SNOW),
        describe_grid(CAT, [SNOW] * 4).replace("bottom-right", "below"),
        describe_grid(CAT, [SNOW] * 4).replace("red cat", "cat"),
    ],
)
def test_what_is_no_grid_prompt(text: str):
    assert parse_grid(text) is None


def test_the_longest_prompt_fits():
    """Counts T5's tokens: one for each word and comma, and the end token."""
    text = describe_grid(CAT, [SNOW] * 4)
    assert len(text.replace(",", " ,").split()) + 1 <= T5_LENGTH
