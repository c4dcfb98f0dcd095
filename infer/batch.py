"""Generates the images of a manifest: sharded over devices, resumable, tolerant of bad rows.

Every finished row gets a line in `results.jsonl`, written after its image. A restart skips the rows
that have a line. If the run was killed between the two, the image is recognised by the digest in
its file and gets its line without being made again.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dsd_jax.convert.hub import find_table
from dsd_jax.errors import UserError
from dsd_jax.files import PARTIAL, locked
from dsd_jax.images import Frame, NotFiniteError, open_frame, read_parameters, save_image
from dsd_jax.infer.arguments import check_count
from dsd_jax.infer.pipeline import Pipeline
from dsd_jax.infer.prepared import check_texts, prepare
from dsd_jax.infer.settings import Settings, check_seed
from dsd_jax.infer.shown import Shown
from dsd_jax.interrupt import Stop
from dsd_jax.marks import GENERATED, Mark
from dsd_jax.progress import progress
from dsd_jax.rows import Row as TableRow
from dsd_jax.rows import lookup, open_table, plain_path, plain_text
from dsd_jax.shares import ALL, WorkerShare
from dsd_jax.sheet import contact_sheet
from dsd_jax.structured import parse_json

__all__ = ["Results", "Row", "Summary", "read_manifest", "run_batch"]

_WHOLE, _REAL = (
    ("height", "width", "steps", "guidance_every"),
    ("guidance", "i_guidance", "t_guidance"),
)
_WORDS = {"image": "the path of a file"}
_COLUMNS = ("id", "image", "text", "seed", *(f.name for f in dataclasses.fields(Settings)))
_ID = re.compile(r"[A-Za-z0-9_.-]{1,200}")
# Rows for which the models are loaded once where they do not stay in memory.
_ROWS_PER_LOAD = 32
_ON_SHEET = 400  # images on the contact sheet


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a manifest; `error` says why it cannot be used.

    Attributes:
        id: unique, a file name; default: the line's number, from 0.
        image: path in the manifest, relative to `folder`.
        folder: folder of the manifest.
        place: path of its image in the output folder, without the ending; default: the id.
        ending: format of its image, one of `dsd_jax.images.WRITTEN`.
    """

    id: str
    text: str = ""
    image: str | None = None
    seed: int = 0
    settings: Settings = dataclasses.field(default_factory=Settings)
    folder: Path = Path()
    error: str | None = None
    place: str = ""
    ending: str = ".png"

    @property
    def output(self) -> str:
        """Path of its image in the output folder."""
        return f"{self.place or self.id}{self.ending}"

    def digest(self, model: Mapping[str, object]) -> str:
        """Digest of the row and the model. A row that changed is made again.

        A folder that moved has not changed.
        """
        parts = [self.text, self.image, self.seed, self.settings.stated(), model]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@dataclasses.dataclass
class Summary:
    """Outcome of a run: rows `made` now, `kept` from earlier runs, and `failed` in any.

    `stopped` tells that the run was asked to stop before its last row.
    """

    made: int = 0
    kept: int = 0
    failed: int = 0
    seconds: float = 0.0
    stopped: bool = False

    def __str__(self) -> str:
        rate = f", {self.made / self.seconds:.3g} images/s" if self.made and self.seconds else ""
        return (
            f"{self.made} made, {self.kept} kept from before, {self.failed} failed "
            f"in {self.seconds:.1f} s{rate}"
        )


def read_manifest(
    path: str | Path, defaults: Settings, split: str | None = None, ending: str = ".png"
) -> list[Row]:
    """Rows of a table with columns text, image, seed, id, and fields of `Settings`.

    Image paths are relative to the manifest. A row that cannot be used is kept, with its error.

    Args:
        path: a table in any format that `dsd_jax.rows.open_table` reads, or the hub id of a
            dataset that holds one.
        defaults: settings for columns that the manifest or the row leaves out.
        split: split of a dataset with several.
        ending: format of the images, one of `dsd_jax.images.WRITTEN`.

    Raises:
        UserError: no such table, another format, no rows, or ids that are not unique.
    """
    table = open_table(find_table(path), split)
    rows = [dataclasses.replace(_row(read, defaults), ending=ending) for read in table.rows()]
    if not rows:
        raise UserError(f"the manifest {path} has no rows; give one for each image")
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise UserError(f"the manifest {path} has the id {row.id!r} twice; ids must be unique")
        seen.add(row.id)
    return rows


