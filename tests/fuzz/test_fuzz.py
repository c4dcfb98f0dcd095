"""A damaged file is refused with a message or read, and never more than that."""

import pytest

from tests.fuzz.mutate import mutated
from tests.fuzz.readers import READERS
from tests.fuzz.run import fuzz

MUTATIONS = 100


@pytest.mark.parametrize("name", READERS)
def test_a_reader_refuses_or_reads_damaged_files(name: str):
    count = max(3, round(MUTATIONS * READERS[name].share))
    done = fuzz(name, count)
    assert done.failures == ()
    assert done.read + done.refused == count


def test_damage_depends_on_its_number_alone():
    data = bytes(range(256)) * 4
    assert mutated(data, 3) == mutated(data, 3)
    assert len({mutated(data, seed) for seed in range(50)}) > 45
