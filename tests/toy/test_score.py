"""Cases of the toy world, their scores, and cases told in tags."""

import dataclasses
import math
import re

import numpy as np
import pytest

from dsd_jax.errors import UserError
from dsd_jax.toy.score import (
    Case,
    Guided,
    Relit,
    Score,
    from_tags,
    make_cases,
    score,
    summarise,
)
from dsd_jax.toy.world import BACKGROUNDS, LIGHTS, PANEL, Scene, Subject, render


@pytest.mark.parametrize("task", ["identity", "relight", "depth"])
def test_the_right_picture_is_scored_right(task: str):
    for case in make_cases(6, task=task):
        assert case.task == task
        right = score(case, case.ideal())
        if isinstance(right, Score):
            assert right == (True, True, True, False)
        elif isinstance(right, Relit):
            assert right[:3] == (True, True, True)
            assert right.drift < 0.3
        else:
            assert right == (True, True)


def test_relighting_asks_for_the_same_scene_in_another_light():
    cases = make_cases(200, task="relight")
    for case in cases:
        assert case.before.light != case.after.light
        assert dataclasses.replace(case.before, light=case.after.light) == case.after
        assert case.text.startswith("this thing on ")
    assert {case.after.light for case in cases} == set(LIGHTS)
    assert 0.6 < np.mean([case.before.light == "day" for case in cases]) < 0.8


def test_a_relit_picture_is_scored_for_light_colours_and_drift():
    case, other, *_ = make_cases(3, task="relight")
    same = score(case, case.reference())
    assert isinstance(same, Relit)
    assert (same.identity, same.light, same.colours) == (True, False, True)
    moved = score(case, np.roll(case.ideal(), 2, axis=1))
    assert isinstance(moved, Relit)
    assert 1.5 < moved.drift < 2.5
    wrong = score(case, render(other.subject, case.after))
    assert isinstance(wrong, Relit)
    assert (wrong.identity, wrong.light, wrong.colours) == (False, True, False)


def test_a_depth_case_shows_a_map_and_names_the_rest():
    subject, scene = Subject("cat", "red", "white", "dots"), Scene("snow", "northwest")
    case = Case("x", subject, scene, scene, seed=0, task="depth")
    shown = case.reference()
    assert shown.shape == (PANEL, PANEL, 3)
    assert (shown == shown[..., :1]).all()
    assert case.text == "a red cat with white dots on snow at northwest"
    assert score(case, shown) == (False, False)

    def scored(subject: Subject, **other: str) -> object:
        return score(case, render(subject, dataclasses.replace(scene, **other)))

    assert scored(subject, place="southeast") == Guided(order=False, prompt=True)
    assert scored(subject, size="small") == Guided(order=False, prompt=True)
    blue = dataclasses.replace(subject, body="blue")
    assert scored(blue) == Guided(order=True, prompt=False)
    horizon = BACKGROUNDS["snow"][2]
    for name in sorted({*BACKGROUNDS} - {"snow"}):
        same = BACKGROUNDS[name][2] == horizon
        assert scored(subject, background=name) == Guided(order=same, prompt=False)


def test_drift_is_summarised_by_its_median_where_it_can_be_told():
    scores = [Relit(True, False, True, drift) for drift in (0.1, 0.2, 9.0, math.nan)]
    found = summarise(scores)
    assert found["identity"].value == 1
    assert found["drift"].value == 0.2
    assert math.isnan(summarise(scores[3:])["drift"].value)


def test_a_task_without_cases_is_refused():
    with pytest.raises(UserError, match="no cases of the task 'relit'; expected identity, relight"):
        make_cases(1, task="relit")


def test_a_case_comes_back_from_its_tags():
    cases = make_cases(5)
    lit = dataclasses.replace(cases[0].after, light="warm left hard")
    for case in (*cases, dataclasses.replace(cases[0], after=lit)):
        tags = {"more": "x", **case.tags, "after": f" {case.tags['after']} "}
        assert from_tags(case.id, tags, seed=case.seed) == case


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"shape": "ball"}, "the tag `shape` of a toy case is `ball`; expected one of circle, squ"),
        ({"mark": None}, "the tag `mark` of a toy case is missing; expected one of red, yellow"),
        (
            {"after": "snow northwest"},
            "`after` of a toy case is `snow northwest`; expected a scene",
        ),
        ({"before": "snow up big upright day"}, "expected a scene such as `beach northwest big"),
    ],
)
def test_tags_of_no_toy_case_are_refused(tags: dict[str, str | None], message: str):
    (case,) = make_cases(1)
    given = {name: text for name, text in (case.tags | tags).items() if text is not None}
    with pytest.raises(UserError, match=f"case x: .*{re.escape(message)}"):
        from_tags("x", given)
