"""Object stores: S3, Google Cloud Storage, Azure. This is the only file that knows the library.

A `Store` is a folder in a bucket, such as `s3://bucket/team`. Its keys are relative paths with
slashes. A write is whole or absent: in the store by nature, on the disk by `files/atomic.py`.
Credentials and the endpoint come from the environment, by the names that each cloud's own tools use
(AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME).

A local folder may be the copy of a folder in a store. `attach` writes down of which, and
`origin_of` tells it to whoever finds something missing there.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from gan_train.errors import UserError
from gan_train.files.atomic import aside, write_aside
from gan_train.files.locks import locked

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs", "az")
_ORIGIN = ".origin"
_BLOCK = 8 << 20
_RETRIES = 10
_PATIENCE = timedelta(minutes=3)


class StoreError(OSError):
    """A store refused, or could not be reached although it was tried again for minutes."""


@dataclass(frozen=True)
class Entry:
    """An object: its key, its size in bytes, a tag that changes with every write, and the time of
    the last one in seconds since 1970."""

    key: str
    size: int
    tag: str
    modified: float


def is_url(place: str) -> bool:
    """Whether a place is an address such as `s3://bucket/folder`, and not a path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", place) is not None


def path_of(place: str) -> Path | None:
    """The path of a place on this machine, for a plain path or a `file://` address; None for a
    store. Raises UserError for any other address."""
    if not is_url(place):
        return Path(place)
    parts = urlsplit(place)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    if parts.scheme in SCHEMES and parts.netloc:
        return None
    allowed = ", ".join(f"{scheme}://bucket/folder" for scheme in SCHEMES)
    raise UserError(f"{place} is no place for files; allowed: a path, file:///path, {allowed}")


def local_copy(url: str) -> Path:
    """The folder in which this machine keeps what it has of a store: below GAN_TRAIN_CACHE, which
    by default is `gan-train` in the user's cache folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = Path(os.environ.get("GAN_TRAIN_CACHE") or f"{caches}/gan-train").expanduser()
    digest = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:12]
    return root.resolve() / f"{urlsplit(url).netloc}-{digest}"


def brought(place: str) -> Path:
    """The path of a folder; one in a bucket is copied to this machine, as it is now."""
    path = path_of(place)
    if path is not None:
        return path
    folder = local_copy(place)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        for entry in Store(place).entries():
            Store(place).fetch(entry.key, folder / entry.key)
    return folder


class Store:
    """A folder in a bucket.

    Methods raise `FileNotFoundError` for a key that is missing where one is needed, and
    `StoreError` for a store that does not do what it is asked for.
    """

    def __init__(self, url: str) -> None:
        assert path_of(url) is None
        self.url = url.rstrip("/")

    def __truediv__(self, folder: str) -> Store:
        """A folder within this one."""
        return Store(f"{self.url}/{folder}")

    @cached_property
    def _objects(self) -> ObjectStore:
        from obstore.store import from_url

        endpoint = os.environ.get("AWS_ENDPOINT_URL", "")
        with self._told(""):
            return from_url(
                self.url,
                client_options={
                    "timeout": timedelta(seconds=60),
                    "connect_timeout": timedelta(seconds=10),
                    # whoever names an endpoint without TLS means it
                    "allow_http": endpoint.startswith("http://"),
                },
                retry_config={"max_retries": _RETRIES, "retry_timeout": _PATIENCE},
            )

    @contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """Turn the library's errors into this module's."""
        from obstore.exceptions import BaseError

        try:
            yield
        except BaseError as error:
            first = str(error).splitlines()[0][:300]
            raise StoreError(f"{self.url}/{key}: {first}") from error

    def beside(self, folder: str) -> Store:
        """A folder that lies where this one does."""
        return Store(f"{self.url.rpartition('/')[0]}/{folder}")

    def check(self) -> None:
        """Raise UserError unless the store answers, and lets itself be listed."""
        try:
            self.entries(most=1)
        except StoreError as error:
            raise UserError(
                f"{error}; check the address, and the credentials and endpoint in the environment "
                "(for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL)"
            ) from error

    # ---- reading -------------------------------------------------------------------------------

    def look(self, key: str) -> Entry | None:
        """What lies at a key; None if nothing does."""
        import obstore

        try:
            with self._told(key):
                return _entry(obstore.head(self._objects, key))
        except FileNotFoundError:
            return None

    def entries(self, folder: str = "", *, after: str = "", most: int | None = None) -> list[Entry]:
        """All objects below a folder, sorted by key. With `after`, only keys behind that one; with
        `most`, at most some of them."""
        import obstore

        found: list[Entry] = []
        with self._told(folder):
            pages = obstore.list(self._objects, prefix=folder or None, offset=after or None)
            for page in pages:
                found += map(_entry, page)
                if most is not None and len(found) >= most:
                    break
        return sorted(found, key=lambda entry: entry.key)

    def folders(self, folder: str) -> list[str]:
        """The names of the folders in a folder, sorted."""
        import obstore

        with self._told(folder):
            found = obstore.list_with_delimiter(self._objects, prefix=folder or None)
        return sorted(Path(prefix).name for prefix in found["common_prefixes"])

    def read(self, key: str) -> bytes:
        """The content of an object."""
        import obstore

        with self._told(key):
            return bytes(obstore.get(self._objects, key).bytes())

    def fetch(self, key: str, path: Path) -> str:
        """Bring an object to a file, which appears when it is whole; returns its SHA-256."""
        import obstore

        digest = hashlib.sha256()
        with self._told(key), aside(path) as file:
            for block in obstore.get(self._objects, key).stream(min_chunk_size=_BLOCK):
                digest.update(block)
                file.write(block)
        return digest.hexdigest()

    # ---- writing -------------------------------------------------------------------------------

    def write(self, key: str, data: bytes) -> None:
        """Set the content of an object."""
        import obstore

        with self._told(key):
            obstore.put(self._objects, key, data)

    def send(self, path: Path, key: str) -> None:
        """Copy a file to an object, in several parts if it is large."""
        import obstore

        with self._told(key), path.open("rb") as file:
            obstore.put(self._objects, key, file)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one; returns whether it was written. Of several that try,
        one succeeds."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._told(key):
            try:
                obstore.put(self._objects, key, data, mode="create")
            except (AlreadyExistsError, PreconditionError):
                return False
        return True

    def replace(self, key: str, data: bytes, tag: str) -> bool:
        """Write an object if it still has this tag; returns whether it was written."""
        import obstore
        from obstore.exceptions import PreconditionError

        with self._told(key):
            try:
                obstore.put(self._objects, key, data, mode={"e_tag": tag})
            except (PreconditionError, FileNotFoundError):
                return False
        return True

    def delete(self, key: str) -> None:
        """Remove an object, if there is one."""
        import obstore

        with self._told(key), suppress(FileNotFoundError):
            obstore.delete(self._objects, key)


def _entry(meta: Any) -> Entry:
    modified = meta["last_modified"].timestamp()
    return Entry(meta["path"], meta["size"], meta["e_tag"] or "", modified)


# ---- local folders that are copies ---------------------------------------------------------------


def attach(folder: Path, store: Store) -> None:
    """Write down that a local folder is a copy of what lies in the store."""
    folder.mkdir(parents=True, exist_ok=True)
    if origin_of(folder) is None:
        write_aside(folder / _ORIGIN, store.url.encode())


def origin_of(folder: Path) -> Store | None:
    """The store that a local folder is a copy of; None for any other folder."""
    try:
        return Store((folder / _ORIGIN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
