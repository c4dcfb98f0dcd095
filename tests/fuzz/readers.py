"""The readers to fuzz: of every file and every answer that a stranger can provide."""

from tests.fuzz.of_tables import TABLES
from tests.fuzz.of_weights import WEIGHTS
from tests.fuzz.of_work import WORK

__all__ = ["READERS"]

READERS = {**TABLES, **WEIGHTS, **WORK}
