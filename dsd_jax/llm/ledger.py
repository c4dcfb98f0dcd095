"""The ledger of paid questions: it stores attempts before sending, and answers before reading.

One SQLite file per stage and part, with one writer. The order is: intent, sending, raw answer,
reading. An intent that a stopped process left without an answer may have been charged: it counts as
charged, and its question is asked once more.

Writes are committed with a full sync (`synchronous=FULL` in WAL mode), since an answer that a power
cut deletes would be paid for again. All writes of a millisecond share a commit, and more of them
gather while a slow disk is busy, so a slow disk makes larger commits but does not slow the
questions. (A thread for the commits was slower, because it and the event loop wait for the
interpreter's lock.) Each write has a savepoint of its own, so that a failed write does not undo the
others.
"""

import asyncio
import contextlib
import dataclasses
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from dsd_jax.errors import UserError
from dsd_jax.llm.ledger_file import open_ledger
from dsd_jax.llm.messages import Answer, Request
from dsd_jax.llm.totals import Spent, Totals, spent_of, totals_of
from dsd_jax.llm.transport import Raw

__all__ = ["Batch", "Caps", "Kept", "Ledger", "Outcome", "Question"]

R = TypeVar("R")
Outcome = Literal["answered", "unreadable", "lost", "failed"]
"""End of an attempt.

`answered` and `unreadable` (a body that is not in the provider's form) were charged, `lost`
(nothing came back) may have been, `failed` (the server said no) was not.
"""
Question = tuple[str, Request, int, float]
"""Key, request, and the most tokens and dollars that the answer can take."""

_TOGETHER_S = 0.001  # writes this close share a commit: an answer, and the intent that follows it
_SIBLINGS_S = 1.0  # largest age of the sums over the stage's other ledgers


@dataclasses.dataclass(frozen=True)
class Batch:
    """Questions that went out together.

    Attributes:
        number: Its number in the ledger.
        tag: The name under which it was handed over, by which the provider can find it.
        remote: The provider's name of it. None if it is not known whether it arrived.
        begun_at: Time at which its intents were written, in seconds of the epoch.
    """

    number: int
    tag: str
    remote: str | None
    begun_at: float


@dataclasses.dataclass(frozen=True)
class Kept:
    """An answer in the ledger.

    Attributes:
        attempt: Number of the attempt that it answers.
        raw: The answer as it came.
        noted: Whether the ledger holds what was read from it: model, end, tokens and cost.
    """

    attempt: int
    raw: Raw
    noted: bool


@dataclasses.dataclass(frozen=True)
class Caps:
    """The most that a stage may spend. None sets no limit."""

    calls: int | None = None
    tokens: int | None = None
    cost: float | None = None

    @property
    def any(self) -> bool:
        return any(each is not None for each in dataclasses.astuple(self))


