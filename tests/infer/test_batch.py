"""Batch runs: every row once, broken rows reported, nothing lost by a restart."""

import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.images import NotFiniteError, open_image, read_parameters, save_image
from dsd_jax.infer import batch as module
from dsd_jax.infer.batch import read_manifest, run_batch
from dsd_jax.shares import WorkerShare
from tests.infer.manifests import DEFAULTS, manifest
from tests.marked import TYPE, source_types
from tests.random_flux import TEXT, picture


@pytest.fixture
def counted(pipe, monkeypatch):
    """The pipeline; `counted.made` lists the texts it was asked for, a list per call."""
    made: list[list[str]] = []
    run = pipe.run

    def count(prepared, **options):
        made.append(prepared.texts)
        return run(prepared, **options)

    monkeypatch.setattr(pipe, "run", count)
    monkeypatch.setattr(pipe, "made", made, raising=False)
    return pipe


def results(folder: Path, name: str = "results.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def pixels(folder: Path) -> dict[str, str]:
    """Digest of the pixels of every picture."""
    return {
        path.name: hashlib.sha256(np.asarray(Image.open(path)).tobytes()).hexdigest()
        for path in folder.glob("*.png")
    }


def simple(count: int) -> list[dict[str, Any]]:
    return [{"id": f"r{i}", "text": TEXT, "image": "cat.png", "seed": i} for i in range(count)]


class TestRun:
    def test_images_parameters_results_and_summary(self, counted, here):
        rows = [
            {"id": "a", "text": TEXT, "image": "cat.png", "seed": 3},
            {"id": "b", "text": "a dog", "image": "dog.jpg", "guidance": 1.5},
            {"id": "c", "text": "a robot", "height": 64, "width": 128},
        ]
        out = here / "new" / "out"
        seen: list[dict[str, Any]] = []
        summary = run_batch(
            counted, read_manifest(manifest(here, rows), DEFAULTS), out, on_result=seen.append
        )
        assert (summary.made, summary.kept, summary.failed) == (3, 0, 0)
        assert str(summary).startswith("3 made, 0 kept from before, 0 failed in ")
        assert str(summary).endswith(" images/s")
        assert results(out) == seen
        assert [(r["id"], r["status"], r["output"]) for r in seen] == [
            (name, "ok", f"{name}.png") for name in "abc"
        ]
        written = ["a.png", "b.png", "c.png", "results.jsonl", "sheet.jpg"]
        assert sorted(p.name for p in out.iterdir()) == written
        assert open_image(out / "a.png").size == (64, 64)
        assert open_image(out / "c.png").size == (128, 64)
        found = read_parameters(out / "b.png")
        assert found is not None
        assert (found["text"], found["guidance"], found["steps"]) == ("a dog", 1.5, 2)
        # The same as from the pipeline itself.
        alone = counted("a dog", here / "dog.jpg", height=64, width=128, steps=2, guidance=1.5)
        np.testing.assert_array_equal(np.asarray(Image.open(out / "b.png")), np.asarray(alone[0]))

    def test_images_of_another_format_are_marked_and_kept_too(self, counted, here):
        rows = [{"id": name, "text": name, "image": "cat.png"} for name in ("a", "b")]
        path, out = manifest(here, rows), here / "out"
        out.mkdir()
        (out / ".a.webp.0123abcd.part").write_text("of a killed run")
        for outcome in ((2, 0), (0, 2)):
            summary = run_batch(counted, read_manifest(path, DEFAULTS, None, ".webp"), out)
            assert (summary.made, summary.kept) == outcome
        written = ["a.webp", "b.webp", "results.jsonl", "sheet.jpg"]
        assert sorted(file.name for file in out.iterdir()) == written
        for name, other in (("a", "b"), ("b", "a")):
            data = (out / f"{name}.webp").read_bytes()
            assert source_types(data) == [TYPE]
            found = read_parameters(out / f"{name}.webp")
            assert found is not None
            assert found["text"] == name
            assert other not in found.values()
        assert source_types((out / "sheet.jpg").read_bytes()) == [TYPE]

    def test_broken_rows_are_recorded_and_the_others_go_on(self, counted, here):
        (here / "text.png").write_text("not a picture")
        (here / "cut.png").write_bytes((here / "cat.png").read_bytes()[:300])
        broken: dict[str, tuple[dict[str, Any], str]] = {
            "missing": ({"text": TEXT, "image": "none.png"}, "there is no image at .*none.png"),
            "text": ({"text": TEXT, "image": "text.png"}, "not a picture that can be read"),
            "cut": ({"text": TEXT, "image": "cut.png"}, "cannot decode .*the file is damaged"),
            "empty": ({"text": " ", "image": "cat.png"}, "text 0 is empty"),
            "odd": ({"text": TEXT, "image": "cat.png", "height": 70}, "multiples of 16 pixels"),
            "scale": ({"text": TEXT, "i_guidance": 2.0}, "needs a reference image"),
            "column": ({"text": TEXT, "colour": "red"}, "unknown column 'colour'"),
        }
        rows = [{"id": name, **row} for name, (row, _) in broken.items()]
        rows = [r for pair in zip(rows, simple(len(rows)), strict=True) for r in pair]
        summary = run_batch(
            counted, read_manifest(manifest(here, rows), DEFAULTS), here / "out", batch_size=3
        )
        assert (summary.made, summary.failed) == (7, 7)
        lines = {line["id"]: line for line in results(here / "out")}
        assert len(lines) == 14
        for name, (_, complaint) in broken.items():
            assert lines[name]["status"] == "error"
            assert re.search(complaint, lines[name]["error"]), lines[name]
        assert set(pixels(here / "out")) == {f"r{i}.png" for i in range(7)}

    def test_one_broken_image_of_a_batch(self, counted, here, monkeypatch):
        run = counted.run

        def fail_for_r1(prepared, **options):
            if 1 in prepared.seeds:
                raise NotFiniteError("values that are not finite")
            return run(prepared, **options)

        monkeypatch.setattr(counted, "run", fail_for_r1)
        rows = read_manifest(manifest(here, simple(3)), DEFAULTS)
        summary = run_batch(counted, rows, here / "out", batch_size=3)
        assert (summary.made, summary.failed) == (2, 1)
        assert set(pixels(here / "out")) == {"r0.png", "r2.png"}

    def test_notices_are_in_the_results(self, counted, here):
        rows = [{"text": "red " * 100, "image": "cat.png", "t_guidance": 2.0}, *simple(1)]
        run_batch(counted, read_manifest(manifest(here, rows), DEFAULTS), here / "out")
        said, silent = results(here / "out")
        cut, effect = said["notices"]
        assert cut.startswith("text cut at 77 CLIP tokens; left out: 'red red")
        assert effect == "t_guidance=2.0 has no effect: i_guidance is not above 1"
        assert "notices" not in silent

    def test_results_come_one_by_one_each_after_its_image(self, counted, here, monkeypatch):
        out = here / "out"
        events: list[tuple[str, Any]] = []
        run = counted.run

        def sample(prepared, **options):
            events.append(("sample", sorted(p.stem for p in out.glob("*.png"))))
            return run(prepared, **options)

        def report(entry):
            assert (out / entry["output"]).exists()
            events.append(("line", entry["id"]))

        monkeypatch.setattr(counted, "run", sample)
        rows = read_manifest(manifest(here, simple(4)), DEFAULTS)
        run_batch(counted, rows, out, on_result=report)
        kinds = [kind for kind, _ in events]
        # An image is written while the next is sampled, so its line is one image late.
        assert kinds == ["sample", "sample", "line", "sample", "line", "sample", "line", "line"]
        assert [what for kind, what in events if kind == "line"] == ["r0", "r1", "r2", "r3"]

    def test_equal_settings_share_a_batch(self, counted, here):
        rows = simple(5)
        rows[1] |= {"guidance": 2.0}
        rows[3] |= {"guidance": 2.0}
        del rows[4]["image"]
        manifest_rows = read_manifest(manifest(here, rows), DEFAULTS)
        run_batch(counted, manifest_rows, here / "out", batch_size=2)
        assert sorted(map(len, counted.made)) == [1, 2, 2]
        assert len(results(here / "out")) == 5

    def test_offloaded_models_are_loaded_for_many_rows(self, counted, here, monkeypatch):
        options = dataclasses.replace(counted.options, offload="model")
        monkeypatch.setattr(counted, "options", options)
        run_batch(counted, read_manifest(manifest(here, simple(5)), DEFAULTS), here / "out")
        assert list(map(len, counted.made)) == [5]

    def test_unwritable_output(self, counted, here):
        rows = read_manifest(manifest(here, simple(1)), DEFAULTS)
        (here / "file").write_text("")
        with pytest.raises(UserError, match=r"cannot write to .*file/out: Not a directory"):
            run_batch(counted, rows, here / "file" / "out")
        assert counted.made == []

    def test_a_mistake_about_the_models_is_not_a_rows(self, counted, here, monkeypatch):
        def cannot(*args, **kwargs):
            raise UserError("cannot shard the parameters over mesh")

        monkeypatch.setattr(counted, "run", cannot)
        rows = read_manifest(manifest(here, simple(3)), DEFAULTS)
        with pytest.raises(UserError, match="cannot shard the parameters"):
            run_batch(counted, rows, here / "out")
        assert results(here / "out") == []

    def test_full_disk_ends_the_run(self, counted, here, monkeypatch):
        def full(image, path, info, mark):
            raise UserError(f"cannot write {path}: No space left on device")

        monkeypatch.setattr(module, "save_image", full)
        rows = read_manifest(manifest(here, simple(3)), DEFAULTS)
        with pytest.raises(UserError, match="No space left on device"):
            run_batch(counted, rows, here / "out")
        assert results(here / "out") == []  # not an error of any row


class TestRestart:
    @pytest.fixture
    def done(self, pipe, here):
        """A finished run of three rows, and one that failed."""
        rows = [*simple(3), {"id": "bad", "text": TEXT, "image": "later.png"}]
        path = manifest(here, rows)
        run_batch(pipe, read_manifest(path, DEFAULTS), here / "out")
        return path

    def run(self, counted, path: Path, **options):
        counted.made.clear()
        out = path.parent / "out"
        return run_batch(counted, read_manifest(path, DEFAULTS), out, **options)

    def test_nothing_is_done_twice(self, done, counted):
        before = (done.parent / "out" / "results.jsonl").read_bytes()
        summary = self.run(counted, done)
        assert (summary.made, summary.kept, summary.failed) == (0, 3, 1)
        assert counted.made == []
        assert (done.parent / "out" / "results.jsonl").read_bytes() == before

    def test_ctrl_c_keeps_what_is_made_and_a_restart_makes_the_rest(
        self, here, counted, monkeypatch, capfd
    ):
        path = manifest(here, simple(3))
        made_before = counted.run

        def interrupted(*args, **kwargs):
            made = made_before(*args, **kwargs)
            if len(counted.made) == 2:
                os.kill(os.getpid(), signal.SIGINT)
                deadline = time.monotonic() + 60
                while "stopping" not in capfd.readouterr().err and time.monotonic() < deadline:
                    time.sleep(0.01)
            return made

        monkeypatch.setattr(counted, "run", interrupted)
        summary = self.run(counted, path)
        assert (summary.made, summary.stopped) == (2, True)
        assert [row["id"] for row in results(here / "out")] == ["r0", "r1"]
        monkeypatch.setattr(counted, "run", made_before)
        summary = self.run(counted, path)
        assert (summary.made, summary.kept, summary.stopped) == (1, 2, False)

    def test_failed_rows_are_tried_again_when_asked(self, done, counted):
        picture(5).save(done.parent / "later.png")
        assert self.run(counted, done).failed == 1
        summary = self.run(counted, done, retry_failed=True)
        assert (summary.made, summary.kept, summary.failed) == (1, 3, 0)
        assert self.run(counted, done).kept == 4

    def test_a_failed_row_may_fail_again(self, done, counted):
        summary = self.run(counted, done, retry_failed=True)
        assert (summary.made, summary.kept, summary.failed) == (0, 3, 1)

    def test_a_row_that_changed_is_made_again(self, done, counted):
        rows = simple(3)
        rows[1] |= {"text": "a dog"}
        manifest(done.parent, rows)
        before = pixels(done.parent / "out")
        summary = self.run(counted, done)
        assert (summary.made, summary.kept) == (1, 2)
        assert counted.made == [["a dog"]]
        after = pixels(done.parent / "out")
        assert [name for name in after if after[name] != before[name]] == ["r1.png"]

    def test_another_model_makes_everything_again(self, done, counted, monkeypatch):
        monkeypatch.setattr(counted, "identity", {**counted.identity, "lora": ["other:1"]})
        assert self.run(counted, done).made == 3

    def test_a_folder_that_moved_has_not_changed(self, done, counted, monkeypatch, tmp_path):
        moved = tmp_path / "elsewhere"
        moved.mkdir()
        for name in ("cat.png", "rows.jsonl"):
            shutil.copy(done.parent / name, moved / name)
        shutil.copytree(done.parent / "out", moved / "out")
        assert self.run(counted, moved / "rows.jsonl").kept == 3
        monkeypatch.chdir(moved)
        assert self.run(counted, Path("rows.jsonl")).kept == 3

    def test_an_image_that_was_lost_is_made_again(self, done, counted):
        before = pixels(done.parent / "out")
        (done.parent / "out" / "r2.png").unlink()
        assert self.run(counted, done).made == 1
        assert pixels(done.parent / "out") == before

    @pytest.mark.parametrize("cut", [1, 10, 60])
    def test_a_torn_last_line(self, done, counted, cut):
        # Killed while it wrote: the image is whole, its line is not.
        file = done.parent / "out" / "results.jsonl"
        lines = file.read_bytes().splitlines(keepends=True)
        ok = [line for line in lines if b'"ok"' in line]
        file.write_bytes(b"".join(ok)[:-cut])
        summary = self.run(counted, done)
        assert (summary.made, summary.kept, summary.failed) == (0, 3, 1)
        assert counted.made == []
        assert sorted(line["id"] for line in results(done.parent / "out")) == [
            "bad",
            "r0",
            "r1",
            "r2",
        ]

    def test_a_line_torn_inside_a_letter(self, done, counted):
        file = done.parent / "out" / "results.jsonl"
        with file.open("ab") as torn:
            torn.write('{"id": "r9", "error": "kein Bild für Kü'.encode()[:-1])
        assert self.run(counted, done).kept == 3
        assert len(results(done.parent / "out")) == 4

    def test_damaged_lines_are_as_if_not_there(self, done, counted):
        file = done.parent / "out" / "results.jsonl"
        first, *others = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"\0\0\0\n[1, 2]\n{}\n" + b"".join(others))
        summary = self.run(counted, done)
        assert (summary.made, summary.kept) == (0, 3)
        assert json.loads(file.read_bytes().splitlines()[-1])["id"] == json.loads(first)["id"]

    def test_a_half_written_image_is_made_again(self, done, counted):
        out = done.parent / "out"
        before = pixels(out)
        (out / "results.jsonl").unlink()
        whole = (out / "r0.png").read_bytes()
        (out / "r0.png").write_bytes(whole[: len(whole) // 2])
        summary = self.run(counted, done)
        assert (summary.made, summary.kept) == (1, 2)
        assert pixels(out) == before

    def test_partial_files_of_a_killed_run_are_removed(self, done, counted):
        out = done.parent / "out"
        for name in (".r0.png.123.part", ".r1.png.9.part", ".other.png.7.part", ".note"):
            (out / name).write_bytes(b"half")
        self.run(counted, done)
        hidden = sorted(path.name for path in out.iterdir() if path.name.startswith("."))
        assert hidden == [".note", ".other.png.7.part"]  # another shard may be writing that one

    def test_someone_elses_image_is_replaced(self, done, counted):
        picture(9).save(done.parent / "out" / "r0.png")
        (done.parent / "out" / "results.jsonl").unlink()
        assert self.run(counted, done).made == 1

    def test_a_second_writer_is_refused(self, done, counted):
        with (done.parent / "out" / "results.jsonl").open("a") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(UserError, match=r"another run is writing .*results\.jsonl; wait"):
                self.run(counted, done)
        assert self.run(counted, done).kept == 3

    def test_a_file_system_without_locks(self, done, counted, monkeypatch):
        def unsupported(*args):
            raise OSError(38, os.strerror(38))

        monkeypatch.setattr(fcntl, "flock", unsupported)
        assert self.run(counted, done).kept == 3


class TestShards:
    def test_the_union_is_the_manifest_for_any_number(self, pipe, here):
        path = manifest(here, simple(9))
        rows = read_manifest(path, DEFAULTS)
        run_batch(pipe, rows, here / "whole")
        expected = pixels(here / "whole")
        assert len(expected) == 9
        for count in (2, 7):
            out = here / f"of{count}"
            lines = []
            for shard in range(count):
                run_batch(pipe, rows, out, share=WorkerShare(shard, count))
                lines += results(out, f"results-{shard:05d}-of-{count:05d}.jsonl")
            assert sorted(line["id"] for line in lines) == [f"r{i}" for i in range(9)]
            assert pixels(out) == expected

    def test_what_shards_made_is_kept_by_a_run_without(self, counted, here):
        rows = read_manifest(manifest(here, simple(4)), DEFAULTS)
        for shard in range(2):
            run_batch(counted, rows, here / "out", share=WorkerShare(shard, 2))
        counted.made.clear()
        assert run_batch(counted, rows, here / "out").kept == 4
        assert counted.made == []


class TestFolder:
    def test_a_sheet_shows_every_image(self, pipe, here):
        rows = read_manifest(manifest(here, simple(5)), DEFAULTS)
        run_batch(pipe, rows, here / "out")
        with Image.open(here / "out" / "sheet.jpg") as sheet:
            assert sheet.size[0] > 3 * 192

    @pytest.mark.parametrize("image", ["written before", "written after"])
    def test_a_folder_that_vanishes_is_said_and_the_next_run_repairs_it(
        self, counted, here, monkeypatch, image
    ):
        rows, out = read_manifest(manifest(here, simple(4)), DEFAULTS), here / "out"
        gone, second = threading.Event(), threading.Event()

        def save(picture, path, parameters=None, mark=None):
            if path.name == "r1.png" and image == "written after":
                gone.wait(60)
            try:
                save_image(picture, path, parameters, mark)
            finally:
                if path.name == "r1.png":
                    second.set()

        def vanish(entry):
            if not gone.is_set():
                if image == "written before":
                    second.wait(60)
                shutil.rmtree(out)
                gone.set()

        monkeypatch.setattr("dsd_jax.infer.batch.save_image", save)

        with pytest.raises(UserError, match=r"results\.jsonl has vanished while images were made"):
            run_batch(counted, rows, out, batch_size=1, on_result=vanish)
        summary = run_batch(counted, rows, out, batch_size=1)
        assert summary.failed == 0
        assert summary.made + summary.kept == 4
        assert len(results(out)) == 4
