"""A judge whose process is killed; `benchmarks.kill.judge` does it at length."""

import importlib

import pytest

# mypy takes benchmarks/results/ for the module benchmarks.results, so it must not follow this.
module = importlib.import_module("benchmarks.kill.judge")


@pytest.mark.slow
def test_killed_and_restarted(tmp_path):
    rows = module.kill_and_restart(tmp_path, cases=4, kills=2)
    assert module.check(rows, kills=2) == []
    assert rows[1]["attempts without an answer"] > rows[0]["attempts without an answer"]
