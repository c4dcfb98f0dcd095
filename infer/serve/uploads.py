"""Reads the body of a request within limits, and takes a form apart."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator
from http import HTTPStatus

from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from dsd_jax.errors import UserError
from dsd_jax.infer.serve.wire import CANNOT, RefusedError
from dsd_jax.structured import Limits, parse_json

__all__ = ["FORM", "JSON", "Form", "Reader", "Uploads", "parse_fields", "parse_form"]

FORM, JSON = "multipart/form-data", "application/json"
_JSON = Limits(size=1 << 17, depth=8)
_FIELDS = 64
_FIELD_BYTES = 1 << 17
_IMAGES = ("image", "image[]")
_REPEATED = ("lora", "lora[]")
_REFERENCES = 1


@dataclasses.dataclass(frozen=True)
class Uploads:
    """Limits of the bodies of requests.

    Attributes:
        size: Bytes of a body.
        seconds: Time in which a body must arrive.
        together: Bytes of all bodies that are held at a time.
    """

    size: int = 32 << 20
    seconds: float = 60.0
    together: int = 512 << 20


class Reader:
    """Reads the bodies of requests within limits.

    A slow upload holds only what has arrived of it, so it keeps no other request waiting.

    Args:
        uploads: The limits.
    """

    def __init__(self, uploads: Uploads = Uploads()) -> None:
        self._uploads, self._held = uploads, 0

    @contextlib.asynccontextmanager
    async def body(self, request: Request, kind: str) -> AsyncIterator[bytes]:
        """The body of a request; it counts as held until the end of the context.

        Args:
            request: The request.
            kind: `FORM` or `JSON`, which its content type must state.

        Raises:
            RefusedError: It is of another kind, too large or too slow, or too much is held already.
        """
        _expect(request, kind)
        most = self._uploads.size if kind == FORM else min(self._uploads.size, _JSON.size)
        _check_length(request, most)
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self._uploads.seconds):
                    async for chunk in request.stream():
                        self._check_room(len(body) + len(chunk), len(chunk), most)
                        self._held += len(chunk)
                        body += chunk
            except TimeoutError:
                raise RefusedError(
                    f"the body took longer than {self._uploads.seconds:g} seconds to arrive",
                    status=HTTPStatus.REQUEST_TIMEOUT,
                ) from None
            yield bytes(body)
        finally:
            self._held -= len(body)

    def _check_room(self, size: int, added: int, most: int) -> None:
        if size > most:
            raise _too_large(most)
        if self._held + added > self._uploads.together:
            raise RefusedError(
                "too many uploads arrive together; try again later",
                status=HTTPStatus.TOO_MANY_REQUESTS,
                code="uploads_full",
                retry_after=1.0,
            )


@dataclasses.dataclass(frozen=True)
class Form:
    """The fields of a form, and the file of its reference."""

    fields: dict[str, object]
    image: bytes


def parse_fields(body: bytes) -> dict[str, object]:
    """The object that a body holds as JSON.

    Raises:
        RefusedError: It is damaged.
    """
    try:
        return parse_json(body, "the body", dict, _JSON)
    except UserError as error:
        raise RefusedError(str(error)) from None


async def parse_form(headers: Headers, body: bytes) -> Form:
    """The fields and the reference that a body holds as a multipart form.

    Args:
        headers: Headers of the request, which state the boundary of the parts.
        body: The body.

    Raises:
        RefusedError: It is damaged, or has no reference, or several.
    """
    parser = MultiPartParser(
        headers,
        _once(body),
        max_files=16,
        max_fields=_FIELDS,
        max_part_size=_FIELD_BYTES,
    )
    parser.spool_max_size = len(body) + 1  # nothing is written to the disk
    try:
        return await _sorted(await parser.parse())
    except (MultiPartException, FormParserError, LookupError, UnicodeError, ValueError) as error:
        reason = getattr(error, "message", None) or str(error) or type(error).__name__
        raise RefusedError(f"the form is damaged: {reason:.200}") from None
    finally:
        for file in parser._files_to_close_on_error:  # noqa: SLF001 - it leaves some open
            file.close()


async def _sorted(form: FormData) -> Form:
    """The fields of a form, and its one file."""
    fields: dict[str, object] = {}
    images: list[bytes] = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name not in _IMAGES:
                message = CANNOT.get(name, f"{name:.80} must not be a file")
                raise RefusedError(message, param=name[:80])
            images.append(await value.read())
        elif name in _REPEATED:
            fields[name] = [*_listed(fields.get(name)), value]
        elif name in fields:
            raise RefusedError(f"{name:.80} is given twice", param=name[:80])
        else:
            fields[name.removesuffix("[]")] = value
    if "image" in fields:
        raise RefusedError(
            "image must be a file of the form; no path and no address is opened", param="image"
        )
    if len(images) != _REFERENCES:
        raise RefusedError(
            f"{len(images)} images were given; this model takes exactly one reference",
            param="image",
        )
    return Form(fields, images[0])


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _expect(request: Request, kind: str) -> None:
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != kind:
        raise RefusedError(
            f"the body must be {kind}, got {given[:80] or 'none'}",
            status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        )


def _check_length(request: Request, most: int) -> None:
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdecimal()):
        raise RefusedError("content-length must be a number of bytes")
    if len(length) > 20 or int(length) > most:
        raise _too_large(most)


def _too_large(most: int) -> RefusedError:
    return RefusedError(
        f"the body is larger than {most:,} bytes; send a smaller one",
        status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    )


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
