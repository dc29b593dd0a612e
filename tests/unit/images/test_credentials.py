"""Signed pictures: who signed, whether it holds, and that a signer is asked for by name alone."""

from __future__ import annotations

import datetime
import io
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from gan_train.errors import UserError
from gan_train.images.credentials import CERTIFICATES, PRIVATE_KEY, told
from gan_train.images.origin import Origin, encoded, read

ORIGIN = Origin(command="generate", model="models:/x/1", seeds="3", gan_train="0.1.0")
PICTURE = Image.effect_noise((32, 32), 60)


def certificate(
    who: str, key: ec.EllipticCurvePrivateKey, by: str, by_key: ec.EllipticCurvePrivateKey
) -> bytes:
    """A certificate for `who`, signed by the authority `by`, which may be the same."""
    names = [
        x509.Name(
            [x509.NameAttribute(oid, n) for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)]
        )
        for n in (who, by)
    ]
    now, authority = datetime.datetime.now(datetime.UTC), who == by
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    ) | {"encipher_only": False, "decipher_only": False}
    made = (
        x509.CertificateBuilder()
        .subject_name(names[0])
        .issuer_name(names[1])
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(authority, None), True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not authority,
                key_cert_sign=authority,
                crl_sign=authority,
                **usage,
            ),
            True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(by_key.public_key()), False
        )
    )
    if not authority:
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        made = made.add_extension(purpose, False)
    return made.sign(by_key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.fixture
def signer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signer with an authority of its own, named by the variables."""
    root, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(
        certificate("studio", own, "authority", root)
        + certificate("authority", root, "authority", root)
    )
    key.write_bytes(own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    monkeypatch.setenv(CERTIFICATES, str(chain))
    monkeypatch.setenv(PRIVATE_KEY, str(key))


@pytest.mark.usefixtures("signer")
def test_a_signed_picture_tells_its_signer_and_every_change() -> None:
    data = encoded(PICTURE, ORIGIN)
    said = told(data)
    assert said is not None and said.startswith("signed by studio; unchanged; whether")
    assert read(data, "a.png") == ORIGIN
    with Image.open(io.BytesIO(data)) as shown:
        assert shown.tobytes() == PICTURE.tobytes()
    changed = bytearray(data)
    changed[changed.index(b"tEXt") + 20] ^= 1
    assert "NOT valid" in str(told(bytes(changed)))
    # grids that are drawn while training are for those who train
    assert told(encoded(PICTURE, Origin(command="samples"))) is None


def test_without_a_signer_pictures_are_not_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(encoded(PICTURE, ORIGIN)) is None
    monkeypatch.setenv(CERTIFICATES, "/nowhere.pem")
    with pytest.raises(UserError, match="set both"):
        encoded(PICTURE, ORIGIN)
    monkeypatch.setenv(PRIVATE_KEY, "/nowhere.key")
    with pytest.raises(UserError, match=r"/nowhere\.pem cannot be read: No such file"):
        encoded(PICTURE, ORIGIN)


@pytest.mark.usefixtures("signer")
def test_a_signer_that_does_not_serve_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bad.pem").write_text("no key")
    monkeypatch.setenv(PRIVATE_KEY, str(tmp_path / "bad.pem"))
    with pytest.raises(UserError, match=r"cannot be signed with .*chain\.pem"):
        encoded(PICTURE, ORIGIN)
