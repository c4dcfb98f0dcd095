"""A small server for one study: the page, its pictures, and a place for the answers.

It reads no more than it expects, serves nothing but the page and its pictures, and tells a browser
that an answer is saved once it is on the disk.
"""

import dataclasses
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

from dsd_jax.errors import UserError
from dsd_jax.infer.evaluate.study.answers import Answer, AnswerFile, RefusedError
from dsd_jax.infer.evaluate.study.page import Delivery, page_text, picture_names
from dsd_jax.infer.evaluate.study.record import PICTURES, read_study
from dsd_jax.structured import Limits, build, parse_json

__all__ = ["StudyServer"]

_POST = "answers"
_LIMITS = Limits(size=1 << 16, depth=4)
_PATIENCE_S = 20  # for the next bytes of a request
_RATERS = ("rater", "PROLIFIC_PID", "workerId")


@dataclasses.dataclass(frozen=True)
class _Request:
    """Body of a request that brings answers."""

    answers: tuple[Answer, ...]


class StudyServer(ThreadingHTTPServer):
    """Serves a study until it is closed.

    Args:
        folder: Folder of the study.
        file: Its answers, opened.
        host, port: Address; port 0 takes a free one.

    Raises:
        UserError: The study is damaged, or the address cannot be used.
    """

    daemon_threads = True

    def __init__(self, folder: Path, file: AnswerFile, host: str, port: int) -> None:
        study = read_study(folder)
        self.page = page_text(study, Delivery(post=_POST)).encode()
        self.pictures = {f"/{PICTURES}/{name}": folder / PICTURES / name for name in
                         picture_names(study)}  # fmt: skip
        self._file = file
        self._lock = threading.Lock()
        self._given: Counter[int] = Counter(dict.fromkeys(range(len(study.lists)), 0))
        self._given.update(file.answers.lists.values())
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"cannot listen on {host}:{port}: {reason}; choose another --port"
            ) from None

    @property
    def address(self) -> str:
        """Address of the page."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/"

    def list_for(self, rater: str) -> int:
        """The list of a rater who has begun, or else the one that was given out least."""
        with self._lock:
            known = self._file.answers.lists.get(rater)
            if known is not None:
                return known
            number, _ = min(self._given.items(), key=lambda item: (item[1], item[0]))
            self._given[number] += 1
            return number

    def append(self, answers: Sequence[Answer]) -> int:
        """Stores answers; see `AnswerFile.append`."""
        with self._lock:
            return self._file.append(answers)

    def handle_error(self, request: object, client_address: object) -> None:
        """Keeps quiet about a browser that left before its answer came."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def server_close(self) -> None:
        """Closes the server once an answer that is being written is on the disk."""
        super().server_close()
        self._lock.acquire()  # for good: no later answer is stored


class _Handler(BaseHTTPRequestHandler):
    """One request; the connection is closed after it."""

    server: StudyServer
    timeout = _PATIENCE_S
    server_version, sys_version = "dsd", ""

    def do_GET(self) -> None:
        """Answers with the page or a picture."""
        parts = urlsplit(self.path)
        picture = self.server.pictures.get(parts.path)
        if picture is not None:
            self._send(picture.read_bytes(), f"image/{picture.suffix[1:]}", cache=True)
        elif parts.path != "/":
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")
        elif "list" not in (given := parse_qs(parts.query, max_num_fields=20)):
            rater = next((given[name][0] for name in _RATERS if name in given), "")
            words = {name: values[0] for name, values in given.items()}
            self.send_response(HTTPStatus.SEE_OTHER)
            number = self.server.list_for(rater)
            self.send_header("Location", f"/?{urlencode(words | {'list': number})}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._send(self.server.page, "text/html; charset=utf-8")

    def do_POST(self) -> None:
        """Stores answers."""
        length = self.headers.get("Content-Length", "")
        if self.path != f"/{_POST}":
            self._refuse(HTTPStatus.NOT_FOUND, "answers go to another address")
        elif self.headers.get_content_type() != "application/json":
            # Another page in the same browser cannot send this type without being asked first.
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "answers are sent as JSON")
        elif not length.isdecimal():
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "the length of the answers is missing")
        elif int(length[:20]) > _LIMITS.size:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too long")
        else:
            self._store(self.rfile.read(int(length)))

    def _store(self, body: bytes) -> None:
        try:
            given = parse_json(body, "the request", dict, _LIMITS)
            answers = build(_Request, given, "the request").answers
        except UserError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        try:
            new = self.server.append(answers)
        except RefusedError as error:
            self._refuse(HTTPStatus.CONFLICT, str(error))
        except UserError as error:  # the disk is full
            self._refuse(HTTPStatus.INSUFFICIENT_STORAGE, str(error))
        else:
            self._send(f"{new} new answers\n".encode(), "text/plain; charset=utf-8")

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._send(f"{reason}\n".encode(), "text/plain; charset=utf-8", status)

    def _send(
        self,
        content: bytes,
        kind: str,
        status: HTTPStatus = HTTPStatus.OK,
        *,
        cache: bool = False,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "max-age=86400, immutable" if cache else "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base
        """Keeps quiet; raters' addresses are nobody's business."""
