"""Prolific and Mechanical Turk: addresses for their raters, and the tables that they give back.

Prolific opens the page with PROLIFIC_PID, STUDY_ID and SESSION_ID in its address, and a rater ends
at an address with a completion code. Mechanical Turk opens it with workerId, assignmentId, hitId
and turkSubmitTo, and takes the answers itself.
"""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

from dsd_jax.errors import UserError
from dsd_jax.files import write_file
from dsd_jax.infer.evaluate.study.answers import Answer
from dsd_jax.infer.evaluate.study.record import Study
from dsd_jax.rows import Row, Table, open_table, plain_text
from dsd_jax.structured import Limits, MalformedError, build, json_lines, parse_json

__all__ = [
    "Parsed",
    "completion_address",
    "is_participants",
    "read_answer_file",
    "read_participants",
    "write_addresses",
]

Parsed = tuple[str, Answer | UserError]
"""A place in a file, and the answer there or the reason why there is none."""

_CODE = re.compile(r"[A-Za-z0-9_-]{1,40}")
_PROLIFIC = "PROLIFIC_PID={{%PROLIFIC_PID%}}&STUDY_ID={{%STUDY_ID%}}&SESSION_ID={{%SESSION_ID%}}"
_TURK_ANSWERS, _TURK_RATER, _TURK_SESSION = "Answer.answers", "WorkerId", "AssignmentId"
_PARTICIPANT, _STATUS = "Participant id", "Status"
_COUNTED = ("APPROVED", "AWAITING REVIEW")
_SENT = Limits(size=4 << 20, depth=4)
_QUESTION = """<?xml version="1.0" encoding="UTF-8"?>
<ExternalQuestion xmlns="http://mechanicalturk.amazonaws.com/AWSMechanicalTurkDataSchemas/2006-07-14/ExternalQuestion.xsd">
  <ExternalURL>${url}</ExternalURL>
  <FrameHeight>0</FrameHeight>
</ExternalQuestion>
"""


def completion_address(code: str) -> str:
    """The address with which a rater of Prolific proves that the study is done.

    Raises:
        UserError: The code has other letters than Prolific's.
    """
    if not _CODE.fullmatch(code):
        raise UserError(f"--prolific_code is a word of letters, digits and -_, got {code!r}")
    return f"https://app.prolific.com/submissions/complete?cc={code}"


def write_addresses(study: Study, page_url: str, folder: Path) -> list[Path]:
    """Writes the address of every list, for either platform.

    Args:
        study: The study.
        page_url: Address of the page on its host.
        folder: Folder for `prolific.csv`, `mturk.csv` (a HIT per line) and `mturk.xml` (the
            question of a HIT, with the variable `${url}`).

    Raises:
        UserError: `page_url` is no https:// address, or a file cannot be written.
    """
    parts = urlsplit(page_url)
    if parts.scheme != "https" or not parts.netloc or parts.query or parts.fragment:
        raise UserError(f"--page_url is an https:// address without ? and #, got {page_url!r}")
    base = [f"{page_url}?list={number}" for number in range(len(study.lists))]
    contents = {
        "prolific.csv": _table([f"{address}&{_PROLIFIC}" for address in base]),
        "mturk.csv": _table([escape(address) for address in base]),
        "mturk.xml": _QUESTION,
    }
    for name, content in contents.items():
        write_file(folder / name, content)
    return [folder / name for name in contents]


def _table(addresses: list[str]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerows([("list", "url"), *enumerate(addresses)])
    return text.getvalue()


def read_answer_file(path: Path) -> Iterator[Parsed]:
    """Reads answers: JSON Lines from the page, or the results of Mechanical Turk as CSV.

    Raises:
        UserError: The file cannot be read, or is a table of something else.
    """
    if path.suffix.lower() != ".csv":
        for number, row in json_lines(path):
            yield _parsed(row, f"{path} line {number}")
        return
    table = open_table(path)
    lacking = {_TURK_ANSWERS, _TURK_RATER, _TURK_SESSION} - set(table.columns)
    if lacking:
        raise UserError(
            f"{path} has no column {min(lacking)!r}; answers are .jsonl files of the page, or the "
            "results that Mechanical Turk offers as CSV"
        )
    for row in table.rows():
        yield from _of_turk(row, f"{path} row {row.number}")


def _of_turk(row: Row, where: str) -> Iterator[Parsed]:
    """The answers of a worker, which must bear the name that the platform gives."""
    if row.error:
        yield where, UserError(f"{where}: {row.error}")
        return
    cells = {name: plain_text(value) or "" for name, value in row.fields.items()}
    try:
        rows = parse_json(cells[_TURK_ANSWERS], where, list, _SENT)
    except MalformedError as error:
        yield where, error
        return
    for each in rows:
        place, answer = _parsed(each, where)
        if isinstance(answer, Answer) and (answer.rater, answer.session) != (
            cells[_TURK_RATER],
            cells[_TURK_SESSION],
        ):
            answer = UserError(
                f"{where}: the answers bear the name {answer.rater}, but worker "
                f"{cells[_TURK_RATER]} sent them"
            )
        yield place, answer


def _parsed(row: object, where: str) -> Parsed:
    if isinstance(row, MalformedError):
        return where, row
    if not isinstance(row, dict):
        return where, UserError(f"{where}: expected an object")
    try:
        return where, build(Answer, row, where)
    except UserError as error:
        return where, error


def is_participants(path: Path) -> bool:
    """Whether a file is Prolific's table of participants."""
    return path.suffix.lower() == ".csv" and {_PARTICIPANT, _STATUS} <= set(
        open_table(path).columns
    )


def read_participants(path: Path) -> dict[str, str]:
    """Reads who took part: the id of each rater, and why it does not count, or an empty text.

    Raises:
        UserError: A row cannot be read.
    """
    table: Table = open_table(path)
    found = {}
    for row in table.rows():
        if row.error:
            raise UserError(f"{path} row {row.number}: {row.error}")
        status = plain_text(row.fields[_STATUS]) or "without a status"
        counts = status.upper() in _COUNTED
        found[plain_text(row.fields[_PARTICIPANT]) or ""] = "" if counts else status
    return found
