from collections.abc import Iterator
from pathlib import Path

import pytest
from etils import epath

from dsd_jax import files
from dsd_jax.errors import UserError
from dsd_jax.files import (
    begin_folder,
    explained,
    partial_of,
    remove_tree,
    replacing,
    write_file,
)


def test_a_file_is_replaced_as_a_whole(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "a.txt"
    write_file(path, "first é")
    write_file(path, b"second")
    assert path.read_bytes() == b"second"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_failed_block_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path):
    path = tmp_path / "a.txt"
    write_file(path, "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:  # noqa: PT012
        partial.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_two_writers_of_one_path_do_not_disturb_each_other(tmp_path: Path):
    path = tmp_path / "a.txt"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # which is the last to finish
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_refusal_of_the_operating_system_is_a_message(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"^cannot write .*file/below: File exists; make room or choose"
    ):
        write_file(tmp_path / "file" / "below", "x")


def test_a_full_disk_says_what_to_do():
    with (
        pytest.raises(UserError, match="No space left on device; make room or choose another"),
        explained("x"),
    ):
        Path("/dev/full").write_text("x")


def test_a_folder_goes_for_good_though_a_thread_still_writes_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, late = tmp_path / "folder", ["b", "c"]

    def go_on(_seconds: float) -> None:
        if late:
            write_file(folder / late.pop(), "")

    monkeypatch.setattr(files.time, "sleep", go_on)
    write_file(folder / "a", "")
    remove_tree(epath.Path(folder))
    assert (late, folder.exists()) == ([], False)


class TestBeginFolder:
    def test_a_worker_that_writes_the_mark_at_this_moment_is_no_other_job(self, tmp_path: Path):
        partial_of(tmp_path / "job.json", shared=True).write_text("half")
        begin_folder(tmp_path, "job.json", "mine", "is another's")
        assert (tmp_path / "job.json").read_text() == "mine"

    def test_a_worker_that_begins_while_the_folder_is_listed_is_no_other_job(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        def listed(folder: Path) -> Iterator[Path]:
            (folder / "job.json").write_text("mine")
            return iter([folder / "maps"])

        monkeypatch.setattr(Path, "iterdir", listed)
        begin_folder(tmp_path, "job.json", "mine", "is another's")
        with pytest.raises(UserError, match="is another's"):
            begin_folder(tmp_path, "job.json", "yours", "is another's")

    def test_a_folder_with_files_of_others_is_refused(self, tmp_path: Path):
        (tmp_path / "letter.txt").touch()
        with pytest.raises(UserError, match="holds other files; choose a new folder"):
            begin_folder(tmp_path, "job.json", "mine", "is another's")
