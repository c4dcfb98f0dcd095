"""Marks that say, within a picture's file, that a model made the picture.

Each file gets an XMP packet with IPTC's digital source type, in which laws, platforms and viewers
look for it. A C2PA manifest, signed with the user's own key, can come on top: it binds the
statement to the file's bytes.
"""

import dataclasses
import io
import struct
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from dsd_jax import __version__
from dsd_jax.errors import UserError
from dsd_jax.extras import require
from dsd_jax.inside import open_regular

__all__ = ["GENERATED", "SOURCE_TYPE", "XMP", "Mark", "MarkFlags", "Signer", "mark_png"]

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's name for pictures that were made by a trained model."""

XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about=""'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    ' xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
    ' xmp:CreatorTool="dsd-jax"'
    f' Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/>'
    "</rdf:RDF></x:xmpmeta>"
    '<?xpacket end="r"?>'
).encode()
"""The packet; the same bytes in every picture."""

_HEADER = 33  # bytes of a PNG's signature and header chunk, before which no other chunk may be
_MOST_BYTES = 1 << 16  # of a certificate chain or a key
# By default the library adds a preview of up to 3 MB, enlarged to 1024 pixels if need be.
_SETTINGS = {"builder": {"thumbnail": {"enabled": False}}}
_MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


@dataclasses.dataclass(frozen=True)
class Signer:
    """A key and its certificates, in PEM, for signatures in the form of C2PA.

    Attributes:
        certificates: the certificate of the key, then those that vouch for it.
        key: the private key; it shows in no message and no file.
    """

    certificates: bytes
    key: bytes = dataclasses.field(repr=False)

    @classmethod
    def read(cls, certificates: Path, key: Path) -> "Signer":
        """Reads both files, and signs a small picture to see that they work.

        Raises:
            UserError: the extra `c2pa` is not installed, a file cannot be read or holds something
                else, or the two cannot sign.
        """
        require("c2pa")
        signer = cls(_pem(certificates, b"CERTIFICATE"), _pem(key, b"PRIVATE KEY"))
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, "PNG")
        try:
            signer.sign(file.getvalue(), "PNG")
        except TypeError:  # from the reader of keys, which has no passphrase
            raise UserError(
                f"{key} is locked with a passphrase, which this program never asks for; give an "
                f"unlocked copy: openssl pkey -in {key} -out UNLOCKED.pem"
            ) from None
        except _refusals() as error:
            raise UserError(
                f"cannot sign with {certificates} and {key} ({type(error).__name__.strip('_')}); "
                "C2PA needs an unencrypted key (EC, Ed25519 or RSA), its certificate with the use "
                "emailProtection or documentSigning, and the certificate of who issued it"
            ) from None
        return signer

    def sign(self, data: bytes, kind: str) -> bytes:
        """Adds the signed manifest to the file of a picture.

        Args:
            data: the file.
            kind: its format, as Pillow names it.
        """
        import c2pa  # noqa: PLC0415 - of an extra

        algorithm, key = self._read_key
        info = c2pa.C2paSignerInfo(
            alg=algorithm.encode(),
            sign_cert=self.certificates,
            private_key=key,
            ta_url=None,  # nobody is asked for the time, so nothing leaves the machine
        )
        signed = io.BytesIO()
        # Each picture has its own signer, since pictures are written by several threads.
        with (
            c2pa.Context.from_dict(_SETTINGS) as context,
            c2pa.Signer.from_info(info) as signer,
            c2pa.Builder(_manifest(), context) as builder,
        ):
            builder.sign(signer, _MIME[kind], io.BytesIO(data), signed)
        return signed.getvalue()

    @cached_property
    def _read_key(self) -> tuple[str, bytes]:
        """C2PA's name for signatures by this kind of key, and the key in PKCS #8."""
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519  # noqa: PLC0415

        key = serialization.load_pem_private_key(self.key, None)
        content = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return "ed25519", content
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return {256: "es256", 384: "es384", 521: "es512"}[key.curve.key_size], content
        return "ps256", content


@dataclasses.dataclass(frozen=True)
class Mark:
    """The mark of a picture that a model made: the XMP packet, and a signature if there is one."""

    signer: Signer | None = None

    def finish(self, data: bytes, kind: str) -> bytes:
        """Signs the file of a picture that holds the packet."""
        return data if self.signer is None else self.signer.sign(data, kind)


GENERATED = Mark()
"""The mark without a signature."""


@dataclasses.dataclass(frozen=True)
class MarkFlags:
    """Marks in each file that say that a model made the picture.

    Attributes:
        mark: Write the digital source type trainedAlgorithmicMedia into each picture. Otherwise
            leave out the mark that a model made the pictures; the parameters stay.
        sign_cert: Certificates (PEM) to sign each picture with, in the form of C2PA.
        sign_key: File with the private key (PEM) of the first of them.
    """

    mark: bool = True
    sign_cert: Path | None = None
    sign_key: Path | None = None

    def open(self) -> Mark | None:
        """The mark to write; None for no mark.

        Raises:
            UserError: flags that do not go together, or a key that cannot sign.
        """
        if self.sign_cert is None and self.sign_key is None:
            return GENERATED if self.mark else None
        if self.sign_cert is None or self.sign_key is None:
            raise UserError("a signature needs both; give --sign_cert and --sign_key")
        if not self.mark:
            raise UserError("a signature is a mark; leave out --no_mark, or --sign_cert")
        return Mark(Signer.read(self.sign_cert, self.sign_key))


def mark_png(data: bytes) -> bytes:
    """The file of a PNG with the packet behind its header; all other bytes are as they were."""
    content = b"iTXtXML:com.adobe.xmp\0\0\0\0\0" + XMP
    chunk = struct.pack(">I", len(content) - 4) + content
    return data[:_HEADER] + chunk + struct.pack(">I", zlib.crc32(content)) + data[_HEADER:]


def _manifest() -> dict[str, Any]:
    """The statement that is signed."""
    made: dict[str, Any] = {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}
    return {
        "claim_generator_info": [{"name": "dsd-jax", "version": __version__}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [made]}}],
    }


def _pem(path: Path, kind: bytes) -> bytes:
    """The bytes of a PEM file that holds something of a kind.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        with open_regular(path) as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if len(data) > _MOST_BYTES or kind + b"-----" not in data:
        raise UserError(f"{path} is no PEM file with a {kind.decode().lower()}")
    return data


def _refusals() -> tuple[type[Exception], ...]:
    """Exceptions of the libraries about keys and certificates."""
    import c2pa  # noqa: PLC0415 - of an extra
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415

    return c2pa.C2paError, UnsupportedAlgorithm, ValueError, KeyError
