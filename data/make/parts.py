"""The work folder of `dsd data make`: one file of rows per stage and part.

The part of an item is a function of its caption's id. So all stages of an item lie in the same
part, and any number of workers that divide the parts write the same files, byte for byte.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from dsd_jax.data.make.ids import CaptionId, GridId
from dsd_jax.data.make.stages import R_co, Stage, StageRow, from_json, to_json
from dsd_jax.errors import UserError, and_more
from dsd_jax.files import explained, locked, write_file
from dsd_jax.structured import parse_json

__all__ = ["Parts", "part_of"]


def part_of(caption: CaptionId, count: int) -> int:
    """The part of a caption, and of everything that is made from it."""
    return int(hashlib.sha256(caption.digest.encode()).hexdigest()[:12], 16) % count


class Parts:
    """The files of the stages under one folder.

    Attributes:
        root: The work folder.
        count: Number of parts, fixed when the folder is made.
    """

    def __init__(self, root: Path, count: int) -> None:
        self.root, self.count = root, count
        self._locks: dict[tuple[str, int], IO[str]] = {}

    def path(self, stage: Stage[StageRow], part: int) -> Path:
        """File of a finished part; it does not exist before the part is finished."""
        return self.root / stage.name / f"part-{part:05d}.jsonl"

    def picture(self, grid: GridId) -> Path:
        """PNG file of a grid."""
        part = part_of(grid.caption, self.count)
        return self.root / "grids" / f"part-{part:05d}" / f"{grid}.png"

    def ledger(self, stage: Stage[StageRow], part: int) -> Path:
        """Ledger with the questions and answers of a part."""
        return self.root / "ledgers" / f"{stage}-{part:05d}.sqlite"

    def done(self, stage: Stage[StageRow], part: int) -> bool:
        """Whether a part is finished."""
        return self.path(stage, part).exists()

    def write(self, stage: Stage[StageRow], part: int, rows: Sequence[StageRow]) -> None:
        """Finishes a part: writes its rows, sorted by id, completely or not at all.

        Raises:
            UserError: It cannot be written, or the folder has vanished.
        """
        self.check_there(stage, part)
        lines = [to_json(row) for row in sorted(rows, key=lambda row: str(row.id))]
        path = self.path(stage, part)
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        mark = json.dumps({"rows": len(lines), "sha256": digest})
        write_file(path, "\n".join([*lines, mark, ""]))

    def read(self, stage: Stage[R_co], part: int) -> list[R_co]:
        """Rows of a finished part.

        Raises:
            UserError: The part is not finished, or its file is damaged.
        """
        path = self.path(stage, part)
        try:
            *lines, mark, _ = path.read_text(encoding="utf-8").split("\n")
            expected = parse_json(mark, f"the last line of {path}", dict)
            digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
            if expected != {"rows": len(lines), "sha256": digest}:
                raise ValueError("digest")
            return [from_json(stage, line) for line in lines]
        except FileNotFoundError:
            raise UserError(f"{path} is not there; run `dsd data {stage.command}` first") from None
        except (ValueError, UnicodeDecodeError):
            raise UserError(
                f"{path} is damaged; remove it and run `dsd data {stage.command}` again, which "
                "asks nothing twice"
            ) from None

    def kept(self, stage: Stage[R_co], part: int) -> list[R_co]:
        """Rows of a finished part that were kept.

        Raises:
            UserError: As for `read`.
        """
        return [row for row in self.read(stage, part) if row.kept]

    def rows(self, stage: Stage[R_co]) -> Iterator[R_co]:
        """Rows of all parts, part by part.

        Raises:
            UserError: A part is not finished or damaged.
        """
        self.require(stage)
        for part in range(self.count):
            yield from self.read(stage, part)

    def require(self, stage: Stage[StageRow]) -> None:
        """Raises a UserError unless every part of a stage is finished."""
        missing = [part for part in range(self.count) if not self.done(stage, part)]
        if missing:
            raise UserError(
                f"{len(missing)} of {self.count} parts of `{stage}` are not finished "
                f"({and_more([*map(str, missing)])}); run `dsd data {stage.command}` for them first"
            )

    @contextlib.contextmanager
    def writing(self, stage: Stage[StageRow], part: int) -> Iterator[None]:
        """Locks a part of a stage against other writers on this machine.

        Raises:
            UserError: Another process holds it.
        """
        path = self._lock_path(stage, part)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.open("w")
        with lock:
            if not locked(lock):
                raise UserError(
                    f"another process is writing part {part} of `{stage}` in {self.root}; wait "
                    "for it, or give the workers different --shard numbers"
                )
            self._locks[stage.name, part] = lock
            try:
                yield
            finally:
                del self._locks[stage.name, part]

    def check_there(self, stage: Stage[StageRow], part: int) -> None:
        """Refuses to write a part that is held by `writing` into a new folder of the same name.

        Raises:
            UserError: The work folder was removed, moved or replaced meanwhile.
        """
        lock = self._locks.get((stage.name, part))
        if lock is None:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(self._lock_path(stage, part).stat(), os.fstat(lock.fileno())):
                return
        raise UserError(
            f"{self.root} has vanished while `{stage}` was made: it was removed, moved or "
            "replaced; run the same command again, which makes what is missing"
        )

    def _lock_path(self, stage: Stage[StageRow], part: int) -> Path:
        return self.root / "locks" / f"{stage}-{part:05d}"
