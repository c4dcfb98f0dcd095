"""The folder of a dataset in the making: for every stage one file of rows per part.

An item's part is a function of its caption's id, so every stage of an item lies in the same part,
and any number of workers that share the parts out write the same files, byte for byte.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dsd_jax.errors import UserError
from dsd_jax.files import write_file

__all__ = ["STAGES", "Parts", "Row", "Shard", "part_of", "shard_from_environment"]

STAGES = ("captions", "prompts", "grids", "pairs", "judge", "caption")
"""In order; each has a folder of its own."""
Row = dict[str, Any]
"""One item of a stage: JSON types, with an `id`."""
Shard = tuple[int, int]
"""Number of this worker and how many there are."""

# Of SLURM arrays and of Kubernetes' indexed jobs, which do not tell how many they are.
_NUMBERS, _COUNTS = ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"), ("SLURM_ARRAY_TASK_COUNT",)
_LEAST = "SLURM_ARRAY_TASK_MIN"


def part_of(item: str, count: int) -> int:
    """The part of an item, by the id of its caption (what precedes the first `-`)."""
    return int(hashlib.sha256(item.partition("-")[0].encode()).hexdigest()[:12], 16) % count


def shard_from_environment(
    shard: int | None, num_shards: int | None, environment: Mapping[str, str] = os.environ
) -> Shard:
    """This worker's number, from flags or else from SLURM's or Kubernetes' variables.

    Raises:
        UserError: one without the other, or a number out of range.
    """
    least = int(environment.get(_LEAST, "0"))  # an array may be numbered from 1
    if shard is None:
        shard = next((int(environment[n]) - least for n in _NUMBERS if n in environment), None)
    if num_shards is None:
        num_shards = next((int(environment[n]) for n in _COUNTS if n in environment), None)
    if shard is None and num_shards is None:
        return 0, 1
    if shard is None or num_shards is None:
        raise UserError("--shard and --num_shards go together, such as --shard 0 --num_shards 8")
    if not 0 <= shard < num_shards:
        raise UserError(f"shard {shard} of {num_shards}: shards are numbered from 0")
    return shard, num_shards


class Parts:
    """The stages' files under one folder.

    Attributes:
        root: of the dataset in the making.
        count: of parts, fixed when the folder is made.
    """

    def __init__(self, root: Path, count: int) -> None:
        self.root, self.count = root, count

    def mine(self, shard: Shard) -> list[int]:
        """The parts of one worker."""
        number, workers = shard
        return list(range(number, self.count, workers))

    def path(self, stage: str, part: int) -> Path:
        """Rows of a finished part; there is no such file before it is finished."""
        return self.root / stage / f"part-{part:05d}.jsonl"

    def done(self, stage: str, part: int) -> bool:
        return self.path(stage, part).exists()

    def write(self, stage: str, part: int, rows: Sequence[Row]) -> None:
        """Finishes a part: rows in the order of their ids, at once or not at all.

        Raises:
            UserError: it cannot be written.
        """
        lines = [
            json.dumps(row, ensure_ascii=False, sort_keys=True, allow_nan=False)
            for row in sorted(rows, key=lambda row: str(row["id"]))
        ]
        path = self.path(stage, part)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {path.parent}: {error.strerror}") from None
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        mark = json.dumps({"rows": len(lines), "sha256": digest})
        write_file(path, "\n".join([*lines, mark, ""]))

    def read(self, stage: str, part: int) -> list[Row]:
        """Rows of a finished part.

        Raises:
            UserError: not finished, or not as it was written.
        """
        path = self.path(stage, part)
        try:
            *lines, mark, _ = path.read_text(encoding="utf-8").split("\n")
            expected = json.loads(mark)
            digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
            if expected != {"rows": len(lines), "sha256": digest}:
                raise ValueError("digest")
            return [json.loads(line) for line in lines]
        except FileNotFoundError:
            raise UserError(f"{path} is not there; run `dsd data {stage}` first") from None
        except (ValueError, UnicodeDecodeError):
            raise UserError(
                f"{path} is damaged; remove it and run `dsd data {stage}` again, which asks "
                "nothing twice"
            ) from None

    def rows(self, stage: str) -> Iterator[Row]:
        """Rows of all parts, part by part.

        Raises:
            UserError: a part is not finished or damaged.
        """
        self.require(stage)
        for part in range(self.count):
            yield from self.read(stage, part)

    def require(self, stage: str) -> None:
        """Raises a UserError unless every part of a stage is finished."""
        missing = [part for part in range(self.count) if not self.done(stage, part)]
        if missing:
            named = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
            raise UserError(
                f"{len(missing)} of {self.count} parts of `{stage}` are not finished ({named}); "
                f"run `dsd data {stage}` for them first"
            )

    @contextlib.contextmanager
    def writing(self, stage: str, part: int) -> Iterator[None]:
        """Holds a part of a stage against other writers on this machine.

        Raises:
            UserError: somebody else holds it.
        """
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{stage}-{part:05d}").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"another process is writing part {part} of `{stage}` in {self.root}; wait "
                    "for it, or give the workers different --shard numbers"
                ) from None
            yield
