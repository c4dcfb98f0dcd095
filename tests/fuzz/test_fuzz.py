"""A damaged file is refused with a message or read, and never more than that."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fuzz.digest import digest
from tests.fuzz.mutate import mutated
from tests.fuzz.readers import READERS

MUTATIONS = 15  # an hour of `make fuzz` makes some hundred thousand


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    """Outcomes of the mutations of each reader, from a process of its own, which forks."""
    command = [sys.executable, "-m", "tests.fuzz.run", "--mutations", str(MUTATIONS), "--json"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row.pop("reader"): row for row in rows}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_refuses_or_reads_damaged_files(name: str, outcomes: dict[str, dict[str, Any]]):
    found = outcomes[name]
    assert found["failures"] == []
    count = found["refused"] + found["equal"] + found["unseen"]
    assert count == max(3, round(MUTATIONS * READERS[name].share))


def test_damage_depends_on_its_number_alone():
    data = bytes(range(256)) * 4
    assert mutated(data, 3) == mutated(data, 3)
    assert len({mutated(data, seed) for seed in range(50)}) > 45


def test_results_are_compared_by_their_content():
    array = np.arange(6.0).reshape(2, 3)
    assert digest({"a": [1, b"x"], "b": array}) == digest({"b": array.copy(), "a": (1, b"x")})
    for other in (
        {"a": [1, b"x"]},
        {"a": [1, b"x"], "b": array.T},
        {"a": [True, b"x"], "b": array},
    ):
        assert digest(other) != digest({"a": [1, b"x"], "b": array})
