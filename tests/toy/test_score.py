"""Cases of the toy world told in tags."""

import re

import pytest

from dsd_jax.errors import UserError
from dsd_jax.toy.score import from_tags, make_cases


def test_a_case_comes_back_from_its_tags():
    for case in make_cases(5):
        assert from_tags(case.id, {"more": "x", **case.tags}, seed=case.seed) == case


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
