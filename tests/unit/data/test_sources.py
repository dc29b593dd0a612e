"""Sources list the same content alike, and let nothing in that leaves them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import multiprocessing
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from gan_train.data.compressed import plain_source
from gan_train.data.sharding import shard
from gan_train.data.sources import (
    SourceFile,
    UnreadableFile,
    local_place,
    open_source,
)
from gan_train.errors import UserError
from gan_train.files.store import Store
from tests.unit.data.pictures import config, write_folder, write_zip

FILES = {"b/2.png": b"two", "a/1.png": b"one", "a/10.png": b"", "c.txt": b"text" * 1000}
JUNK = {".DS_Store": b"x", "__MACOSX/a/._1.png": b"x", "a/.hidden.png": b"x", "a/Thumbs.db": b"x"}


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("./a")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def listing(path: Path) -> list[tuple[str, bytes]]:
    source = open_source(path)
    return [(file.path, source.read(file)) for file in source.files()]


def test_folder_zip_and_tar_list_the_same(tmp_path: Path) -> None:
    content = {**FILES, **JUNK}
    sources = [
        write_folder(tmp_path / "folder", content),
        write_zip(tmp_path / "a.zip", content),
        write_tar(tmp_path / "a.tar", dict(reversed(content.items()))),
    ]
    identities = []
    for path in sources:
        assert listing(path) == sorted(FILES.items())
        identities.append([file[:3] for file in open_source(path).files()])
    assert identities[0] == identities[1] == identities[2]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_tars_are_unpacked_aside_once(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    packed = tmp_path / "a.tar.packed"
    packed.write_bytes(pack(write_tar(tmp_path / "a.tar", FILES).read_bytes()))
    plain = plain_source(packed, tmp_path / "w")
    assert listing(plain) == sorted(FILES.items())
    written = plain.stat().st_mtime_ns
    assert plain_source(packed, tmp_path / "w") == plain
    assert plain.stat().st_mtime_ns == written
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(UserError, match="damaged"):
        plain_source(packed, tmp_path / "w")
    assert list((tmp_path / "w" / "sources").glob("*.tar*")) == [plain]


def test_listing_does_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    write_folder(tmp_path / "one", FILES)
    write_folder(tmp_path / "two", dict(reversed(FILES.items())))
    assert open_source(tmp_path / "one").files() == open_source(tmp_path / "two").files()


@pytest.mark.fault(
    "members of a zip or tar that climb out of it, or begin at the root",
    "the source is refused, and the member named; nothing is unpacked",
)
@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png", "a/../../out.png", "C:/out.png"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_paths_that_leave_an_archive_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / f"evil.{kind}"
    if kind == "zip":
        write_zip(path, {"a/1.png": b"one", name: b"evil"})
    else:
        with tarfile.open(path, "w") as tar:
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(UserError, match="leaves the source"):
        open_source(path).files()


def test_backslashes_that_leave_a_zip_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leaves the source"):
        open_source(write_zip(tmp_path / "evil.zip", {"a\\..\\..\\out.png": b"evil"})).files()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("a/link.png")
    member.type, member.linkname = kind, "a/1.png"
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.addfile(member)
    with pytest.raises(UserError, match=r"a/link\.png: a link or a device"):
        open_source(tmp_path / "evil.tar").files()


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_a_zip_are_refused(tmp_path: Path, mode: int) -> None:
    info = zipfile.ZipInfo("a/link.png")
    info.external_attr = (mode | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match=r"a/link\.png: a link or a device"):
        open_source(tmp_path / "evil.zip").files()


def test_what_took_a_file_s_place_after_listing_is_not_read(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "root", FILES)
    outside = write_folder(tmp_path / "outside", FILES)
    source = open_source(root)
    (listed,) = (file for file in source.files() if file.path == "a/1.png")
    assert source.read(listed) == b"one"
    place = root / "a" / "1.png"

    place.write_bytes(b"one and more")  # begins as it was listed
    with pytest.raises(UserError, match="changed"):
        source.read(listed)
    place.unlink()
    os.mkfifo(place)  # nobody writes to it: to wait for it would be to wait for ever
    with pytest.raises(UserError, match="changed"):
        source.read(listed)
    place.unlink()
    with pytest.raises(UserError, match="gone"):
        source.read(listed)

    shutil.rmtree(root / "a")
    (root / "a").symlink_to(outside / "a")  # the very same bytes, elsewhere
    with pytest.raises(UserError, match="leaves"):
        source.read(listed)


@pytest.mark.fault(
    "links out of a folder, to folders and to nothing, and FIFOs in it",
    "the source is refused, and the file named; nothing outside is read, and nothing waits",
)
def test_links_of_a_folder(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "root", FILES)
    outside = write_folder(tmp_path / "root-outside", {"1.png": b"secret"})

    (root / "within.png").symlink_to(root / "a" / "1.png")
    assert ("within.png", b"one") in listing(root)

    (root / "out.png").symlink_to(outside / "1.png")
    with pytest.raises(UserError, match=r"out\.png: a link that leaves"):
        open_source(root).files()
    with pytest.raises(UserError, match="leaves"):  # a file that became a link after listing
        open_source(root).read(SourceFile("out.png", 6, 0))
    (root / "out.png").unlink()

    (root / "folder").symlink_to(outside)
    with pytest.raises(UserError, match="folder: a link to a folder"):
        open_source(root).files()
    (root / "folder").unlink()

    (root / "broken.png").symlink_to(root / "nothing")
    with pytest.raises(UserError, match=r"broken\.png: a broken link"):
        open_source(root).files()
    (root / "broken.png").unlink()

    os.mkfifo(root / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png: not a file"):
        open_source(root).files()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_twins_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.png", b"one")
        archive.writestr("1.png", b"two")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("1.png"))
        tar.addfile(tarfile.TarInfo("./1.png"))
    for name in ("a.zip", "a.tar"):
        with pytest.raises(UserError, match=r"1\.png: stands there twice"):
            open_source(tmp_path / name).files()


def test_a_damaged_member_of_a_zip_is_one_bad_file(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"1.png": b"first" * 9, "2.png": b"second" * 9})
    data = path.read_bytes()
    path.write_bytes(data.replace(b"first" * 9, b"forst" * 9))
    source = open_source(path)
    first, second = source.files()
    with pytest.raises(UnreadableFile, match="damaged in the zip"):
        source.read(first)
    assert source.read(second) == b"second" * 9


def zip_with(path: Path, method: int = 0, **changes: bytes) -> Path:
    """A zip of one file, with other bytes in its directory ("PK\\1\\2") or elsewhere: `changes` are
    named by the record and the byte in it, such as `central_28`."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.png", b"content" * 20)
    data = bytearray(path.read_bytes())
    records = {"local": b"PK\3\4", "central": b"PK\1\2", "end": b"PK\5\6"}
    for place, value in changes.items():
        record, _, byte = place.partition("_")
        at = data.index(records[record]) + int(byte)
        data[at : at + len(value)] = value
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"central_28": b"\0", "central_32": b"\5"}, id="a file without a name"),
        pytest.param({"end_16": b"\xff"}, id="a file that begins before the zip"),
        pytest.param({"central_20": b"\0\0\1"}, id="a file that ends behind the zip"),
        pytest.param({"central_6": b"\xff"}, id="a version that nobody knows"),
        pytest.param(
            {"central_8": b"\0\x08", "central_46": b"\xff"}, id="a name that is not UTF-8"
        ),
    ],
)
def test_damaged_zips_are_refused(tmp_path: Path, changes: dict[str, bytes]) -> None:
    with pytest.raises(UserError, match=r"damaged|leaves the source"):
        open_source(zip_with(tmp_path / "a.zip", **changes)).files()


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        pytest.param(0, {"central_8": b"\0\x08", "local_30": b"\xff"}, id="the name before it"),
        pytest.param(0, {"central_8": b"\x20"}, id="a patch"),
        pytest.param(zipfile.ZIP_BZIP2, {"local_40": b"\xff\xff\xff"}, id="its packed bytes"),
        pytest.param(zipfile.ZIP_LZMA, {"local_42": b"\xff\xff\xff\xff"}, id="its dictionary"),
    ],
)
def test_a_file_of_a_zip_that_cannot_be_unpacked_is_one_bad_file(
    tmp_path: Path, method: int, changes: dict[str, bytes]
) -> None:
    source = open_source(zip_with(tmp_path / "a.zip", method, **changes))
    (file,) = source.files()
    with pytest.raises(UnreadableFile, match=r"damaged in the zip|too much memory"):
        source.read(file)


