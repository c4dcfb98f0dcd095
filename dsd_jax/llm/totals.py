"""Sums over ledgers; a ledger may be read while another process writes it."""

import contextlib
import dataclasses
import sqlite3
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from dsd_jax.errors import UserError
from dsd_jax.llm.prices import usd

__all__ = [
    "Asked",
    "Spent",
    "Totals",
    "answered_by",
    "by_item",
    "first_answer",
    "read_totals",
    "spent_of",
    "totals_of",
]

Asked = tuple[str, str, int]
"""Stage, item and sample of a question."""


@dataclasses.dataclass(frozen=True)
class Spent:
    """Calls that were or may have been charged, with their tokens and dollars.

    Questions under way and lost ones count with the most that they can take.
    """

    calls: int = 0
    tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.calls + other.calls, self.tokens + other.tokens, self.cost + other.cost)

    def __str__(self) -> str:
        return f"{self.calls:,} calls, {self.tokens:,} tokens, {usd(self.cost or None)}"


@dataclasses.dataclass(frozen=True)
class Totals:
    """Sums over one ledger or several.

    Attributes:
        questions: Different questions.
        attempts: Questions that were about to be sent, repetitions included.
        answered: Attempts with an answer; they were charged.
        unreadable: Attempts whose answer cannot be read; they were charged.
        maybe_charged: Attempts from which nothing came back.
        failed: Attempts that ended in an error and cost nothing.
        open: Attempts under way, in a batch or in a file.
        refused: Questions that cannot be answered.
        input: Tokens of the questions.
        cached: Tokens of the questions that the provider had cached.
        output: Tokens of the answers.
        cost: Dollars for the answers with a price.
        unpriced: Answers without a price.
        models: Number of answers by answering model.
        finishes: Number of answers by the reason of their end.
    """

    questions: int = 0
    attempts: int = 0
    answered: int = 0
    unreadable: int = 0
    maybe_charged: int = 0
    failed: int = 0
    open: int = 0
    refused: int = 0
    input: int = 0
    cached: int = 0
    output: int = 0
    cost: float = 0.0
    unpriced: int = 0
    models: Mapping[str, int] = dataclasses.field(default_factory=dict)
    finishes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __add__(self, other: "Totals") -> "Totals":
        sums: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            a, b = getattr(self, field.name), getattr(other, field.name)
            sums[field.name] = dict(Counter(a) + Counter(b)) if isinstance(a, Mapping) else a + b
        return Totals(**sums)


def read_totals(path: Path) -> Totals:
    """The totals of a ledger that may be in use.

    Raises:
        UserError: There is none, or it is not a ledger.
    """
    with contextlib.closing(_reader(path)) as db:
        try:
            return totals_of(db)
        except sqlite3.Error as error:
            raise UserError(f"cannot read the ledger {path}: {error}") from None


def totals_of(db: sqlite3.Connection) -> Totals:
    """The totals of an open ledger."""
    outcomes = Counter(dict(db.execute("SELECT outcome, COUNT(*) FROM intents GROUP BY outcome")))
    sums = db.execute(
        "SELECT TOTAL(input), TOTAL(cached), TOTAL(output), TOTAL(cost), "
        "COUNT(*) - COUNT(cost) FROM answers"
    ).fetchone()
    return Totals(
        questions=db.execute("SELECT COUNT(DISTINCT key) FROM intents").fetchone()[0],
        attempts=outcomes.total(),
        answered=outcomes["answered"],
        unreadable=outcomes["unreadable"],
        maybe_charged=outcomes["lost"],
        failed=outcomes["failed"],
        open=outcomes[None],
        refused=db.execute("SELECT COUNT(*) FROM refusals").fetchone()[0],
        input=int(sums[0]),
        cached=int(sums[1]),
        output=int(sums[2]),
        cost=sums[3],
        unpriced=sums[4],
        models=_counts(db, "model"),
        finishes=_counts(db, "finish"),
    )


def by_item(path: Path) -> dict[str, tuple[int, float]]:
    """Number of answers and their dollars by the item that was asked about.

    Raises:
        UserError: There is no ledger, or it is not one.
    """
    with contextlib.closing(_reader(path)) as db:
        try:
            rows = db.execute(
                "SELECT intents.item, COUNT(*), TOTAL(answers.cost) FROM answers JOIN intents "
                "ON answers.intent = intents.id GROUP BY intents.item"
            )
            return {item: (count, cost) for item, count, cost in rows}
        except sqlite3.Error as error:
            raise UserError(f"cannot read the ledger {path}: {error}") from None


def _counts(db: sqlite3.Connection, column: Literal["model", "finish"]) -> dict[str, int]:
    return dict(
        db.execute(
            f"SELECT {column}, COUNT(*) FROM answers WHERE {column} IS NOT NULL "  # noqa: S608
            f"GROUP BY {column} ORDER BY {column}"
        )
    )


def spent_of(path: Path) -> Spent:
    """The spending in a ledger that may be in use; nothing without a ledger."""
    try:
        with contextlib.closing(_reader(path)) as db:
            return Spent(*db.execute("SELECT calls, tokens, cost FROM spent").fetchone())
    except (sqlite3.Error, TypeError, UserError):  # another process may be just creating it
        return Spent()


def first_answer(path: Path) -> str | None:
    """The first answer in a ledger, as the provider sent it; None if there is none."""
    try:
        with contextlib.closing(_reader(path)) as db:
            found = db.execute("SELECT raw FROM answers ORDER BY intent LIMIT 1").fetchone()
    except (sqlite3.Error, UserError):
        return None
    return str(found[0]) if found else None


def answered_by(path: Path, models: Collection[str]) -> dict[Asked, set[str]]:
    """The keys of the questions that one of these models has answered; none without a ledger."""
    try:
        with contextlib.closing(_reader(path)) as db:
            rows = db.execute(
                "SELECT stage, item, sample, intents.key, answers.model FROM intents JOIN answers "
                "ON answers.intent = intents.id"
            ).fetchall()
    except (sqlite3.Error, UserError):
        return {}
    found: dict[Asked, set[str]] = {}
    for stage, item, sample, key, model in rows:
        if model in models:
            found.setdefault((stage, item, sample), set()).add(key)
    return found


def _reader(path: Path) -> sqlite3.Connection:
    if not path.exists():
        raise UserError(f"there is no ledger {path}")
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
