"""Content Credentials (C2PA): a signed statement in a picture that a generator made it.

Pictures are signed where the package `c2pa` is installed and two variables name a signer's
certificates (PEM, the signer's first) and its private key, an elliptic curve's of P-256 (ES256). A
signer's trust is a matter of its certificates; this project has none of its own.
"""

from __future__ import annotations

import functools
import io
import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gan_train.errors import UserError

CERTIFICATES = "GAN_TRAIN_C2PA_CERTIFICATES"
PRIVATE_KEY = "GAN_TRAIN_C2PA_KEY"
_PNG = "image/png"
_KINDS = "http://cv.iptc.org/newscodes/digitalsourcetype"
_LABEL = "org.gan-train.origin"
_ALONE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
"""The library's settings: a picture of a stranger makes it ask no server."""


def signed(png: bytes, said: Mapping[str, Any], from_picture: bool) -> bytes:
    """The PNG file with a signed statement that holds what is `said` of its origin; as it was where
    no signer is named. `from_picture` says that it was made of another picture.

    Raises UserError where a signer is named, and the package is missing, or a file of the signer
    does not serve.
    """
    named = os.environ.get(CERTIFICATES), os.environ.get(PRIVATE_KEY)
    if named == (None, None):
        return png
    certificates, key = named
    if not certificates or not key:
        raise UserError(f"to sign pictures, set both {CERTIFICATES} and {PRIVATE_KEY}, or neither")
    if find_spec("c2pa") is None:
        raise UserError(
            f"{CERTIFICATES} is set, but the package c2pa-python is missing: install it"
        )
    import c2pa

    kind = "compositeWithTrainedAlgorithmicMedia" if from_picture else "trainedAlgorithmicMedia"
    action = {"action": "c2pa.created", "digitalSourceType": f"{_KINDS}/{kind}"}
    manifest = {
        "claim_generator_info": [{"name": "gan-train", "version": said.get("gan_train") or "0"}],
        "format": _PNG,
        "assertions": [
            {"label": "c2pa.actions", "data": {"actions": [action]}},
            {"label": _LABEL, "data": dict(said)},
        ],
    }
    out = io.BytesIO()
    try:
        signer = c2pa.Signer.from_info(_signer(certificates, key))
        c2pa.Builder(manifest, c2pa.Context.from_dict(_ALONE)).sign(
            signer, _PNG, io.BytesIO(png), out
        )
    except c2pa.C2paError as error:
        raise UserError(
            f"pictures cannot be signed with {certificates} and {key} ({error}): name certificates "
            f"for C2PA and an ES256 key, or unset {CERTIFICATES}"
        ) from error
    return out.getvalue()


@functools.lru_cache(maxsize=1)
def _signer(certificates: str, key: str) -> Any:
    import c2pa

    try:
        chain, private = (Path(name).read_bytes() for name in (certificates, key))
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
    return c2pa.C2paSignerInfo(b"es256", chain, private, None)


def told(png: bytes) -> str | None:
    """Who signed a PNG file and whether that holds, as untrusted text. None where it is not signed,
    or the package is missing."""
    if find_spec("c2pa") is None:
        return None
    import c2pa

    try:
        context = c2pa.Context.from_dict(_ALONE)
        reader = c2pa.Reader.try_create(_PNG, io.BytesIO(png), None, context)
        if reader is None:
            return None
        with reader:
            found = json.loads(reader.json())
    except c2pa.C2paError as error:
        return f"cannot be read ({error})"
    by = found["manifests"][found["active_manifest"]].get("signature_info", {})
    holds = {
        "Trusted": "unchanged, and the signer is trusted",
        "Valid": "unchanged; whether the signer can be trusted is not known",
    }.get(found.get("validation_state"), "NOT valid: the picture or the statement was changed")
    return f"signed by {by.get('common_name') or by.get('issuer') or 'someone'}; {holds}"
