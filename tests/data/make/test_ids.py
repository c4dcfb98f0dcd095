"""Ids are written and read back, and a text that is not an id is refused."""

import pytest

from dsd_jax.data.make.ids import CaptionId, GridId, PairId, PanelId, PromptId
from dsd_jax.errors import UserError

GRID = GridId(PromptId(CaptionId.of("a red fox"), "identity"), 12)
KINDS = (CaptionId, PromptId, GridId, PanelId, PairId)
IDS = (GRID.caption, GRID.prompt, GRID, PanelId(GRID, 3), PairId(GRID, 3, 1))


@pytest.mark.parametrize("one", IDS, ids=str)
def test_an_id_is_read_back_by_its_own_kind_alone(one):
    assert type(one).parse(str(one)) == one
    assert one.caption == GRID.caption
    for kind in KINDS:
        if kind is not type(one):
            with pytest.raises(UserError, match="is not the id of a "):
                kind.parse(str(one))


@pytest.mark.parametrize("tail", ["", "-11", "-15", "-1", "-123", "-٣1", "-12\n", "-12-"])
def test_what_is_no_pair_is_refused(tail: str):
    with pytest.raises(UserError, match="is not the id of a "):
        PairId.parse(f"{GRID}{tail}")


def test_a_flipped_pair_has_its_panels_the_other_way_round():
    pair = PairId(GRID, 3, 1)
    assert str(pair.flipped()) == f"{GRID}-13"
    assert pair.flipped().panels == pair.panels[::-1]


def test_the_id_of_a_caption_does_not_see_case_and_spaces():
    assert CaptionId.of("A  Red Fox") == CaptionId.of("a red fox")
    assert CaptionId.of("a red fox") != CaptionId.of("a red box")
