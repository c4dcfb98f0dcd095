"""Marks of generated pictures, read back by parsers that share no code with the writer."""

import datetime
import io
import json
import shutil
import subprocess
from pathlib import Path

import c2pa
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from PIL import Image

from dsd_jax.errors import UserError
from dsd_jax.images import encode_image, read_parameters, save_image
from dsd_jax.marks import GENERATED, Mark, MarkFlags, Signer, mark_png
from tests.marked import TYPE, png_chunks, source_types
from tests.random_flux import picture

ENDINGS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}
PARAMETERS = {"text": "ein Küken", "seed": 3}


@pytest.mark.parametrize("ending", ENDINGS)
def test_each_format_says_that_a_model_made_the_picture(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    save_image(picture(), path, PARAMETERS, GENERATED)
    assert source_types(path.read_bytes()) == [TYPE]
    assert read_parameters(path) == PARAMETERS


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_picture_that_no_model_made_has_no_mark(tmp_path, ending):
    save_image(picture(), tmp_path / f"a{ending}", PARAMETERS)
    assert source_types((tmp_path / f"a{ending}").read_bytes()) == []


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
@pytest.mark.parametrize("ending", ENDINGS)
def test_exiftool_reads_mark_and_parameters(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    save_image(picture(), path, PARAMETERS, GENERATED)
    command = ["exiftool", "-j", "-n", str(path)]
    (tags,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert tags["DigitalSourceType"] == TYPE
    assert json.loads(tags["Parameters" if ending == ".png" else "ImageDescription"]) == PARAMETERS
    assert "Warning" not in tags


def test_marking_a_png_keeps_every_other_byte():
    plain = encode_image(picture(), "PNG", PARAMETERS)
    marked = mark_png(plain)
    assert marked == encode_image(picture(), "PNG", PARAMETERS, GENERATED)
    kept = [chunk for chunk in png_chunks(marked) if chunk[0] != b"iTXt"]
    assert kept == png_chunks(plain)
    assert kept[0][0] == b"IHDR"
    with Image.open(io.BytesIO(marked)) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(picture()))


def test_parameters_that_a_jpeg_cannot_hold_are_a_message(tmp_path):
    with pytest.raises(UserError, match=r"have 70,\d+ characters, and a JPEG holds 65,000; write"):
        save_image(picture(), tmp_path / "a.jpg", {"text": "a" * 70_000}, GENERATED)
    assert not list(tmp_path.iterdir())
    save_image(picture(), tmp_path / "a.webp", {"text": "a" * 70_000}, GENERATED)
    assert read_parameters(tmp_path / "a.webp") == {"text": "a" * 70_000}


Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def write_signer(folder: Path, key: Key) -> tuple[Path, Path]:
    """A certificate chain of two, and the key of the first."""
    issuer_key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Issuer")])
    subject = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Painter")])
    kinds = (
        "content_commitment key_encipherment data_encipherment key_agreement encipher_only "
        "decipher_only digital_signature key_cert_sign crl_sign"
    )
    usage = dict.fromkeys(kinds.split(), False)
    now = datetime.datetime.now(datetime.UTC)

    def certificate(subject, public, ca: bool) -> x509.Certificate:
        signs = {"key_cert_sign": True, "crl_sign": True} if ca else {"digital_signature": True}
        builder = (
            x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=9))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .add_extension(x509.KeyUsage(**{**usage, **signs}), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
                critical=False,
            )
        )
        if not ca:
            use = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(use, critical=True)
        return builder.sign(issuer_key, hashes.SHA256())

    chain = [
        certificate(subject, key.public_key(), ca=False),
        certificate(issuer, issuer_key.public_key(), ca=True),
    ]
    pem = serialization.Encoding.PEM
    (folder / "chain.pem").write_bytes(b"".join(one.public_bytes(pem) for one in chain))
    plain = serialization.NoEncryption()
    (folder / "secret.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    )
    return folder / "chain.pem", folder / "secret.key"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    return write_signer(tmp_path_factory.mktemp("signer"), key)


def assert_signed(data: bytes, kind: str) -> None:
    with c2pa.Reader(f"image/{kind.lower()}", io.BytesIO(data)) as reader:
        read = json.loads(reader.json())
    assert read["validation_state"] == "Valid"
    # The issuer of the test is on nobody's list.
    assert [one["code"] for one in read["validation_status"]] == ["signingCredential.untrusted"]
    manifest = read["manifests"][read["active_manifest"]]
    (actions,) = (a for a in manifest["assertions"] if a["label"].startswith("c2pa.actions"))
    (made,) = actions["data"]["actions"]
    assert (made["action"], made["digitalSourceType"]) == ("c2pa.created", TYPE)
    assert manifest["signature_info"]["issuer"] == "Painter"


class TestSignatures:
    @pytest.mark.parametrize("ending", ENDINGS)
    def test_a_signed_picture_keeps_mark_parameters_and_pixels(self, tmp_path, files, ending):
        path, kind = tmp_path / f"a{ending}", ENDINGS[ending]
        mark = MarkFlags(sign_cert=files[0], sign_key=files[1]).open()
        save_image(picture(), path, PARAMETERS, mark)
        data = path.read_bytes()
        assert_signed(data, kind)
        assert source_types(data) == [TYPE]
        assert read_parameters(path) == PARAMETERS
        assert len(data) - len(encode_image(picture(), kind, PARAMETERS, GENERATED)) < 5000
        plain = io.BytesIO(encode_image(picture(), kind))
        with Image.open(path) as signed, Image.open(plain) as image:
            np.testing.assert_array_equal(np.asarray(signed), np.asarray(image))
        secret = files[1].read_bytes().splitlines()[1]
        assert secret not in data
        assert b"secret.key" not in data
        assert str(files[0].parent).encode() not in data

    def test_a_changed_picture_does_not_pass_for_the_signed_one(self, files):
        data = bytearray(encode_image(picture(), "PNG", None, Mark(Signer.read(*files))))
        place = data.rindex(b"IDAT") + 20
        data[place] ^= 1
        with c2pa.Reader("image/png", io.BytesIO(bytes(data))) as reader:
            assert json.loads(reader.json())["validation_state"] == "Invalid"

    @pytest.mark.parametrize(
        "make",
        [
            lambda: ec.generate_private_key(ec.SECP384R1()),
            ed25519.Ed25519PrivateKey.generate,
            lambda: rsa.generate_private_key(65537, 2048),
        ],
        ids=["EC 384", "Ed25519", "RSA"],
    )
    def test_other_kinds_of_keys(self, tmp_path, make):
        signer = Signer.read(*write_signer(tmp_path, make()))
        assert_signed(encode_image(picture(), "PNG", None, Mark(signer)), "PNG")

    def test_a_key_in_the_older_form_of_openssl(self, tmp_path, files):
        key = serialization.load_pem_private_key(files[1].read_bytes(), None)
        older, plain = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        content = key.private_bytes(serialization.Encoding.PEM, older, plain)
        assert content.startswith(b"-----BEGIN EC PRIVATE KEY-----")
        (tmp_path / "older.key").write_bytes(content)
        signer = Signer.read(files[0], tmp_path / "older.key")
        assert_signed(encode_image(picture(), "PNG", None, Mark(signer)), "PNG")

    @pytest.mark.parametrize(
        "form",
        [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL],
        ids=["newer form", "older form"],
    )
    def test_a_locked_key_is_told_with_the_way_to_unlock_it(self, tmp_path, files, form):
        key = serialization.load_pem_private_key(files[1].read_bytes(), None)
        lock = serialization.BestAvailableEncryption(b"secret")
        locked = tmp_path / "k"
        locked.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, lock))
        with pytest.raises(UserError, match=r"k is locked with a passphrase.*openssl pkey -in"):
            Signer.read(files[0], locked)

    def test_the_key_is_not_shown(self, files):
        secret = files[1].read_text().splitlines()[1]
        assert secret not in repr(Signer.read(*files))

    def test_files_that_cannot_sign_are_messages(self, tmp_path, files):
        chain, key = files
        other = write_signer(tmp_path, ec.generate_private_key(ec.SECP256R1()))[1]
        short = tmp_path / "short.pem"
        short.write_text("-----BEGIN PRIVATE KEY-----\nSECRETSECRET\n-----END PRIVATE KEY-----\n")
        for given, message in (
            ((chain, None), "needs both; give --sign_cert and --sign_key"),
            ((chain, tmp_path / "none.key"), r"cannot read .*none\.key: No such file"),
            ((key, chain), r"secret\.key is no PEM file with a certificate"),
            ((chain, chain), r"chain\.pem is no PEM file with a private key"),
            ((chain, other), r"cannot sign with .*chain\.pem and .*secret\.key \(.*; C2PA needs"),
            ((chain, short), r"cannot sign with .*short\.pem \(.*; C2PA needs an unencrypted"),
        ):
            with pytest.raises(UserError, match=message) as caught:
                MarkFlags(sign_cert=given[0], sign_key=given[1]).open()
            assert "SECRETSECRET" not in str(caught.value)

    def test_no_mark_and_a_signature_do_not_go_together(self, files):
        with pytest.raises(UserError, match="leave out --no_mark, or --sign_cert"):
            MarkFlags(mark=False, sign_cert=files[0], sign_key=files[1]).open()
