"""The folder of a run: held once, also across machines; what a dead owner leaves is explained."""

import dataclasses
import fcntl
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dsd_jax.errors import UserError
from dsd_jax.train import ownership
from dsd_jax.train.ownership import OWNER, Owner, owned

# A process that is stopped shows whether it lives; one on another host shows it by renewing.
ELSEWHERE = Owner("token", "node7", "another boot", 17, "99", "2026-01-01 10:00:00")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "RENEWED_EVERY", 0.05)
    monkeypatch.setattr(ownership, "WAIT", 0.5)
    monkeypatch.setattr(ownership, "SETTLED", 0.2)


def comes_true(condition: Callable[[], bool]) -> bool:
    """Waits for a condition, long enough for a machine that does much else."""
    deadline = time.monotonic() + 600
    while not (true := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return true


def beat(folder: Path) -> int:
    found: int = json.loads((folder / OWNER).read_text())["beat"]
    return found


def write(folder: Path, owner: Owner) -> None:
    (folder / OWNER).write_text(json.dumps(dataclasses.asdict(owner)))


def test_a_second_run_is_refused_and_the_folder_is_free_afterwards(tmp_path: Path) -> None:
    with owned(tmp_path):
        with pytest.raises(UserError) as error, owned(tmp_path):
            pass
        assert f"another `dsd train` is running in {tmp_path} (process {os.getpid()} on" in str(
            error.value
        )
        assert "wait for it, stop it, or choose another output_dir" in str(error.value)
        first = beat(tmp_path)
        assert comes_true(lambda: beat(tmp_path) > first)
    assert not (tmp_path / OWNER).exists()
    with owned(tmp_path):
        pass


def test_a_run_that_leaves_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with owned(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    with owned(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()  # it was there before
    with owned(tmp_path / "run"):
        (tmp_path / "run" / "kept").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["kept"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(UserError, match=r"cannot write .*owner.json: "), owned(folder):
            pass


def test_a_dead_owner_on_this_machine_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    number = process.pid
    process.join()
    assert number is not None
    here = Owner.this()
    write(tmp_path, dataclasses.replace(here, process=number, token="dead"))
    with owned(tmp_path):
        assert json.loads((tmp_path / OWNER).read_text())["process"] == os.getpid()
    said = capsys.readouterr().err
    assert "waiting" not in said  # there is nothing to wait for
    assert f"ended without a word (process {number} on {here.host}, since" in said
    assert "taking over its folder" in said


def test_a_number_that_was_given_again_is_no_owner(tmp_path: Path) -> None:
    write(tmp_path, dataclasses.replace(Owner.this(), started="1"))
    before = (tmp_path / OWNER).read_text()
    with owned(tmp_path):
        assert (tmp_path / OWNER).read_text() != before


def test_a_dead_owner_on_another_machine_shows_no_sign_of_life(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, ELSEWHERE)
    with owned(tmp_path):
        pass
    said = capsys.readouterr().err
    assert "belongs to a run (process 17 on node7, since 2026-01-01 10:00:00); waiting" in said
    assert "taking over its folder" in said


def test_an_owner_on_another_machine_that_renews_is_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "WAIT", 60)
    write(tmp_path, ELSEWHERE)
    lives = multiprocessing.get_context("spawn").Process(target=_renew, args=(tmp_path,))
    lives.start()
    try:
        assert comes_true(lambda: beat(tmp_path) > 0)
        with pytest.raises(UserError, match=r"is running in .* on node7"), owned(tmp_path):
            pass
    finally:
        lives.kill()
        lives.join()


def _renew(folder: Path) -> None:
    owner = ELSEWHERE
    while True:
        owner = dataclasses.replace(owner, beat=owner.beat + 1)
        partial = folder / "new"
        partial.write_text(json.dumps(dataclasses.asdict(owner)))
        partial.replace(folder / OWNER)
        time.sleep(0.05)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, '{"token": [1]}', '{"beat": 1e999}', "\0", "\ud83d"]
)
def test_a_damaged_file_is_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / OWNER).write_bytes(text.encode(errors="surrogatepass"))
    with owned(tmp_path):
        assert json.loads((tmp_path / OWNER).read_text())["process"] == os.getpid()


def test_a_container_on_the_same_machine_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its processes cannot be seen from here, even if it bears the name of the machine."""
    here = Owner.this()
    assert "pid:[" in here.boot
    write(tmp_path, dataclasses.replace(here, boot=here.boot.partition(" ")[0] + " pid:[1]"))
    with owned(tmp_path):
        pass
    assert "s to see if it is alive" in capsys.readouterr().err


def starts(folder: Path, count: int, said: list[str]) -> None:
    """Says how many starts at once end; who may have the folder holds it until all have asked."""
    together = threading.Barrier(count)

    def start() -> None:
        together.wait()
        try:
            with owned(folder):
                assert comes_true(lambda: len(said) == count - 1)
            said.append("trained")
        except UserError as error:
            said.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("locks", [True, False])
def test_of_starts_at_once_one_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, locks: bool
) -> None:
    """Also where a dead owner is taken over, and where the file system has no locks."""
    said: list[str] = []
    settling: list[float] = []
    if not locks:
        sleep = time.sleep

        def refuse(*_: object) -> None:
            raise OSError("no locks here")

        def settle(seconds: float) -> None:
            """Time enough is until every start has written its name or was refused."""
            if seconds != ownership.SETTLED:
                sleep(seconds)
                return
            settling.append(seconds)
            assert comes_true(lambda: len(settling) + len(said) >= 4)

        monkeypatch.setattr(fcntl, "flock", refuse)
        monkeypatch.setattr(time, "sleep", settle)
    write(tmp_path, dataclasses.replace(Owner.this(), started="1"))
    starts(tmp_path, 4, said)
    assert locks or settling
    assert said.count("trained") == 1
    refused = [each for each in said if each.startswith("another `dsd train` ")]
    assert len(refused) == 3


def trained_while(folder: Path, change: Callable[[], object], *, noticed: bool = True) -> None:
    """A run whose folder is changed; before its end it looks whether the folder is still its own"""
    with owned(folder) as check:
        check()
        change()
        if noticed:
            for _ in range(6000):
                check()
                time.sleep(0.01)
            pytest.fail("nobody would find what is written now")


def test_a_run_that_was_taken_over_ends(tmp_path: Path) -> None:
    """It was suspended, and the other one took it for dead."""
    with pytest.raises(UserError, match=r"taken over .* no sign of life .*; let that"):
        trained_while(tmp_path, lambda: write(tmp_path, ELSEWHERE))
    assert json.loads((tmp_path / OWNER).read_text())["host"] == "node7"


@pytest.mark.parametrize("how", ["removed", "moved", "another", "at the end"])
def test_a_folder_that_vanishes_ends_the_run(tmp_path: Path, how: str) -> None:
    root = tmp_path / "run"
    (tmp_path / "empty").mkdir()

    def change() -> None:
        if how in {"removed", "at the end"}:
            shutil.rmtree(root)
        else:
            root.rename(tmp_path / "elsewhere")
        if how == "another":
            root.symlink_to(tmp_path / "empty")

    with pytest.raises(UserError, match=r"owner.json has vanished .*; run the same command again"):
        trained_while(root, change, noticed=how != "at the end")


def test_an_error_in_the_run_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), owned(tmp_path):
        _ = 1 / 0
    assert not (tmp_path / OWNER).exists()
