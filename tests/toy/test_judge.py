import dataclasses

import numpy as np
import pytest

from dsd_jax.toy.judge import SCENE, SUBJECT, judge
from dsd_jax.toy.world import (
    BACKGROUNDS,
    LIGHTS,
    PANEL,
    Scene,
    Subject,
    backdrop,
    render,
    subjects,
)

EVERY = subjects(held_out=False) + subjects(held_out=True)


def drawn(number: int) -> tuple[Subject, Scene, np.ndarray]:
    rng = np.random.default_rng(number)
    scene = Scene.draw(rng, list(BACKGROUNDS)[number % len(BACKGROUNDS)])
    subject = EVERY[rng.integers(len(EVERY))]
    return subject, scene, render(subject, scene)


def test_it_sees_what_was_drawn():
    whole = 0
    for number in range(40):
        subject, scene, picture = drawn(number)
        seen = judge(picture)
        for name in SUBJECT:
            assert getattr(seen, name) in {None, getattr(subject, name)}, (subject, scene, seen)
        for name in SCENE:
            assert getattr(seen, name) in {None, getattr(scene, name)}, (subject, scene, seen)
        whole += seen.subject == subject and seen.shows(scene)
    assert whole >= 38


def test_it_sees_subject_and_light_in_every_light():
    right = 0
    for number, light in enumerate(LIGHTS):
        subject, scene, _ = drawn(number)
        scene = dataclasses.replace(scene, light=light)
        seen = judge(render(subject, scene))
        assert seen.light == light, (subject, scene, seen)
        right += seen.subject == subject and seen.shows(scene)
    assert right >= len(LIGHTS) - 1


def test_it_sees_through_noise():
    rng = np.random.default_rng(0)
    right = 0
    for number in range(16):
        subject, scene, picture = drawn(number)
        noisy = np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
        seen = judge(noisy)
        right += seen.subject == subject and seen.shows(scene) and seen.light == scene.light
    assert right >= 14


@pytest.mark.parametrize("seed", range(3))
def test_what_shows_nothing_is_unclear(seed: int):
    noise = np.random.default_rng(seed).integers(0, 256, (PANEL, PANEL, 3), np.uint8)
    seen = judge(noise)
    assert seen.subject is None
    assert not any(seen.shows(Scene(background, "northwest")) for background in BACKGROUNDS)
    assert seen.error > 0.16


def test_a_scene_without_subject_has_none():
    for background in BACKGROUNDS:
        assert judge(np.rint(backdrop(background)).astype(np.uint8)).subject is None


def test_two_subjects_in_one_are_unclear():
    one = render(Subject("cat", "red", "white", "dots"), Scene("sea", "northwest"))
    other = render(Subject("star", "green", "black", "half"), Scene("sea", "northwest"))
    blended = (one.astype(int) + other) // 2
    assert judge(blended.astype(np.uint8)).subject is None
