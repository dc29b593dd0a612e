"""Weights of feature networks: read from a path or URL, and checked against a SHA-256.

A file's digest is checked before anything interprets its content. Downloads are limited in size;
they are written aside, checked and renamed. The allowed schemes are `https:`, `file:` and those
of buckets (`files/store.py`). Error messages call the settings `<setting>weights` and
`<setting>sha256`.
"""

from __future__ import annotations

import hashlib
import io
import urllib.error
import urllib.parse
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import torch

from gan_train.errors import UserError
from gan_train.files import store
from gan_train.files.atomic import aside
from gan_train.files.digests import sha256_of

_SCHEMES = ("https", "file", *store.SCHEMES)
_LIMIT = 5 * 2**30  # bytes; Inception-v3 has 95.6 million, DINOv2's giant 4.5 billion
_CHUNK = 2**20
_TIMEOUT_S = 60.0
_SETTING = "evaluate."


class _SameSchemes(urllib.request.HTTPRedirectHandler):
    """Follows a redirection only to an address whose scheme is allowed."""

    def __init__(self, setting: str) -> None:
        self.setting = setting

    def redirect_request(  # type: ignore[no-untyped-def]
        self, req, fp, code, msg, headers, newurl
    ):
        _allowed_scheme(newurl, self.setting)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _allowed_scheme(location: str, setting: str) -> None:
    scheme = urllib.parse.urlsplit(location).scheme
    if scheme not in _SCHEMES:
        raise UserError(
            f"{setting}weights: {location} has the scheme {scheme!r}; "
            f"allowed: a path, or a URL with one of {', '.join(_SCHEMES)}"
        )


def read_checked(path: Path, sha256: str, setting: str = _SETTING) -> bytes:
    """The bytes of the file. Raises UserError if it is missing or has another digest."""
    _must_exist(path, setting)
    data = path.read_bytes()
    _must_be(path, hashlib.sha256(data).hexdigest(), sha256, setting)
    return data


def _must_exist(path: Path, setting: str) -> None:
    if not path.is_file():
        raise UserError(f"{setting}weights: {path} does not exist")


def _must_be(path: Path, found: str, sha256: str, setting: str) -> None:
    if found != sha256:
        raise UserError(
            f"{setting}weights: {path} has the SHA-256 {found}, expected is {sha256}; it was not "
            f"opened. Fetch the file again, or correct `{setting}sha256` if you trust this one"
        )


def fetch(location: str, sha256: str, cache: Path, setting: str = _SETTING) -> bytes:
    """The checked bytes of the weights at a path or URL. A URL is downloaded once into `cache`.

    Workers that download at the same time repeat the work and do no harm: each writes a file of its
    own and renames it. Raises UserError for a wrong scheme, size or digest, and for a failed
    download.
    """
    return read_checked(_here(location, sha256, cache, setting), sha256, setting)


def fetch_file(location: str, sha256: str, cache: Path, setting: str = _SETTING) -> Path:
    """The checked file of the weights at a path or URL, for those too large to be read whole. As
    `fetch` otherwise."""
    path = _here(location, sha256, cache, setting)
    _must_exist(path, setting)
    _must_be(path, sha256_of(path), sha256, setting)
    return path


def _here(location: str, sha256: str, cache: Path, setting: str) -> Path:
    """The path, or that of the download. A path is not looked at yet."""
    if "://" not in location:
        return Path(location)
    _allowed_scheme(location, setting)
    target = cache / f"{sha256}.weights"
    if not target.is_file():
        _download(location, target, sha256, setting)
    return target


def load_script(data: bytes, device: torch.device) -> Any:
    """The module in a TorchScript file, frozen, for inference.

    Loading runs code of the file's author: pass only bytes that `fetch` has checked.
    """
    with warnings.catch_warnings():
        # deprecated by PyTorch, but the form in which feature networks were published
        warnings.filterwarnings("ignore", ".*torch.jit.load.*", DeprecationWarning)
        module = torch.jit.load(io.BytesIO(data), map_location=device).eval()
    for parameter in module.parameters():  # `requires_grad_` of a module is refused for scripts
        parameter.requires_grad_(False)
    return module


def _other_digest(location: str, found: str, sha256: str, setting: str) -> UserError:
    return UserError(
        f"{setting}weights: {location} has the SHA-256 {found}, expected is {sha256}; it was not "
        "kept"
    )


def _from_bucket(location: str, target: Path, setting: str) -> str:
    """Fetch an object, and return its digest."""
    folder, _, name = location.rpartition("/")
    try:
        bucket = store.Store(folder)
        entry = bucket.look(name)
        if entry is not None and entry.size > _LIMIT:
            raise UserError(f"{setting}weights: {location} is larger than {_LIMIT} bytes")
        return bucket.fetch(name, target)
    except OSError as error:
        raise UserError(f"{setting}weights: cannot fetch {location} ({error})") from error


def _download(location: str, target: Path, sha256: str, setting: str) -> None:
    if urllib.parse.urlsplit(location).scheme in store.SCHEMES:
        found = _from_bucket(location, target, setting)
        if found != sha256:
            target.unlink()
            raise _other_digest(location, found, sha256, setting)
        return
    opener = urllib.request.build_opener(_SameSchemes(setting))
    digest, size = hashlib.sha256(), 0
    try:
        with opener.open(location, timeout=_TIMEOUT_S) as source, aside(target) as file:
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                if size > _LIMIT:
                    raise UserError(f"{setting}weights: {location} is larger than {_LIMIT} bytes")
                digest.update(chunk)
                file.write(chunk)
            if digest.hexdigest() != sha256:
                raise _other_digest(location, digest.hexdigest(), sha256, setting)
    except (urllib.error.URLError, TimeoutError) as error:
        raise UserError(
            f"{setting}weights: cannot fetch {location} ({error}); give the path of a local copy"
        ) from error
