"""A folder from elsewhere gives its own regular files, and nothing else of the machine."""

import os
from pathlib import Path

import pytest

from dsd_jax.errors import UserError
from dsd_jax.inside import OutsideError, open_inside, read_inside


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("mine")
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a").write_text("shared")
    return folder


def read(folder: Path, path: str | Path) -> bytes:
    return read_inside(folder, path, 100)


def test_files_inside_are_read_by_any_name(folder: Path, tmp_path: Path):
    (folder / "link").symlink_to("sub/a")
    (tmp_path / "data-link").symlink_to(folder)
    for root in (folder, tmp_path / "data-link"):
        for path in ("sub/a", "sub/../sub/a", "link", folder / "sub" / "a", root / "sub" / "a"):
            assert read(root, path) == b"shared"


def test_paths_and_links_that_lead_out_are_refused(folder: Path, tmp_path: Path):
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to("..")
    for path in ("../secret", tmp_path / "secret", "link", "up/secret", "/dev/zero", "\0../secret"):
        with pytest.raises(OutsideError, match="is outside of the folder"):
            read(folder, path)


def test_what_is_no_file_is_refused_at_once(folder: Path):
    os.mkfifo(folder / "pipe")
    # Reading the pipe would wait for ever.
    with pytest.raises(UserError, match="cannot read pipe: it is not a regular file"):
        read(folder, "pipe")
    with pytest.raises(UserError, match="cannot read sub: it is not a regular file"):
        read(folder, "sub")
    with pytest.raises(FileNotFoundError):
        read(folder, "gone")


def test_a_file_above_the_limit_is_refused_unread(folder: Path):
    with (folder / "large").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="large has more than 100 bytes"):
        read(folder, "large")


def test_a_snapshot_of_the_hub_cache_is_its_own_folder(tmp_path: Path):
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "c0ffee"
    (snapshot / "vae").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "1").write_text("weights")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    (snapshot / "vae" / "model").symlink_to("../../../blobs/1")
    (snapshot / "ref").symlink_to("../../refs/main")
    assert read(snapshot, "vae/model") == b"weights"
    assert read(snapshot / "vae", "model") == b"weights"
    with pytest.raises(OutsideError), open_inside(snapshot, "ref"):
        pass
    (repository / "blobs").rename(tmp_path / "elsewhere")
    (repository / "blobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutsideError):
        read(snapshot, "vae/model")