def _row(read: TableRow, defaults: Settings) -> Row:
    name = f"{read.number - 1:06d}"
    if read.error:
        return Row(name, error=read.error)
    cells = {key: lookup(read.fields, key) for key in read.fields}
    given = {key: value for key, value in cells.items() if value not in (None, "")}
    chosen = plain_text(given.pop("id", name))
    if chosen is None or not _ID.fullmatch(chosen):
        return Row(name, error=f"id {chosen!r} is not a file name of ASCII letters, digits and -_.")
    try:
        for key in given:
            if key not in _COLUMNS:
                raise UserError(f"unknown column {key!r}; columns are {', '.join(_COLUMNS)}")
        values = {key: _typed(key, value) for key, value in given.items()}
        return Row(
            chosen,
            text=values.pop("text", ""),
            image=plain_path(values.pop("image")) if "image" in values else None,
            seed=check_seed(values.pop("seed", 0)),
            settings=dataclasses.replace(defaults, **values),
            folder=read.folder,
        )
    except UserError as error:
        return Row(chosen, error=str(error))


def _typed(key: str, value: Any) -> Any:
    """Converts a value of JSON, or of CSV, where every value is text."""
    if key in (*_WHOLE, "seed"):
        try:
            return int(str(value).removesuffix(".0"))  # spreadsheets write 512 as 512.0
        except ValueError:
            raise UserError(f"{key} must be a whole number, got {value!r}") from None
    if key in _REAL:
        try:
            return float(value)
        except (TypeError, ValueError):
            raise UserError(f"{key} must be a number, got {value!r}") from None
    if key == "vae_sample":
        if str(value).lower() not in ("true", "false"):
            raise UserError(f"{key} must be true or false, got {value!r}")
        return str(value).lower() == "true"
    if not isinstance(value, str):
        raise UserError(f"{key} must be {_WORDS.get(key, 'text')}, got {type(value).__name__}")
    return value