@pytest.mark.fault(
    "a tar of images cut at a member or within one, zeroed or with another header",
    "the source is refused before anything is written",
)
def test_damaged_tars_are_refused_though_they_read_without_an_error(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", FILES).read_bytes()
    second = whole.index(b"./a/1.png")
    cases = {
        "boundary": whole[:second],
        "within": whole[: second + 700],
        "zeroed": whole[:second] + bytes(512) + whole[second + 512 :],
        "header": whole[:second] + b"Z" + whole[second + 1 :],
        "text": b"no tar at all" * 100,
    }
    for name, data in cases.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(data)
        with pytest.raises(UserError, match="damaged"):
            open_source(path).files()


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_a_source_that_changes_is_noticed(tmp_path: Path, kind: str) -> None:
    write = {"folder": write_folder, "zip": write_zip, "tar": write_tar}[kind]
    path = write(tmp_path / f"source.{kind}", FILES)
    listed = open_source(path).files()
    write(path, {**FILES, "a/1.png": b"ONE"})
    os.utime(path, ns=(1, 1))  # another time, so that the file is opened anew
    with pytest.raises(UserError, match="changed while it was read"):
        open_source(path).read(next(file for file in listed if file.path == "a/1.png"))


def place_of_source(path: Path) -> int:
    return id(open_source(path))


def test_an_open_archive_is_not_shared_with_a_forked_process(tmp_path: Path) -> None:
    """Both would read from one position of one open file."""
    path = write_zip(tmp_path / "a.zip", FILES)
    opened = open_source(path)
    assert open_source(path) is opened
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        assert pool.submit(place_of_source, path).result() != id(opened)


def test_missing_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        plain_source(tmp_path / "nothing", tmp_path)


# ---- sources in a bucket -------------------------------------------------------------------------


def test_a_folder_in_a_bucket_lists_the_same(
    in_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "folder", {**FILES, **JUNK})
    store = Store(in_bucket)
    for path in folder.rglob("*"):
        if path.is_file():
            store.send(path, path.relative_to(folder).as_posix())
    place = local_place(in_bucket)
    assert listing(place) == listing(folder)
    assert open_source(place).files() == open_source(folder).files()

    reads: list[str] = []
    read = Store.read
    monkeypatch.setattr(Store, "read", lambda self, key: (reads.append(key), read(self, key))[1])
    store.write("a/1.png", b"another")
    (changed,) = set(open_source(place).files()) - set(open_source(folder).files())
    assert changed.path == "a/1.png" and reads == ["a/1.png"], "only what is new is read"
    store.write("a/1.png", b"once more")
    with pytest.raises(UserError, match="changed while it was read"):
        open_source(place).read(changed)


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
def test_an_archive_in_a_bucket(in_bucket: str, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"images.{ending}"
    write = write_zip if ending == "zip" else write_tar
    write(tmp_path / "plain", FILES)
    data = (tmp_path / "plain").read_bytes()
    path.write_bytes(gzip.compress(data) if ending == "tar.gz" else data)
    store = Store(in_bucket)
    store.send(path, path.name)
    expected = listing(plain_source(path, tmp_path / "w"))
    assert (
        listing(plain_source(local_place(f"{in_bucket}/{path.name}"), tmp_path / "w")) == expected
    )


def test_a_bucket_without_images(in_bucket: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no images"):
        shard(config(Path("x")).model_copy(update={"source": f"{in_bucket}/none"}), tmp_path)
