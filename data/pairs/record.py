"""One training pair: a reference image, a target image of the same subject, and words about it."""

import dataclasses
import hashlib
import io
import re
from collections.abc import Mapping
from typing import Any

import msgpack
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.images import open_still
from dsd_jax.text.plain import check_text, text_fault

__all__ = ["PairRecord", "checked_image", "png_bytes"]

Size = tuple[int, int]
MAX_TEXT = 10_000  # characters; twenty times what T5 takes
_TASK = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_KEPT_FORMATS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")  # PNG, JPEG, WebP


@dataclasses.dataclass(frozen=True)
class PairRecord:
    """A pair as it is stored.

    Attributes:
        id: unique name in the dataset.
        reference, target: image files (PNG, JPEG or WebP), unchanged.
        reference_size, target_size: height and width in pixels, after EXIF rotation.
        caption: description of the target; may be empty if there is an instruction.
        instruction: edit from reference to target; may be empty if there is a caption.
        subject: subject of both images, in a few words; may be empty.
        task: `identity`, `relight`, `depth`, `instruction`, or another lower-case word.
        provenance: origin of the pair, in JSON types.
    """

    id: str
    reference: bytes
    target: bytes
    reference_size: Size
    target_size: Size
    caption: str = ""
    instruction: str = ""
    subject: str = ""
    task: str = "identity"
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.id or len(self.id) > 200 or not self.id.isprintable():
            raise UserError(f"the id {self.id[:80]!r} must be 1 to 200 printable characters")
        if not _TASK.fullmatch(self.task):
            raise UserError(
                f"the task {self.task!r} must be a lower-case word such as identity or relight"
            )
        if not (self.caption or self.instruction):
            raise UserError("neither a caption nor an instruction")
        for name in ("caption", "instruction", "subject"):
            if len(getattr(self, name)) > MAX_TEXT:
                raise UserError(f"the {name} is longer than {MAX_TEXT:,} characters")
            check_text(getattr(self, name), f"the {name}")
        if fault := text_fault(self.provenance):
            raise UserError(f"the provenance cannot be stored: {fault}")
        try:
            msgpack.packb(self.provenance)
        except (TypeError, ValueError, OverflowError, RecursionError):
            raise UserError(
                "the provenance must hold texts, numbers of 64 bits, lists and objects"
            ) from None

    @classmethod
    def from_images(
        cls,
        *,
        id: str,  # noqa: A002 - the field's name
        reference: bytes,
        target: bytes,
        caption: str = "",
        instruction: str = "",
        subject: str = "",
        task: str = "identity",
        provenance: Mapping[str, object] | None = None,
    ) -> "PairRecord":
        """Makes a record of two image files, and decodes them in full to check and measure them.

        Args:
            id, caption, instruction, subject, task, provenance: as the attributes.
            reference, target: any format that `open_still` reads. A file that is neither PNG, JPEG
                nor WebP is stored as PNG.

        Raises:
            UserError: an image is damaged, animated, too small or too large, or an attribute is not
                valid.
        """
        reference, reference_size = checked_image(reference, "reference")
        target, target_size = checked_image(target, "target")
        return cls(
            id=id,
            reference=reference,
            target=target,
            reference_size=reference_size,
            target_size=target_size,
            caption=caption,
            instruction=instruction,
            subject=subject,
            task=task,
            provenance=provenance or {},
        )

    def pack(self) -> bytes:
        """The record as msgpack, with the digest of each image."""
        return bytes(
            msgpack.packb(
                {
                    **dataclasses.asdict(self),
                    "reference_sha256": hashlib.sha256(self.reference).digest(),
                    "target_sha256": hashlib.sha256(self.target).digest(),
                }
            )
        )

    @classmethod
    def unpack(cls, packed: bytes) -> "PairRecord":
        """The inverse of `pack`.

        Raises:
            UserError: the bytes are no record, or an image does not have its digest.
        """
        try:
            fields = msgpack.unpackb(packed)
            digests = {name: fields.pop(f"{name}_sha256") for name in ("reference", "target")}
            for name in ("reference_size", "target_size"):
                height, width = fields[name]
                fields[name] = (height, width)
            record = cls(**fields)
        except UserError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException):
            raise UserError("it is not a record of a pair") from None
        for name, digest in digests.items():
            if hashlib.sha256(getattr(record, name)).digest() != digest:
                raise UserError(f"{record.id!r}: the {name} image does not have its sha256")
        return record


def checked_image(data: bytes, role: str) -> tuple[bytes, Size]:
    """Decodes an image file in full; returns it in a stored format, with height and width.

    Raises:
        UserError: it cannot be used; the message begins with `role`.
    """
    try:
        image = open_still(data).image
    except UserError as error:
        raise UserError(f"{role}: {error}") from None
    return data if data.startswith(_KEPT_FORMATS) else png_bytes(image), (image.height, image.width)


def png_bytes(image: Image.Image) -> bytes:
    """A picture as a PNG file."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