class Ledger:
    """One ledger, open for writing. Used from one thread.

    Attributes:
        path: The file, or None for a ledger in memory.
        caps: The most that the stage may spend.
        lost: Open intents of a stopped process, found at opening; they may have been charged.
    """

    def __init__(self, path: Path | None, caps: Caps = Caps(), others: Sequence[Path] = ()) -> None:
        """Opens a ledger, or makes it.

        Args:
            path: The file. None keeps it in memory.
            caps: The most that the stage may spend.
            others: Ledgers in other folders that share the caps. Those of the stage in the same
                folder do so anyway.

        Raises:
            UserError: Another process has it open, or it is not a ledger.
        """
        self.path, self.caps = path, caps
        self._sharing = frozenset(others)
        self._waiting: list[tuple[Callable[[], Any], asyncio.Future[Any]]] = []
        self._others, self._others_at = Spent(), float("-inf")
        self._db, self._lock = open_ledger(path)
        self._file = None if path is None else path.stat()
        with self._transaction():
            self.lost = self._db.execute(
                "UPDATE intents SET outcome = 'lost', detail = 'the process was stopped' "
                "WHERE outcome IS NULL AND batch IS NULL"
            ).rowcount

    def close(self) -> None:
        """Writes what is waiting, merges the log into the file, and closes it."""
        self._commit()
        with contextlib.suppress(sqlite3.Error):  # a reader may hold the log: it stays beside
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()
        if self._lock is not None:
            self._lock.close()

    # Reading

    def answers(self, key: str) -> list[Kept]:
        """Answers to a question, the last first."""
        rows = self._db.execute(
            "SELECT intent, raw, request_id, finish IS NOT NULL FROM answers WHERE key = ? "
            "ORDER BY intent DESC",
            (key,),
        )
        return [
            Kept(attempt, Raw(_body(stored), request_id), bool(noted))
            for attempt, stored, request_id, noted in rows
        ]

    def refusal(self, key: str) -> str | None:
        """The reason why a question cannot be answered, or None if none is known."""
        row = self._db.execute("SELECT reason FROM refusals WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def answered_by(self, model: str) -> bool:
        """Whether a model has answered any question readably."""
        row = self._db.execute(
            "SELECT 1 FROM answers JOIN intents ON answers.intent = intents.id "
            "WHERE answers.finish IS NOT NULL AND intents.model = ? LIMIT 1",
            (model,),
        ).fetchone()
        return row is not None

    def keys_of(self, batch: Batch) -> list[str]:
        """Keys of the questions of a batch that wait for their answers."""
        rows = self._db.execute(
            "SELECT key FROM intents WHERE batch = ? AND outcome IS NULL", (batch.number,)
        )
        return [key for (key,) in rows]

    def totals(self) -> Totals:
        """Sums over the ledger."""
        return totals_of(self._db)

    # Writing

    async def intend(self, questions: Sequence[Question], model: str) -> list[int]:
        """Stores that questions are about to be sent, if the caps allow them all.

        Returns:
            The numbers of the attempts.

        Raises:
            UserError: A cap would be passed; nothing is written, nothing may be sent.
        """
        return await self.write(lambda: self._intend(questions, model, None))

    async def received(self, attempt: int, raw: Raw) -> None:
        """Keeps an answer as it came, before anything reads it."""
        await self.write(lambda: self._received(attempt, raw))

    def noted(self, attempt: int, answer: Answer | None) -> None:
        """Stores what was read from an answer, with the next commit; None if it is unreadable.

        The budget then counts the tokens that it took, if they are known, in place of the most that
        it could take.
        """
        self._soon(lambda: self._noted(attempt, answer))

    async def ended(self, attempt: int, outcome: Outcome, detail: str) -> None:
        """Stores that an attempt ended without an answer, and why."""
        await self.write(lambda: self._ended(attempt, outcome, detail))

    async def refused(self, key: str, reason: str) -> None:
        """Stores that a question cannot be answered, by any later attempt either."""
        row = (key, _text(reason))
        await self.write(
            lambda: self._db.execute("INSERT OR REPLACE INTO refusals VALUES (?, ?)", row)
        )

    def parsed(self, key: str, result: str) -> None:
        """Stores what a stage made of the answer to a question, with the next commit."""
        self._soon(
            lambda: self._db.execute(
                "INSERT INTO parses VALUES (?, ?) ON CONFLICT DO UPDATE SET result = "
                "excluded.result WHERE result != excluded.result",
                (key, _text(result)),
            )
        )

    def open_batches(self) -> list[Batch]:
        """Batches that have not ended as far as the ledger knows."""
        rows = self._db.execute(
            "SELECT id, tag, remote, begun_at FROM batches WHERE NOT done ORDER BY id"
        )
        return [Batch(*row) for row in rows]

    async def begin_batch(self, tag: str, questions: Sequence[Question], model: str) -> Batch:
        """As `intend`, for questions that go out together."""
        now = time.time()

        def change() -> Batch:
            self._check_caps(_most(questions))
            number = _row_id(
                self._db.execute(
                    "INSERT INTO batches (tag, model, count, begun_at) VALUES (?, ?, ?, ?)",
                    (tag, model, len(questions), now),
                )
            )
            self._intend(questions, model, number)
            return Batch(number, tag, None, now)

        return await self.write(change)

    async def handed_over(self, batch: Batch, remote: str) -> Batch:
        """Stores the provider's name of a batch."""
        await self.write(
            lambda: self._db.execute(
                "UPDATE batches SET remote = ? WHERE id = ?", (_text(remote), batch.number)
            )
        )
        return dataclasses.replace(batch, remote=remote)

    async def end_batch(
        self, batch: Batch, results: Mapping[str, Raw | str], missing: str
    ) -> dict[str, int]:
        """Stores the outcomes of a batch: answers as they came, or reasons why there is none.

        Args:
            batch: The batch, which has ended.
            results: Outcomes by key.
            missing: The reason for questions without an outcome.

        Returns:
            The number of the attempt of each question of the batch, by key.
        """

        def change() -> dict[str, int]:
            attempts = self._db.execute(
                "SELECT key, id FROM intents WHERE batch = ? AND outcome IS NULL", (batch.number,)
            ).fetchall()
            for key, attempt in attempts:
                result = results.get(key, missing)
                if isinstance(result, str):
                    self._ended(attempt, "failed", result)
                else:
                    self._received(attempt, result)
            self._db.execute(
                "UPDATE batches SET done = 1, detail = ? WHERE id = ?",
                (_text(missing), batch.number),
            )
            return dict(attempts)

        return await self.write(change)

    async def write(self, change: Callable[[], R]) -> R:
        """Runs a change within the next commit and waits for it."""
        return await self._soon(change)

    def _soon(self, change: Callable[[], R]) -> asyncio.Future[R]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._waiting.append((change, future))
        if len(self._waiting) == 1:
            loop.call_later(_TOGETHER_S, self._commit)
        return future

    def _commit(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        results: list[tuple[asyncio.Future[Any], Any, Exception | None]] = []
        try:
            self._check_there()
            with self._transaction():
                for change, future in waiting:
                    try:
                        with self._savepoint():
                            made = change()
                        results.append((future, made, None))
                    except Exception as error:  # noqa: BLE001 - raised again in whoever waits
                        results.append((future, None, error))
        except (sqlite3.Error, UserError) as error:
            results = [(future, None, error) for _, future in waiting]
        for future, result, problem in results:
            if future.cancelled():
                continue
            if problem is None:
                future.set_result(result)
            elif isinstance(problem, sqlite3.Error):
                words = f"cannot write the ledger {self.path}: {problem}"
                future.set_exception(UserError(words))
            else:
                future.set_exception(problem)
            future.exception()  # what nobody waits for fails again in what is waited for

    def _check_there(self) -> None:
        """Refuses to go on with a file that nobody would find; SQLite would.

        Raises:
            UserError: The ledger was removed, moved or replaced.
        """
        if self.path is None or self._file is None:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(self.path.stat(), self._file):
                return
        raise UserError(
            f"the ledger {self.path} has vanished while questions were asked: it was removed, "
            "moved or replaced; run the same command again, where the ledger is"
        )

    @contextlib.contextmanager
    def _savepoint(self) -> Iterator[None]:
        self._db.execute("SAVEPOINT one")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK TO one")
            raise
        finally:
            self._db.execute("RELEASE one")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _intend(
        self,
        questions: Sequence[Question],
        model: str,
        batch: int | None,
    ) -> list[int]:
        wanted = _most(questions)
        self._check_caps(wanted)
        self._spend(wanted.calls, wanted.tokens, wanted.cost)
        now = time.time()
        return [
            _row_id(
                self._db.execute(
                    "INSERT INTO intents (key, stage, item, wording, sample, model, batch, tokens, "
                    "cost, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        key,
                        *map(_text, (request.stage, request.item, request.wording)),
                        request.sample,
                        model,
                        batch,
                        tokens,
                        cost,
                        now,
                    ),
                )
            )
            for key, request, tokens, cost in questions
        ]

    def _received(self, attempt: int, raw: Raw) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO answers (intent, key, raw, request_id, at) "
            "SELECT id, key, ?, ?, ? FROM intents WHERE id = ?",
            (_stored(raw.body), _text(raw.request_id), time.time(), attempt),
        )
        self._db.execute("UPDATE intents SET outcome = 'answered' WHERE id = ?", (attempt,))

    def _noted(self, attempt: int, answer: Answer | None) -> None:
        if answer is None:
            self._db.execute("UPDATE intents SET outcome = 'unreadable' WHERE id = ?", (attempt,))
            return
        tokens, cost, before = self._db.execute(
            "SELECT intents.tokens, intents.cost, answers.finish FROM intents JOIN answers "
            "ON intents.id = answers.intent WHERE intents.id = ?",
            (attempt,),
        ).fetchone()
        if before is not None:
            return
        usage = answer.usage
        told = (usage.input, usage.cached, usage.output) if usage else (None, None, None)
        self._db.execute(
            "UPDATE answers SET model = ?, finish = ?, input = ?, cached = ?, output = ?, cost = ? "
            "WHERE intent = ?",
            (_text(answer.model), answer.finish, *told, answer.cost, attempt),
        )
        self._db.execute("UPDATE intents SET outcome = 'answered' WHERE id = ?", (attempt,))
        used = tokens if usage is None else usage.input + usage.output
        self._spend(0, used - tokens, 0.0 if answer.cost is None else answer.cost - cost)

    def _ended(self, attempt: int, outcome: Outcome, detail: str) -> None:
        tokens, cost, before = self._db.execute(
            "SELECT tokens, cost, outcome FROM intents WHERE id = ?", (attempt,)
        ).fetchone()
        self._db.execute(
            "UPDATE intents SET outcome = ?, detail = ? WHERE id = ?",
            (outcome, _text(detail), attempt),
        )
        if before is None and outcome != "lost":
            self._spend(-1, -tokens, -cost)

    def _spend(self, calls: int, tokens: int, cost: float) -> None:
        self._db.execute(
            "UPDATE spent SET calls = calls + ?, tokens = tokens + ?, cost = cost + ?",
            (calls, tokens, cost),
        )

    def _check_caps(self, wanted: Spent) -> None:
        if not self.caps.any:
            return
        own = Spent(*self._db.execute("SELECT calls, tokens, cost FROM spent").fetchone())
        before = own + self._spent_by_others()
        after = before + wanted
        for name, unit in (("calls", "calls"), ("tokens", "tokens"), ("cost", "dollars")):
            cap, then = getattr(self.caps, name), getattr(after, name)
            if cap is not None and then > cap:
                raise UserError(
                    f"max_{name} is {cap:g} {unit}: {getattr(before, name):g} are spent or under "
                    f"way, and the next request can take {getattr(wanted, name):g}; raise the cap "
                    "to go on, nothing is lost"
                )

    def _spent_by_others(self) -> Spent:
        """Spending of the other ledgers that share the caps; other machines are not seen."""
        if self.path is None:
            return Spent()
        if time.monotonic() - self._others_at > _SIBLINGS_S:
            stage = self.path.stem.rpartition("-")[0]
            siblings = self.path.parent.glob(f"{stage}-*{self.path.suffix}") if stage else ()
            others = {each for each in (*siblings, *self._sharing) if each.exists()} - {self.path}
            self._others = sum(map(spent_of, others), Spent())
            self._others_at = time.monotonic()
        return self._others


def _most(questions: Sequence[Question]) -> Spent:
    tokens = sum(tokens for _, _, tokens, _ in questions)
    return Spent(len(questions), tokens, sum(cost for _, _, _, cost in questions))


def _text(text: str) -> str:
    """A text that SQLite takes: UTF-8 cannot hold halves of surrogate pairs."""
    return text.encode(errors="replace").decode()


def _stored(body: bytes) -> str | bytes:
    """The stored form of a body: text where possible, which people can read in the table."""
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body


def _body(stored: str | bytes) -> bytes:
    return stored.encode() if isinstance(stored, str) else stored


def _row_id(cursor: sqlite3.Cursor) -> int:
    assert cursor.lastrowid is not None
    return cursor.lastrowid
