"""Grids become pairs: whoever cuts them, whatever was put in their place, and each copy once."""

import dataclasses
import hashlib
import io
import itertools
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dsd_jax.data.make import pairs
from dsd_jax.data.make.crops import panel_png
from dsd_jax.data.make.grids import GridsConfig, paint_grids
from dsd_jax.data.make.ids import CaptionId, GridId, PanelId, PromptId
from dsd_jax.data.make.pairs import PairsConfig, make_pairs
from dsd_jax.data.make.parts import Parts
from dsd_jax.data.make.stages import GRIDS, PAIRS, PANELS, CutGrid, Grid, Pair, plain
from dsd_jax.data.make.statistics import drifts
from dsd_jax.errors import UserError
from dsd_jax.shares import WorkerShare
from dsd_jax.tasks import IDENTITY, RELIGHT, task_named
from tests.data.make.painted import Painter, grid_picture, tree, write_prompts


def painted(root: Path, grids: int = 9, parts: int = 3) -> Parts:
    made = Parts(root, parts)
    write_prompts(made, grids)
    paint_grids(made, GridsConfig(), lambda _: Painter().teacher)
    return made


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


A, B = (GridId(PromptId(CaptionId(letter * 16), "identity"), 0) for letter in "ab")


def with_files(root: Path, files: dict[GridId, bytes]) -> Parts:
    """A folder of one part with these pictures as grids."""
    made = Parts(root, 1)
    rows: list[Grid] = []
    for name, data in files.items():
        path = made.picture(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        rows.append(
            Grid(
                id=name,
                prompt_id=name.prompt,
                task=name.prompt.task,
                prompt="a grid of pots",
                seed=0,
                sha256=hashlib.sha256(data).hexdigest(),
                status="kept",
            )
        )
    made.write(GRIDS, 0, rows)
    return made


def only(made: Parts) -> list[Pair | CutGrid]:
    assert make_pairs(made, PairsConfig()) == []
    return list(made.rows(PAIRS))


def only_pairs(made: Parts) -> list[Pair]:
    rows = [row for row in only(made) if isinstance(row, Pair)]
    assert len(rows) == len(list(made.rows(PAIRS)))
    return rows


def test_six_pairs_of_every_grid(tmp_path):
    made = painted(tmp_path)
    rows = only_pairs(made)
    grids = {row.id: row for row in made.rows(GRIDS)}
    assert len(rows) == 6 * len(grids) == 54
    for row in rows:
        assert (row.grid_id, row.prompt_id) == (row.id.grid, grids[row.id.grid].prompt_id)
        assert (row.task, row.status) == ("identity", "kept")
        assert 0 <= row.similarity <= task_named("identity").similarity.most
        boxes = [(0, 0, 31, 31), (33, 0, 64, 31), (0, 33, 31, 64), (33, 33, 64, 64)]
        assert row.reference_box == boxes[row.id.reference - 1]
        assert row.target_box == boxes[row.id.target - 1]
    unordered = {frozenset(row.id.panels) for row in rows}
    assert len(unordered) == 54
    forward = sum(row.id.reference < row.id.target for row in rows)
    assert 12 < forward < 42  # no panel is always the reference


def test_both_directions(tmp_path):
    made = painted(tmp_path, grids=2)
    make_pairs(made, PairsConfig(both_directions=True))
    rows = list(made.rows(PAIRS))
    grids = [row.id for row in made.rows(GRIDS)]
    ends = [f"{a}{b}" for a, b in itertools.permutations((1, 2, 3, 4), 2)]
    assert sorted(str(row.id) for row in rows) == sorted(f"{g}-{e}" for g in grids for e in ends)


def test_panel_of_a_pair(tmp_path):
    made = painted(tmp_path)
    row = only_pairs(made)[0]
    data = panel_png(made, row.grid_id, row.target_box)
    assert data == panel_png(made, row.grid_id, row.target_box)
    with Image.open(made.picture(row.grid_id)) as image, Image.open(io.BytesIO(data)) as own:
        np.testing.assert_array_equal(np.asarray(own), np.asarray(image.crop(row.target_box)))


@pytest.mark.parametrize("workers", [2, 7])
def test_any_number_of_workers_writes_the_same_files(tmp_path, workers):
    trees = []
    for count in (1, workers):
        made = painted(tmp_path / str(count), parts=5)
        copy_a_panel(made)
        waiting = [
            make_pairs(made, PairsConfig(), WorkerShare(worker, count)) for worker in range(count)
        ]
        last = min(count, made.count) - 1  # whoever cuts the last part can go on
        assert [bool(parts) for parts in waiting] == [worker < last for worker in range(count)]
        for worker in range(count):
            assert make_pairs(made, PairsConfig(), WorkerShare(worker, count)) == []
        trees.append(tree(made.root))
    assert trees[0] == trees[1]
    assert sum(b'"duplicate"' in data for data in trees[0].values()) >= 1


def copy_a_panel(made: Parts) -> tuple[GridId, GridId]:
    """The first grid's top left panel, put into the last grid; their ids."""
    first, *_, last = sorted((row.id for row in made.rows(GRIDS)), key=str)
    source, target = (Image.open(made.picture(name)) for name in (first, last))
    target.paste(source.crop((0, 0, 31, 31)), (33, 33))
    made.picture(last).write_bytes(encoded(target))
    for part in range(made.count):
        held = made.read(GRIDS, part)
        made.write(GRIDS, part, [hashed(made, row) for row in held])
    return first, last


def hashed(made: Parts, row: Grid) -> Grid:
    """The row with the digest of the file as it is now."""
    digest = hashlib.sha256(made.picture(row.id).read_bytes()).hexdigest()
    return dataclasses.replace(row, sha256=digest)


def test_of_copies_across_the_corpus_the_first_stays(tmp_path):
    made = painted(tmp_path, parts=4)
    first, last = copy_a_panel(made)
    rejected = {row.id: row for row in only_pairs(made) if not row.kept}
    assert {name.grid for name in rejected} == {last}
    assert all(PanelId(last, 4) in name.panels for name in rejected)
    assert len(rejected) == 3
    for row in rejected.values():
        assert (row.status, row.reason) == ("rejected", "duplicate")
        assert row.detail == f"panel 4 is {first}-1"


def test_copies_within_a_grid(tmp_path):
    image = grid_picture(0)
    image.paste(image.crop((0, 0, 31, 31)), (33, 0))
    rows = only_pairs(with_files(tmp_path, {A: encoded(image)}))
    reasons = {frozenset((row.id.reference, row.id.target)): row.reason for row in rows}
    assert reasons.pop(frozenset((1, 2))) == "near_copy"
    assert [*reasons.values()] == [None] * 5


def test_a_floor_on_similarity(tmp_path):
    made = painted(tmp_path, grids=3)
    make_pairs(made, PairsConfig(min_similarity=0.93))
    rows = list(made.rows(PAIRS))
    assert {row.reason for row in rows} == {"unlike"}


@pytest.mark.parametrize("breaks", [0, 4, 11])
def test_a_run_that_was_killed_goes_on(tmp_path, monkeypatch, breaks):
    calm, disturbed = painted(tmp_path / "calm", grids=12), painted(tmp_path / "d", grids=12)
    only(calm)
    find, calls = pairs.find_panels, itertools.count()

    def killed(*args):
        if next(calls) == breaks:
            raise KeyboardInterrupt
        return find(*args)

    monkeypatch.setattr(pairs, "find_panels", killed)
    with pytest.raises(KeyboardInterrupt):
        make_pairs(disturbed, PairsConfig())
    monkeypatch.undo()
    assert not any(disturbed.done(PAIRS, part) for part in range(3))
    only(disturbed)
    assert tree(disturbed.root) == tree(calm.root)


def test_grids_come_first(tmp_path):
    with pytest.raises(UserError, match=r"part-00000\.jsonl is not there; run `dsd data grids`"):
        make_pairs(Parts(tmp_path, 2), PairsConfig())


def test_a_damaged_half_names_the_command(tmp_path):
    made = painted(tmp_path)
    make_pairs(made, PairsConfig(), WorkerShare(0, 2))
    path = made.path(PANELS, 0)
    path.write_text(path.read_text().replace("kept", "lost"))
    with pytest.raises(UserError, match=r"panels/part-00000\.jsonl is damaged.*`dsd data pairs`"):
        make_pairs(made, PairsConfig(), WorkerShare(1, 2))


def test_failed_and_rejected_grids(tmp_path):
    made = Parts(tmp_path, 1)
    write_prompts(made, 4)
    painter = Painter()
    painter.broken = {"a grid of pot 0"}
    paint_grids(made, GridsConfig(), lambda _: painter.teacher)
    rows = made.read(GRIDS, 0)
    first = next(row.id for row in rows if row.kept)
    blank = encoded(Image.new("RGB", (64, 64), "#204060"))
    made.picture(first).write_bytes(blank)
    made.write(GRIDS, 0, [hashed(made, row) if row.id == first else row for row in rows])
    found = only(made)
    assert len(found) == 2 * 6 + 1  # the failed one has a row in `grids` already
    (rejected,) = [row for row in found if row.status == "rejected"]
    assert (rejected.id, rejected.reason) == (first, "no_separator")


def png_header(height: int, width: int) -> bytes:
    """A PNG that claims a size and holds one row of nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        size, check = struct.pack(">I", len(data)), struct.pack(">I", zlib.crc32(kind + data))
        return size + kind + data + check

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(8))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


class TestHostilePictures:
    @pytest.mark.parametrize(
        ("data", "detail"),
        [
            (encoded(grid_picture(1))[:300], "cannot decode the image: "),
            (b"", "the image is not a picture that can be read"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "the image is not a picture"),
            (b"%PDF-1.7 and so on", "the image is not a picture"),
            (encoded(grid_picture(1), "PPM"), "the image is not a picture"),
            (png_header(50_000, 50_000), "far more than the 64,000,000 pixels accepted"),
            (png_header(10_000, 9_000), "has 9000x10000 pixels; at most 64,000,000"),
            (encoded(grid_picture(1).resize((8, 8))), "both sides must be >= 16"),
            (encoded(Image.new("F", (64, 64)), "TIFF"), "holds floating-point values"),
        ],
        ids=["cut", "empty", "svg", "pdf", "ppm", "bomb", "huge", "tiny", "floats"],
    )
    def test_what_cannot_be_read_is_a_rejected_row(self, tmp_path, data, detail):
        rows = only(with_files(tmp_path, {A: data, B: encoded(good())}))
        assert len(rows) == 7  # the others go on
        assert (rows[0].id, rows[0].status) == (A, "rejected")
        assert rows[0].reason == "unreadable"
        assert detail in str(rows[0].detail)

    @pytest.mark.parametrize("kind", ["cmyk", "sixteen bits", "alpha", "palette", "gray", "gif"])
    def test_other_modes_are_cut_like_any(self, tmp_path, kind):
        image = good()
        gray = np.asarray(image.convert("L")).astype(np.uint16) * 257
        seen = image.copy()
        seen.putalpha(image.convert("L").point(lambda v: 0 if v == 255 else 255))
        data = {
            "cmyk": encoded(image.convert("CMYK"), "JPEG", quality=95),
            "sixteen bits": encoded(Image.fromarray(gray)),
            "alpha": encoded(seen),
            "palette": encoded(image.quantize(64)),
            "gray": encoded(image.convert("L")),
            "gif": encoded(image, "GIF", save_all=True, append_images=[image.rotate(90)]),
        }[kind]
        made = with_files(tmp_path, {A: data})
        rows = only_pairs(made)
        assert [row.status for row in rows] == ["kept"] * 6
        panel = panel_png(made, A, rows[0].reference_box)
        assert Image.open(io.BytesIO(panel)).mode == "RGB"

    def test_boxes_lie_in_the_picture_as_it_is_seen(self, tmp_path):
        """A grid of 256 x 320 that a camera stored lying on its side."""
        upright = grid_picture(3, 256, 8).resize((256, 320))
        exif = Image.Exif()
        exif[0x0112] = 6
        data = encoded(upright.rotate(90, expand=True), "JPEG", exif=exif, quality=95)
        made = with_files(tmp_path, {A: data})
        row = next(row for row in only_pairs(made) if {row.id.reference, row.id.target} == {1, 4})
        boxes = sorted((row.reference_box, row.target_box))
        assert boxes[1][0] > 128
        assert 160 < boxes[1][1] < boxes[1][3] <= 320
        panel = Image.open(io.BytesIO(panel_png(made, A, boxes[1])))
        true = np.asarray(upright.crop(boxes[1])).astype(int)
        assert np.abs(np.asarray(panel) - true).mean() < 4

    def test_a_file_that_was_changed(self, tmp_path):
        made = painted(tmp_path, grids=2, parts=1)
        name = made.read(GRIDS, 0)[0].id
        made.picture(name).write_bytes(encoded(good()))
        row = next(row for row in only(made) if row.id == name)
        assert (row.status, row.reason) == ("rejected", "changed")

    def test_a_file_that_is_gone(self, tmp_path):
        made = painted(tmp_path, grids=2, parts=1)
        made.picture(made.read(GRIDS, 0)[0].id).unlink()
        expected = (
            r"cannot read .*\.png: No such file.*remove .*part-00000\.jsonl and run `dsd data g"
        )
        with pytest.raises(UserError, match=expected):
            make_pairs(made, PairsConfig())


def good() -> Image.Image:
    return grid_picture(2, 128, 6)


@pytest.mark.parametrize("values", [(0.5, 0.4), (0.0, 1.2), (-0.1, 0.9)])
def test_bounds_of_similarity(values):
    with pytest.raises(UserError, match="0 <= min_similarity < max_similarity <= 1 must hold, got"):
        PairsConfig(min_similarity=values[0], max_similarity=values[1])


def views(shift: int) -> Image.Image:
    """A grid of one scene in four lights; the last panel shows it moved to the right."""
    rng = np.random.default_rng(0)
    whole = Image.new("RGB", (200, 160), "grey")
    pen = ImageDraw.Draw(whole)
    for _ in range(60):
        x, y, size = (*rng.uniform(0, 160, 2), rng.uniform(5, 20))
        colour = tuple(int(v) for v in rng.integers(20, 235, 3))
        pen.rectangle((x, y, x + size, y + size), fill=colour)
    grid = Image.new("RGB", (244, 244), "white")
    for number, (left, top) in enumerate(itertools.product((0, 124), (0, 124))):
        start = 30 - (shift if number == 3 else 0)
        panel = whole.crop((start, 20, start + 120, 140))
        grid.paste(panel.point(lambda value, n=number: value * (1 - 0.15 * n)), (left, top))
    return grid


def test_a_task_that_asks_for_it_keeps_only_pairs_that_stand_still(tmp_path):
    made = with_files(tmp_path, {A: encoded(views(9))})
    make_pairs(made, PairsConfig(max_similarity=1, max_drift={"identity": 2.0}))
    found = drifts(made.rows(PAIRS))["identity"]
    assert (found.verdicts, found.kept) == ({"still": 3, "moved": 3}, 3)
    rows = [row for row in made.rows(PAIRS) if isinstance(row, Pair)]
    assert len(rows) == 6
    for row in rows:
        assert row.drift is not None
        assert row.drift.largest_px is not None
        if 4 in (row.id.reference, row.id.target):
            assert (row.status, row.reason, row.drift.verdict) == ("rejected", "drifted", "moved")
            assert row.drift.largest_px == pytest.approx(9, abs=1)
            assert str(row.detail).startswith("moved by up to ")
        else:
            assert (row.status, row.drift.verdict) == ("kept", "still")


def test_panels_that_no_motion_joins_have_drifted(tmp_path):
    made = with_files(tmp_path, {A: encoded(grid_picture(3, 128))})
    make_pairs(made, PairsConfig(max_drift={"identity": 50.0}))
    reasons = {row.detail for row in made.rows(PAIRS) if row.reason == "drifted"}
    assert reasons
    assert reasons <= {"other structure", "cannot tell"}


def test_drift_is_not_measured_unless_the_task_asks_for_it(tmp_path):
    made = with_files(tmp_path, {A: encoded(views(9))})
    make_pairs(made, PairsConfig(max_similarity=1, max_drift={"relight": 2.0}))
    rows = list(made.rows(PAIRS))
    assert {row.status for row in rows} == {"kept"}
    assert not any("drift" in plain(row) for row in (*rows, *made.rows(PANELS)))


def test_relighting_stands_still_unless_its_limit_is_taken_away():
    assert PairsConfig().drift(RELIGHT) == 2.0
    assert PairsConfig(max_drift={"relight": 5.0}).drift(RELIGHT) == 5.0
    assert PairsConfig(max_drift={"relight": math.inf}).drift(RELIGHT) is None
    assert PairsConfig().drift(IDENTITY) is None


@pytest.mark.parametrize(
    ("drift", "message"),
    [
        ({"relihgt": 2.0}, r"no task 'relihgt'; .*did you mean 'relight'"),
        ({"relight": 0.0}, r"max_drift of relight must be a number of pixels > 0, or inf, got 0.0"),
        ({"relight": float("nan")}, r"must be a number of pixels > 0, or inf, got nan"),
    ],
)
def test_a_limit_of_drift_that_means_nothing_is_refused(drift: dict[str, float], message: str):
    with pytest.raises(UserError, match=message):
        PairsConfig(max_drift=drift)
