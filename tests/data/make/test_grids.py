"""Grids are painted once, whoever paints them and however often a run is stopped."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsd_jax.data.make.grids import GridsConfig, grid_seed, paint_grids
from dsd_jax.data.make.ids import CaptionId, GridId, PromptId
from dsd_jax.data.make.parts import Parts
from dsd_jax.data.make.stages import GRIDS, PROMPTS
from dsd_jax.errors import UserError
from dsd_jax.images import read_parameters
from dsd_jax.infer.settings import check_seed
from dsd_jax.shares import WorkerShare
from tests.data.make.painted import SIDE, Painter, grid_picture, tree, write_prompts
from tests.marked import TYPE, source_types


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    made = Parts(tmp_path, 5)
    write_prompts(made, 17)
    return made


def test_a_grid_per_kept_prompt_with_its_parameters_inside(parts):
    painter = Painter()
    paint_grids(parts, GridsConfig(per_prompt=2), lambda _: painter.teacher)
    rows = list(parts.rows(GRIDS))
    prompts = {row.id: row for row in parts.rows(PROMPTS) if row.kept}
    assert {row.id for row in rows} == {GridId(name, k) for name in prompts for k in (0, 1)}
    for row in rows:
        assert row.prompt == prompts[row.prompt_id].prompt
        assert (row.status, row.width, row.height) == ("kept", SIDE, SIDE)
        with Image.open(parts.picture(row.id)) as image:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(grid_picture(row.seed)))
        assert read_parameters(parts.picture(row.id)) == {
            "prompt": row.prompt,
            "seed": row.seed,
            "steps": 28,
            "model": "painter",
        }
        assert source_types(parts.picture(row.id).read_bytes()) == [TYPE]


def test_seeds_are_of_the_id_and_are_accepted():
    prompts = [PromptId(CaptionId(f"{n:016x}"), "identity") for n in range(50)]
    seeds = {grid_seed(GridId(prompt, k)) for prompt in prompts for k in range(2)}
    assert len(seeds) == 100
    assert all(check_seed(seed) == seed for seed in seeds)


@pytest.mark.parametrize("workers", [2, 7])
def test_any_number_of_workers_writes_the_same_files(tmp_path, workers):
    trees = []
    for count in (1, workers):
        made = Parts(tmp_path / str(count), 5)
        write_prompts(made, 17)
        for worker in range(count):
            paint_grids(
                made, GridsConfig(), lambda _: Painter().teacher, WorkerShare(worker, count)
            )
        trees.append(tree(made.root))
    assert trees[0] == trees[1]
    assert sum(name.endswith(".png") for name in trees[0]) == 17


@pytest.mark.parametrize("breaks", range(4))
def test_a_run_that_was_killed_goes_on(tmp_path, breaks):
    calm, disturbed = (Parts(tmp_path / name, 2) for name in ("calm", "disturbed"))
    for made in (calm, disturbed):
        write_prompts(made, 11)
    paint_grids(calm, GridsConfig(), lambda _: Painter(3).teacher)
    first = Painter(3, breaks=breaks)
    with pytest.raises(KeyboardInterrupt):
        paint_grids(disturbed, GridsConfig(), lambda _: first.teacher)
    part = next(part for part in range(2) if not disturbed.done(GRIDS, part))
    folder = disturbed.root / "grids" / f"part-{part:05d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f".{'0' * 16}-identity-0.png.77.part").write_bytes(b"what a killed run was writing")
    second = Painter(3)
    paint_grids(disturbed, GridsConfig(), lambda _: second.teacher)
    assert tree(disturbed.root) == tree(calm.root)
    painted = [batch for painter in (first, second) for batch in painter.batches]
    assert len(painted) == len({tuple(batch) for batch in painted})  # nothing was painted twice


def test_a_batch_that_was_half_written_is_painted_in_its_old_company(parts):
    first = Painter()
    paint_grids(parts, GridsConfig(), lambda _: first.teacher)
    before = tree(parts.root)
    rows = parts.read(GRIDS, 0)
    parts.path(GRIDS, 0).unlink()
    parts.picture(rows[0].id).unlink()
    parts.picture(rows[1].id).write_bytes(b"\x89PNG cut short")
    second = Painter()
    paint_grids(parts, GridsConfig(), lambda _: second.teacher)
    assert tree(parts.root) == before
    assert second.batches == [batch for batch in first.batches if rows[0].prompt in batch]


def test_the_last_batch_is_filled_up(parts):
    painter = Painter(8)
    paint_grids(parts, GridsConfig(), lambda _: painter.teacher)
    assert {len(batch) for batch in painter.batches} == {8}


def test_what_is_finished_needs_no_teacher(parts):
    paint_grids(parts, GridsConfig(), lambda _: Painter().teacher)
    before = list(parts.rows(GRIDS))
    paint_grids(parts, GridsConfig(), lambda _: pytest.fail("loaded"))
    assert list(parts.rows(GRIDS)) == before


def test_a_picture_that_is_not_finite_is_a_failed_row(parts):
    painter = Painter()
    painter.broken = {"a grid of pot 3"}
    paint_grids(parts, GridsConfig(), lambda _: painter.teacher)
    (failed,) = [row for row in parts.rows(GRIDS) if not row.kept]
    assert (failed.status, failed.reason) == ("failed", "not_finite")
    assert failed.prompt == "a grid of pot 3"
    assert not parts.picture(failed.id).exists()


def test_a_part_without_prompts_is_an_empty_part(tmp_path):
    made = Parts(tmp_path, 3)
    write_prompts(made, 0)
    paint_grids(made, GridsConfig(), lambda _: pytest.fail("loaded"))
    assert list(made.rows(GRIDS)) == []


def test_prompts_come_first(tmp_path):
    with pytest.raises(UserError, match=r"part-00000\.jsonl is not there; run `dsd data prompts`"):
        paint_grids(Parts(tmp_path, 2), GridsConfig(), lambda _: pytest.fail("loaded"))


def test_pictures_of_other_settings_are_not_mixed_in(parts):
    with pytest.raises(KeyboardInterrupt):
        paint_grids(parts, GridsConfig(), lambda _: Painter(1, breaks=1).teacher)
    with pytest.raises(UserError, match=r"was painted with steps 28, and now it is 20; change it"):
        paint_grids(parts, GridsConfig(), lambda _: Painter(1, steps=20).teacher)


def test_another_writer_of_the_same_part(parts):
    with (
        parts.writing(GRIDS, 0),
        pytest.raises(UserError, match="another process is writing part 0 of `grids`"),
    ):
        paint_grids(parts, GridsConfig(), lambda _: Painter().teacher)


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_folder_that_vanishes_is_not_made_anew(tmp_path, how):
    """A new one would hold pictures alone, which the next start would refuse."""
    parts, aside = Parts(tmp_path / "work", 5), tmp_path / "aside"
    write_prompts(parts, 17)

    def teacher(_):
        parts.root.rename(aside)
        if how == "removed":
            shutil.rmtree(aside)
        if how == "replaced":
            parts.root.symlink_to(tmp_path / "empty")
        return Painter().teacher

    with pytest.raises(UserError, match=r"has vanished while `grids` was made: .*; run the same"):
        paint_grids(parts, GridsConfig(), teacher)
    assert not parts.root.exists()
    if how == "moved":
        aside.rename(parts.root)
        paint_grids(parts, GridsConfig(), lambda _: Painter().teacher)


def test_no_grids_at_all():
    with pytest.raises(UserError, match="per_prompt must be at least 1, got 0"):
        GridsConfig(per_prompt=0)
