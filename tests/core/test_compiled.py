"""The cache of compiled programs: where it is, and what the next process saves by it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import jax, sys
from dsd_jax.compiled import keep_compiled
from dsd_jax.errors import UserError
try:
    print(keep_compiled(*sys.argv[1:]))
except UserError as error:
    print(error)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((8, 8))).sum())
"""


@pytest.fixture
def run(tmp_path: Path):
    def run(*words: str, **variables: str) -> list[str]:
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), **variables}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *words],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.splitlines()

    return run


def test_programs_are_kept_in_the_users_cache(run, tmp_path):
    said, total = run()
    (folder,) = (tmp_path / "dsd-jax").iterdir()
    assert said == f"compiled programs are kept in {folder} (0 MB)"
    kept = sorted(path.name for path in folder.glob("*-cache"))
    assert any("lambda" in name for name in kept)
    assert run()[1] == total
    assert sorted(path.name for path in folder.glob("*-cache")) == kept


def test_off_and_places_of_ones_own(run, tmp_path):
    assert run("off")[0] == "None"
    assert not (tmp_path / "dsd-jax").exists()
    own = tmp_path / "own"
    assert run(str(own))[0].startswith(f"compiled programs are kept in {own} ")
    theirs = tmp_path / "theirs"
    assert run(JAX_COMPILATION_CACHE_DIR=str(theirs))[0] == "None"
    assert list(theirs.glob("*-cache"))


def test_a_place_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("")
    (said, _) = run(str(tmp_path / "file" / "x"))
    assert said.startswith(f"cannot keep compiled programs in {tmp_path}/file/x: ")
    assert said.endswith("; give another --compilation_cache, or off")
    assert run(XDG_CACHE_HOME=str(tmp_path / "file"))[0] == "None"
