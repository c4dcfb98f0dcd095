"""Packing: kept pairs both ways, with their whole story; the same bytes however it went."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from dsd_jax.data.make.crops import panels_of
from dsd_jax.data.make.ids import PairId
from dsd_jax.data.make.pack import PackConfig, pack
from dsd_jax.data.make.parts import Parts
from dsd_jax.data.make.stages import DESCRIPTIONS, JUDGEMENTS, PAIRS, Pair, Words
from dsd_jax.data.pairs.store import PairStore
from dsd_jax.errors import UserError
from tests.data.make.made import write_folder
from tests.marked import TYPE, source_types

SETTINGS = {"judge": {"mode": "steps", "wording": "v1@0123"}}


def packed(parts: Parts, **settings: object) -> PairStore:
    pack(parts, PackConfig(**settings), panels_of(parts), SETTINGS)  # type: ignore[arg-type]
    return PairStore.open(parts.root / "dataset")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_kept_pairs_are_stored_both_ways_with_their_story(tmp_path: Path):
    parts = write_folder(tmp_path, 6)
    store = packed(parts)
    assert len(store) == 6 * 2 * 2
    records = {record.id: record for record in store}
    record, back = records[f"{0:016x}-identity-0-12"], records[f"{0:016x}-identity-0-21"]
    assert (record.reference, record.target) == (back.target, back.reference)
    assert source_types(record.reference) == source_types(record.target) == [TYPE]
    assert record.caption == "a red fox as in 2"
    assert back.caption == "a red fox as in 1"
    assert back.instruction == "move the red fox from 2 to 1"
    assert (record.task, record.subject) == ("identity", "red fox")
    story = record.provenance
    assert story["caption"]["caption"] == "a red fox 0"
    assert story["caption"]["source"] == {"file": "a.csv", "row": 0}
    assert story["prompt"]["prompt"].startswith("a grid of four photos")
    assert story["grid"] == {"id": f"{0:016x}-identity-0", "seed": 0}
    assert story["pair"]["reference_box"] == [1, 1, 31, 31]
    assert [turn["answer"] for turn in story["judge"]["turns"]] == ["yes"] * 3
    assert story["judge"]["model"] == "model-1"
    assert back.provenance["words"]["way"] == "reverse"


def test_a_pair_judged_in_both_orders_is_not_turned_round(tmp_path: Path):
    parts = write_folder(tmp_path, 1, parts=1)
    for stage in (PAIRS, JUDGEMENTS, DESCRIPTIONS):
        rows = parts.read(stage, 0)
        (first,) = (row for row in rows if str(row.id).endswith("-12"))
        assert isinstance(first.id, PairId)
        parts.write(stage, 0, [*rows, dataclasses.replace(first, id=first.id.flipped())])
    assert len(packed(parts)) == 4  # 12 and 21, and 24 both ways


def test_a_way_without_words_is_left_out(tmp_path: Path):
    parts = write_folder(tmp_path, 2, parts=1)
    rows = parts.read(DESCRIPTIONS, 0)
    lost = Words(no_caption="blocked", no_instruction="blocked")
    rows[0] = dataclasses.replace(rows[0], forward=lost)
    pot = Words(caption="a pot", no_instruction="blocked")
    rows[-1] = dataclasses.replace(rows[-1], reverse=pot)
    parts.write(DESCRIPTIONS, 0, rows)
    store = packed(parts)
    assert len(store) == 2 * 2 * 2 - 1
    (record,) = (record for record in store if record.caption == "a pot")
    assert record.instruction == ""


def test_panels_are_resized_if_asked(tmp_path: Path):
    store = packed(write_folder(tmp_path, 1), size=(48, 32))
    record = store[0]
    assert record.target_size == (48, 32)
    with Image.open(io.BytesIO(record.target)) as image:
        assert image.size == (32, 48)
        assert image.format == "PNG"


def test_a_stopped_packing_ends_with_the_same_bytes(tmp_path: Path):
    calm = packed(write_folder(tmp_path / "calm", 8), shard_bytes=4_000)
    assert len(calm.manifest.shards) > 3
    parts = write_folder(tmp_path / "stopped", 8)
    whole = panels_of(parts)
    calls = 0

    def breaks(pairs: Sequence[Pair]) -> list[tuple[bytes, bytes]]:
        nonlocal calls
        calls += 1
        if calls % 5 == 0:
            raise KeyboardInterrupt
        return whole(pairs)

    for _ in range(50):
        try:
            pack(parts, PackConfig(shard_bytes=4_000), breaks, SETTINGS)
        except KeyboardInterrupt:
            continue
        break
    assert files(tmp_path / "stopped" / "dataset") == files(tmp_path / "calm" / "dataset")


def test_the_card_counts_what_was_kept_and_why_not(tmp_path: Path):
    parts = write_folder(tmp_path, 6)
    manifest = packed(parts).manifest
    assert manifest.origin["yields"]["judge"] == {
        "rows": 30,
        "kept": 12,
        "failed": {"unanswered": 6},
        "rejected": {"no": 6},
        "undecided": {"neither_yes_nor_no": 6},
    }
    assert manifest.origin["models"] == {"prompts": {"model-1": 6}, "judge": {"model-1": 30}}
    card = (tmp_path / "dataset" / "README.md").read_text()
    assert "| judge | 30 | 12 (40.0 %) |" in card
    assert "- judge: model-1 (30)" in card
    assert "- judge: `v1@0123`" in card
    assert "no_clear_subject 1" in card
    assert "## Format" in card


def test_a_packed_folder_of_other_settings_is_refused(tmp_path: Path):
    parts = write_folder(tmp_path, 2)
    packed(parts)
    with pytest.raises(UserError, match="dataset"):
        packed(parts, size=(16, 16))


def test_an_unfinished_stage_and_an_empty_yield_are_named(tmp_path: Path):
    parts = write_folder(tmp_path, 2, parts=1)
    rows = parts.read(DESCRIPTIONS, 0)
    parts.path(DESCRIPTIONS, 0).unlink()
    with pytest.raises(UserError, match="1 of 1 parts of `caption` are not finished"):
        packed(parts)
    parts.write(
        DESCRIPTIONS,
        0,
        [dataclasses.replace(row, status="rejected", reason="blocked") for row in rows],
    )
    with pytest.raises(UserError, match=r"no pair was kept; `dsd data stats .*` shows where"):
        packed(parts)
    assert not (tmp_path / "dataset").exists()


def test_a_panel_smaller_than_sixteen_pixels_is_refused():
    with pytest.raises(UserError, match="at least 16 pixels"):
        PackConfig(size=(8, 512))
