"""A batch run whose process is killed; `benchmarks.kill.batch` does it at length."""

import importlib

import pytest

# mypy takes benchmarks/results/ for the module benchmarks.results, so it must not follow this.
module = importlib.import_module("benchmarks.kill.batch")


@pytest.mark.slow
def test_killed_and_restarted(tmp_path):
    assert module.kill_and_restart(tmp_path, rows=8, kills=2) == {
        "kills": 2,
        "rows": 8,
        "images": 8,
        "missing": 0,
        "lines": 8,
        "twice": 0,
        "errors": 1,
        "left over": 0,
        "identical": 8,
    }