class Results:
    """The results file of one run: read at the start, then appended to by one writer at a time."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("ab+")
        if not locked(self._file):
            self._file.close()
            raise UserError(f"another run is writing {path}; wait for it, or stop it")
        self._file.seek(0)
        content = self._file.read()
        # What follows the last line end was being written when the run was killed.
        whole = content[: content.rfind(b"\n") + 1]
        self._file.truncate(len(whole))
        self.lines: dict[str, dict[str, Any]] = {}
        for line in whole.splitlines():
            # A damaged line counts as missing.
            with contextlib.suppress(ValueError, LookupError, TypeError):
                entry = parse_json(line, str(path), dict)
                self.lines[entry["id"]] = {"digest": entry["digest"], "status": entry["status"]}

    def add(self, entry: dict[str, Any]) -> None:
        """Appends an entry.

        Raises:
            UserError: the file has been moved or removed meanwhile, so that nobody would find it.
        """
        self._file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.check_there()

    def check_there(self) -> None:
        """Raises a UserError once the file has been moved or removed by somebody else."""
        try:
            there = os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except OSError:
            there = False
        if not there:
            raise UserError(
                f"{self._path} has vanished while images were made; run the same command again: it "
                "makes what is missing"
            )

    def close(self) -> None:
        self._file.close()


def run_batch(
    pipeline: Pipeline,
    rows: list[Row],
    output_dir: str | Path,
    *,
    batch_size: int | None = None,
    share: WorkerShare = ALL,
    retry_failed: bool = False,
    on_result: Callable[[dict[str, Any]], None] | None = None,
    mark: Mark | None = GENERATED,
) -> Summary:
    """Makes the images of a manifest.

    Args:
        pipeline: the pipeline that makes them.
        rows: result of `read_manifest`.
        output_dir: gets the image of each row (`Row.output`) and `results.jsonl`.
        batch_size: images sampled together; default: as few as occupy every device.
        share: make only the rows whose id hashes to this worker's number, with a results file of
            its own; the union over all workers is the manifest.
        retry_failed: try again the rows that failed in an earlier run.
        on_result: called with every new line of the results file.
        mark: says in each image that a model made it; None writes no such mark.

    Raises:
        UserError: the output cannot be written, another run is writing there, or the models
            cannot be loaded.
    """
    if batch_size is not None:
        batch_size = check_count("batch_size", batch_size)
    folder = Path(output_dir)
    part = "" if share.count == 1 else f"-{share.number:05d}-of-{share.count:05d}"
    try:
        results = Results(folder / f"results{part}.jsonl")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None
    with contextlib.closing(results), ThreadPoolExecutor(2) as writers:
        run = _Run(pipeline, folder, results, writers, on_result, mark)
        mine = [row for row in rows if _worker_of(row.id, share.count) == share.number]
        summary = run.make(mine, batch_size, retry_failed=retry_failed)
    _write_sheet(folder / f"sheet{part}.jpg", folder, mine, mark)
    return summary


class _Run:
    """One run over a folder: what is left to do, and the record of what was done."""

    def __init__(
        self,
        pipeline: Pipeline,
        folder: Path,
        results: Results,
        writers: ThreadPoolExecutor,
        on_result: Callable[[dict[str, Any]], None] | None,
        mark: Mark | None,
    ) -> None:
        self.pipeline, self.folder, self.results = pipeline, folder, results
        self.summary = Summary()
        self._writers, self._on_result, self._mark = writers, on_result, mark
        self._pending: list[tuple[Row, list[str], Future[None]]] = []
        self._sizes: set[tuple[int, int]] = set()

    def make(self, rows: list[Row], batch_size: int | None, *, retry_failed: bool) -> Summary:
        """Makes the images that are missing."""
        start = time.monotonic()
        self._remove_partial(rows)
        todo = [row for row in rows if self._is_open(row, retry_failed=retry_failed)]
        with (
            progress("batch", len(todo), "images") as advance,
            Stop("batch of images") as stop,
        ):
            size = batch_size or self.pipeline.group
            if not self.pipeline.options.stays:
                size = max(size, _ROWS_PER_LOAD)
            for chunk, settings in _chunks(self.pipeline, todo, size):
                if stop.asked():
                    self.summary.stopped = True
                    break
                self._sample(chunk, settings, batch_size)
                advance(len(chunk))
            self._settle(keep=0)
        self.summary.seconds = time.monotonic() - start
        return self.summary

    def _remove_partial(self, rows: list[Row]) -> None:
        """Removes the partial images of these rows that a killed run left behind."""
        outputs = {self.folder / row.output for row in rows}
        for folder in {path.parent for path in outputs}:
            for path in folder.glob(f".*{PARTIAL}"):  # .NAME.TOKEN.part
                if (
                    path.with_name(path.name.removesuffix(PARTIAL)[1:].rpartition(".")[0])
                    in outputs
                ):
                    path.unlink(missing_ok=True)

    def _digest(self, row: Row) -> str:
        return row.digest(self.pipeline.identity)

    def _record(self, row: Row, **fields: Any) -> None:
        entry = {"id": row.id, "digest": self._digest(row), **fields}
        self.results.add(entry)
        if self._on_result:
            self._on_result(entry)

    def _is_open(self, row: Row, *, retry_failed: bool) -> bool:
        """Whether the row must be made; counts, and if needed records, a row that need not."""
        output, digest = self.folder / row.output, self._digest(row)
        entry = self.results.lines.get(row.id)
        if entry and entry["digest"] == digest:
            if entry["status"] == "error":
                self.summary.failed += not retry_failed
                return retry_failed
            if output.exists():
                self.summary.kept += 1
                return False
        if output.exists() and (read_parameters(output) or {}).get("digest") == digest:
            self._record(row, status="ok", output=row.output)
            self.summary.kept += 1
            return False
        return True

    def _sample(self, chunk: list[Row], settings: Settings, batch_size: int | None) -> None:
        """Makes the rows of a chunk that can be made; the others are recorded with their error."""
        rows: list[Row] = []
        frames: list[Frame] = []
        for row in chunk:
            try:
                frame = _open(row, settings)
            except UserError as error:
                self._fail(row, error)
                continue
            rows.append(row)
            frames += [] if frame is None else [frame]
        if not rows:
            return
        prepared = prepare(
            self.pipeline.tokenizers,
            [row.text for row in rows],
            frames or None,
            np.asarray([row.seed for row in rows], np.uint32),
            settings,
        )
        # The first images of a size wait for models and compilers; what they wait for is shown.
        show: Shown = "nothing" if settings.size in self._sizes else "phases"
        self._sizes.add(settings.size)
        try:
            made = self.pipeline.run(prepared, batch_size=batch_size, show=show)
        except NotFiniteError as error:  # other errors would be the same for every row
            if len(rows) == 1:
                self._fail(rows[0], error)
            else:  # one of the rows is at fault
                for row in rows:
                    self._sample([row], settings, batch_size)
            return
        for row, image, parameters, notices in zip(
            rows, made.images, made.parameters, prepared.notices, strict=True
        ):
            info = {**parameters, "digest": self._digest(row)}
            path = self.folder / row.output
            written = self._writers.submit(save_image, image, path, info, self._mark)
            self._pending.append((row, notices, written))
        self._settle(keep=len(rows))  # written while the next images are sampled

    def _fail(self, row: Row, error: UserError) -> None:
        self._record(row, status="error", error=str(error))
        self.summary.failed += 1

    def _settle(self, keep: int) -> None:
        """Records images that are on disk, in order, until `keep` are left."""
        while len(self._pending) > keep:
            row, notices, written = self._pending.pop(0)
            try:
                written.result()
            except UserError:
                self.results.check_there()  # the folder that vanished is the reason
                raise
            said = {"notices": notices} if notices else {}
            self._record(row, status="ok", output=row.output, **said)
            self.summary.made += 1


def _worker_of(name: str, count: int) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % count


def _write_sheet(path: Path, folder: Path, rows: list[Row], mark: Mark | None) -> None:
    """Writes a contact sheet of the images that exist, in the order of the manifest."""
    for partial in folder.glob(f".{path.name}.*{PARTIAL}"):  # of a run that was killed
        partial.unlink(missing_ok=True)
    shown = [row for row in rows if (folder / row.output).exists()][:_ON_SHEET]
    if shown:
        images = (Image.open(folder / row.output) for row in shown)
        sheet = contact_sheet(images, [f"{row.id}: {row.text}" for row in shown])
        save_image(sheet, path, mark=mark)


def _chunks(pipeline: Pipeline, rows: list[Row], size: int) -> Iterator[tuple[list[Row], Settings]]:
    """Groups rows that can run as one batch: equal checked settings, all or none with a reference.

    A row that cannot be used is a group of its own, so that the caller records it.
    """
    groups: dict[tuple[Settings, bool], list[Row]] = {}
    for row in rows:
        try:
            if row.error:
                raise UserError(row.error)
            two_frames = row.image is not None
            checked = pipeline.check(row.settings, two_frames=two_frames)
        except UserError as error:
            yield [dataclasses.replace(row, error=str(error))], row.settings
            continue
        groups.setdefault((checked, two_frames), []).append(row)
    for (settings, _), group in groups.items():
        for start in range(0, len(group), size):
            yield group[start : start + size], settings


def _open(row: Row, settings: Settings) -> Frame | None:
    """Opens the row's reference; raises a UserError for anything wrong with the row."""
    if row.error:
        raise UserError(row.error)
    check_texts([row.text])
    height, width = settings.size
    return None if row.image is None else open_frame(row.folder / row.image, height, width // 2)
