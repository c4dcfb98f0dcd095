"""What is fuzzed: every reader of a file, or of an answer, that a stranger can hand over."""

from tests.fuzz.of_tables import TABLES
from tests.fuzz.of_weights import WEIGHTS
from tests.fuzz.of_work import WORK

__all__ = ["READERS"]

READERS = {**TABLES, **WEIGHTS, **WORK}
