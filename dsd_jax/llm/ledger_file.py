"""The file of a ledger: its tables, and the lock that gives it one writer."""

import sqlite3
from pathlib import Path
from typing import IO

from dsd_jax.errors import UserError
from dsd_jax.files import locked

__all__ = ["open_ledger"]

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


def open_ledger(path: Path | None) -> tuple[sqlite3.Connection, IO[str] | None]:
    """Opens a ledger for writing, or makes it; None is one in memory.

    Returns:
        The database, and the file that holds the lock as long as it is open.

    Raises:
        UserError: Another process has it open, or it is not a ledger.
    """
    lock = None if path is None else _locked(path)
    try:
        db = sqlite3.connect(
            ":memory:" if path is None else path, isolation_level=None, check_same_thread=False
        )
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in {0, _VERSION}:
            raise UserError(f"{path} was written by another version of this program")
        db.executescript(_SCHEMA)
        db.execute(f"PRAGMA user_version = {_VERSION}")
    except (sqlite3.Error, UserError) as error:
        if lock is not None:
            lock.close()
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot open the ledger {path}: {error}") from None
    return db, lock


def _locked(path: Path) -> IO[str]:
    """Holds a ledger against other processes of this machine, until the file is closed.

    The lock has a file of its own: SQLite's locks on a ledger end when any handle of this process
    is closed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write {path.parent}: {error.strerror}") from None
    if not locked(lock):
        lock.close()
        raise UserError(
            f"another process uses the ledger {path}; wait until it is done; workers of one job "
            "need different --shard numbers"
        )
    return lock
