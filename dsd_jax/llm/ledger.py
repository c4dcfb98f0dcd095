"""The ledger of paid questions: what was about to be sent, what came back, what it cost.

One SQLite file per stage and part, with one writer. The order is: intent, sending, raw answer,
reading. An intent that a stopped process left without an answer may have been charged: it is
counted as such, and its question is asked once more.

Writes are committed with a full sync (`synchronous=FULL` in WAL mode), since what a power cut takes
back would be paid for again. All writes of a millisecond share a commit, and while a slow disk is
busy more of them gather, so that it makes the groups larger and not the questions fewer. (A thread
for the commits was slower: it and the event loop wait for each other's turn of the interpreter.)
"""

import asyncio
import contextlib
import dataclasses
import fcntl
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from dsd_jax.errors import UserError
from dsd_jax.llm.messages import Answer, Request
from dsd_jax.llm.totals import Spent, Totals, spent_of, totals_of
from dsd_jax.llm.transport import Raw

__all__ = ["Batch", "Caps", "Ledger", "Outcome"]

R = TypeVar("R")
Outcome = Literal["answered", "unreadable", "lost", "failed"]
"""What became of an intent.

`answered` and `unreadable` (a body that is not in the provider's form) were charged, `lost`
(nothing came back) may have been, `failed` (the server said no) was not.
"""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (
    id INTEGER PRIMARY KEY, tag TEXT NOT NULL UNIQUE, model TEXT NOT NULL, count INTEGER NOT NULL,
    remote TEXT, done INTEGER NOT NULL DEFAULT 0, detail TEXT, begun_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS intents (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, stage TEXT NOT NULL, item TEXT NOT NULL,
    wording TEXT NOT NULL, sample INTEGER NOT NULL, model TEXT NOT NULL,
    batch INTEGER REFERENCES batches (id), tokens INTEGER NOT NULL, cost REAL NOT NULL,
    outcome TEXT, detail TEXT, at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS intents_by_key ON intents (key);
CREATE INDEX IF NOT EXISTS open_intents ON intents (batch) WHERE outcome IS NULL;
CREATE TABLE IF NOT EXISTS answers (
    intent INTEGER PRIMARY KEY REFERENCES intents (id), key TEXT NOT NULL, raw TEXT NOT NULL,
    request_id TEXT NOT NULL, model TEXT, finish TEXT, input INTEGER, cached INTEGER,
    output INTEGER, cost REAL, at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS answers_by_key ON answers (key);
CREATE TABLE IF NOT EXISTS parses (
    key TEXT PRIMARY KEY, result TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS refusals (key TEXT PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS spent (
    one INTEGER PRIMARY KEY CHECK (one = 1), calls INTEGER NOT NULL, tokens INTEGER NOT NULL,
    cost REAL NOT NULL);
INSERT OR IGNORE INTO spent VALUES (1, 0, 0, 0.0);
"""
_VERSION = 1
_TOGETHER_S = 0.001  # writes so close share a commit: an answer, and the intent it makes room for
_SIBLINGS_S = 1.0  # how old the sums of the stage's other ledgers may be


@dataclasses.dataclass(frozen=True)
class Batch:
    """Questions that went out together.

    Attributes:
        number: in the ledger.
        tag: under which it was handed over, so that it can be found at the provider.
        remote: the provider's name of it; None: nobody knows whether it arrived.
        begun_at: when its intents were written, in seconds of the epoch.
    """

    number: int
    tag: str
    remote: str | None
    begun_at: float


@dataclasses.dataclass(frozen=True)
class Caps:
    """The most that a stage may spend; None: no limit."""

    calls: int | None = None
    tokens: int | None = None
    cost: float | None = None

    @property
    def any(self) -> bool:
        return any(each is not None for each in dataclasses.astuple(self))


class Ledger:
    """One ledger, open for writing. Used from one thread.

    Attributes:
        path: of the file, or None for a ledger in memory.
        lost: open intents of a stopped process, which may have been charged, found at opening.
    """

    def __init__(self, path: Path | None, caps: Caps = Caps()) -> None:
        """Opens or makes it.

        Raises:
            UserError: another process has it open, or it is not a ledger.
        """
        self.path, self._caps = path, caps
        self._waiting: list[tuple[Callable[[], Any], asyncio.Future[Any]]] = []
        self._others, self._others_at = Spent(), float("-inf")
        self._lock = None if path is None else _locked(path)
        try:
            self._db = sqlite3.connect(
                ":memory:" if path is None else path, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in {0, _VERSION}:
                raise UserError(f"{path} was written by another version of this program")
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version = {_VERSION}")
        except sqlite3.Error as error:
            self._unlock()
            raise UserError(f"cannot open the ledger {path}: {error}") from None
        with self._transaction():
            self.lost = self._db.execute(
                "UPDATE intents SET outcome = 'lost', detail = 'the process was stopped' "
                "WHERE outcome IS NULL AND batch IS NULL"
            ).rowcount

    def close(self) -> None:
        """Writes what waits, folds the log into the file, and closes it."""
        self._commit()
        with contextlib.suppress(sqlite3.Error):  # a reader may hold the log: it stays beside
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()

    # Reading

    def answers(self, key: str) -> list[Raw]:
        """Raw answers to a question, the last first."""
        rows = self._db.execute(
            "SELECT raw, request_id FROM answers WHERE key = ? ORDER BY intent DESC", (key,)
        )
        return [Raw(*row) for row in rows]

    def refusal(self, key: str) -> str | None:
        """Why a question cannot be answered, or None if that is not known of it."""
        row = self._db.execute("SELECT reason FROM refusals WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def answered_by(self, model: str) -> bool:
        """Whether a model has answered anything."""
        row = self._db.execute(
            "SELECT 1 FROM intents WHERE model = ? AND outcome = 'answered' LIMIT 1", (model,)
        ).fetchone()
        return row is not None

    def keys_of(self, batch: Batch) -> list[str]:
        """Keys of the questions of a batch that has not ended."""
        rows = self._db.execute(
            "SELECT key FROM intents WHERE batch = ? AND outcome IS NULL", (batch.number,)
        )
        return [key for (key,) in rows]

    def totals(self) -> Totals:
        return totals_of(self._db)

    # Writing

    async def intend(
        self, questions: Sequence[tuple[str, Request, int, float]], model: str
    ) -> list[int]:
        """Writes down that questions are about to be sent, if the caps allow them all.

        Args:
            questions: key, request, and the most tokens and dollars that it can take.

        Returns:
            The numbers of the attempts.

        Raises:
            UserError: a cap would be passed; nothing is written, nothing may be sent.
        """
        return await self.write(lambda: self._intend(questions, model, None))

    async def answered(self, attempt: int, raw: Raw, answer: Answer | None) -> None:
        """Keeps an answer; None: it could not be read."""
        await self.write(lambda: self._answered(attempt, raw, answer))

    async def ended(self, attempt: int, outcome: Outcome, detail: str) -> None:
        """Notes that an attempt ended without an answer."""
        await self.write(lambda: self._ended(attempt, outcome, detail))

    async def refused(self, key: str, reason: str) -> None:
        """Notes that a question cannot be answered, whoever asks it again."""
        await self.write(
            lambda: self._db.execute("INSERT OR REPLACE INTO refusals VALUES (?, ?)", (key, reason))
        )

    def parsed(self, key: str, result: str) -> None:
        """Notes what was made of the answer to a question, with the next commit."""
        self._soon(
            lambda: self._db.execute(
                "INSERT INTO parses VALUES (?, ?) ON CONFLICT DO UPDATE SET result = "
                "excluded.result WHERE result != excluded.result",
                (key, result),
            )
        )

    def open_batches(self) -> list[Batch]:
        """Batches of which the end is not known."""
        rows = self._db.execute(
            "SELECT id, tag, remote, begun_at FROM batches WHERE NOT done ORDER BY id"
        )
        return [Batch(*row) for row in rows]

    async def begin_batch(
        self, tag: str, questions: Sequence[tuple[str, Request, int, float]], model: str
    ) -> Batch:
        """As `intend`, for questions that go out together.

        Raises:
            UserError: as there.
        """
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
        """Notes the provider's name of a batch."""
        await self.write(
            lambda: self._db.execute(
                "UPDATE batches SET remote = ? WHERE id = ?", (remote, batch.number)
            )
        )
        return dataclasses.replace(batch, remote=remote)

    async def end_batch(
        self,
        batch: Batch,
        results: Mapping[str, tuple[Raw, Answer | None] | str],
        missing: str,
    ) -> None:
        """Keeps what came of a batch: answers, or words why there is none; `missing` for others."""

        def change() -> None:
            attempts = self._db.execute(
                "SELECT id, key FROM intents WHERE batch = ? AND outcome IS NULL", (batch.number,)
            ).fetchall()
            for attempt, key in attempts:
                result = results.get(key, missing)
                if isinstance(result, str):
                    self._ended(attempt, "failed", result)
                else:
                    self._answered(attempt, *result)
            self._db.execute(
                "UPDATE batches SET done = 1, detail = ? WHERE id = ?", (missing, batch.number)
            )

        await self.write(change)

    async def write(self, change: Callable[[], R]) -> R:
        """Runs a change within the next commit and waits for it.

        A change that raises must have written nothing.
        """
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
            with self._transaction():
                for change, future in waiting:
                    try:
                        results.append((future, change(), None))
                    except UserError as error:
                        results.append((future, None, error))
        except Exception as error:  # noqa: BLE001 - raised again in whoever waits
            told = isinstance(error, sqlite3.Error)
            failure = UserError(f"cannot write the ledger {self.path}: {error}") if told else error
            results = [(future, None, failure) for _, future in waiting]
        for future, result, problem in results:
            if future.cancelled():
                continue
            if problem is None:
                future.set_result(result)
            else:
                future.set_exception(problem)

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
        questions: Sequence[tuple[str, Request, int, float]],
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
                        request.stage,
                        request.item,
                        request.wording,
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

    def _answered(self, attempt: int, raw: Raw, answer: Answer | None) -> None:
        key, tokens, cost, before = self._db.execute(
            "SELECT key, tokens, cost, outcome FROM intents WHERE id = ?", (attempt,)
        ).fetchone()
        usage = None if answer is None else answer.usage
        told = (usage.input, usage.cached, usage.output) if usage else (None, None, None)
        columns = (answer.model, answer.finish) if answer else (None, None)
        price = answer.cost if answer else None
        self._db.execute(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (attempt, key, raw.body, raw.request_id, *columns, *told, price, time.time()),
        )
        self._db.execute(
            "UPDATE intents SET outcome = ? WHERE id = ?",
            ("unreadable" if answer is None else "answered", attempt),
        )
        if before is None and answer is not None:
            used = tokens if usage is None else usage.input + usage.output
            self._spend(0, used - tokens, 0.0 if price is None else price - cost)

    def _ended(self, attempt: int, outcome: Outcome, detail: str) -> None:
        tokens, cost, before = self._db.execute(
            "SELECT tokens, cost, outcome FROM intents WHERE id = ?", (attempt,)
        ).fetchone()
        self._db.execute(
            "UPDATE intents SET outcome = ?, detail = ? WHERE id = ?", (outcome, detail, attempt)
        )
        if before is None and outcome != "lost":
            self._spend(-1, -tokens, -cost)

    def _spend(self, calls: int, tokens: int, cost: float) -> None:
        self._db.execute(
            "UPDATE spent SET calls = calls + ?, tokens = tokens + ?, cost = cost + ?",
            (calls, tokens, cost),
        )

    def _check_caps(self, wanted: Spent) -> None:
        if not self._caps.any:
            return
        own = Spent(*self._db.execute("SELECT calls, tokens, cost FROM spent").fetchone())
        before = own + self._spent_by_others()
        after = before + wanted
        for name, unit in (("calls", "calls"), ("tokens", "tokens"), ("cost", "dollars")):
            cap, then = getattr(self._caps, name), getattr(after, name)
            if cap is not None and then > cap:
                raise UserError(
                    f"max_{name} is {cap:g} {unit}: {getattr(before, name):g} are spent or under "
                    f"way, and the next request can take {getattr(wanted, name):g}; raise the cap "
                    "to go on, nothing is lost"
                )

    def _spent_by_others(self) -> Spent:
        """Of the stage's other ledgers in this folder; those of other machines are not seen."""
        if self.path is None:
            return Spent()
        if time.monotonic() - self._others_at > _SIBLINGS_S:
            stage = self.path.stem.rpartition("-")[0]
            others = self.path.parent.glob(f"{stage}-*{self.path.suffix}") if stage else ()
            self._others = sum((spent_of(each) for each in others if each != self.path), Spent())
            self._others_at = time.monotonic()
        return self._others


def _most(questions: Sequence[tuple[str, Request, int, float]]) -> Spent:
    tokens = sum(tokens for _, _, tokens, _ in questions)
    return Spent(len(questions), tokens, sum(cost for _, _, _, cost in questions))


def _row_id(cursor: sqlite3.Cursor) -> int:
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _locked(path: Path) -> Any:
    """Holds the ledger against other processes of this machine.

    A file of its own: SQLite's locks on its file end when any handle of this process is closed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write {path.parent}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise UserError(
            f"another process uses the ledger {path}; wait for it, or give the workers different "
            "--shard numbers"
        ) from None
    return lock
