"""Reads the body of a request within limits, and takes a form apart."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator
from http import HTTPStatus

from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from dsd_jax.errors import UserError
from dsd_jax.infer.serve.wire import RefusedError
from dsd_jax.structured import Limits, parse_json

__all__ = ["Form", "Uploads", "read_form", "read_json"]

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
        size: Bytes.
        seconds: Time in which a body must arrive.
        at_once: Bodies that are read at the same time; others wait unread.
    """

    size: int = 32 << 20
    seconds: float = 60.0
    at_once: int = 16


@dataclasses.dataclass(frozen=True)
class Form:
    """The fields of a form, and the file of its reference."""

    fields: dict[str, object]
    image: bytes


async def read_json(request: Request, uploads: Uploads) -> dict[str, object]:
    """The object that a request holds as JSON.

    Raises:
        RefusedError: It is of another kind, too large, too slow or damaged.
    """
    _expect(request, "application/json")
    body = await _body(request, dataclasses.replace(uploads, size=min(uploads.size, _JSON.size)))
    try:
        return parse_json(body, "the body", dict, _JSON)
    except UserError as error:
        raise RefusedError(str(error)) from None


async def read_form(request: Request, uploads: Uploads) -> Form:
    """The fields and the reference that a request holds as a multipart form.

    Raises:
        RefusedError: It is of another kind, too large, too slow or damaged, or has no reference, or
            several.
    """
    _expect(request, "multipart/form-data")
    body = await _body(request, uploads)
    parser = MultiPartParser(
        request.headers,
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
                raise RefusedError(f"{name:.80} must not be a file", param=name[:80])
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


async def _body(request: Request, uploads: Uploads) -> bytes:
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdecimal()):
        raise RefusedError("content-length must be a number of bytes")
    if len(length) > 20 or int(length) > uploads.size:
        raise _too_large(uploads)
    body = bytearray()
    try:
        async with asyncio.timeout(uploads.seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > uploads.size:
                    raise _too_large(uploads)
                body += chunk
    except TimeoutError:
        raise RefusedError(
            f"the body took longer than {uploads.seconds:g} seconds to arrive",
            status=HTTPStatus.REQUEST_TIMEOUT,
        ) from None
    return bytes(body)


def _too_large(uploads: Uploads) -> RefusedError:
    return RefusedError(
        f"the body is larger than {uploads.size:,} bytes; send a smaller image",
        status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    )


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
