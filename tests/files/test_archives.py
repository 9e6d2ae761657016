"""ZIP and NPZ files that are broken or hostile are expect_refusal before they cost anything."""

from __future__ import annotations

import io
import stat
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from pidistill.core.errors import PidistillError
from pidistill.files.archives import blame, catch_damage, open_archive, read_array, read_array_header, read_arrays
from pidistill.files.datasets import FILE_LIMIT
from tests.image_files import GREY, encode, expect_refusal, make_npz, make_zip, patch, read_all


@pytest.mark.parametrize("name", ["../../up.png", "a/../../up.png", "..", "/etc/root.png", "C:\\x.png", "..\\up.png",
                                  "\\\\host\\x.png", "a.png\0.exe"])
def test_names_that_lead_out_of_an_archive_are_refused(tmp_path, name):
    (tmp_path / "in").mkdir()
    path = make_zip(tmp_path / "in" / "a.zip", {"a.png": encode(GREY[0]), name.replace("\0", "#"): encode(GREY[0])})
    path.write_bytes(path.read_bytes().replace(name.replace("\0", "#").encode(), name.encode()))  # zipfile cuts at the NUL
    expect_refusal(path, "leads out of the archive")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.zip", "in"]


def test_links_in_an_archive_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("a.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    expect_refusal(tmp_path / "a.zip", "a.png is a link")


def test_an_archive_of_too_many_members_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("pidistill.files.archives.MEMBERS", 3)
    assert len(read_all(make_zip(tmp_path / "a.zip", {f"{i}.png": encode(GREY[0]) for i in range(3)}))) == 3
    expect_refusal(make_zip(tmp_path / "a.zip", {f"{i}.png": encode(GREY[0]) for i in range(4)}), "4 members, more than 3")


def test_odd_names_in_an_archive_are_only_names(tmp_path):
    path, names = tmp_path / "a.zip", ["a..b.png", "a\n\x1b[31m.png", "b/...png"]
    assert len(read_all(make_zip(path, {name: encode(GREY[0]) for name in names}))) == 3
    line = expect_refusal(make_zip(path, {names[0]: encode(GREY[0]), names[1]: b""}), "cannot be read", "[31m.png")
    assert line.isprintable()
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", encode(GREY[0]))
        archive.writestr("a.png", encode(GREY[1]))
    expect_refusal(path, "same name")


def test_members_that_cannot_be_read(tmp_path):
    whole, path = {"a.png": encode(GREY[0])}, tmp_path / "a.zip"
    expect_refusal(patch(make_zip(path, whole), flags=1), "encrypted", "a.png")
    expect_refusal(patch(make_npz(tmp_path / "a.npz", images=GREY), flags=1), "encrypted", "images")
    expect_refusal(make_zip(path, whole, method=zipfile.ZIP_LZMA), "stored or deflated", "a.png")
    expect_refusal(make_zip(path, whole, method=zipfile.ZIP_BZIP2), "stored or deflated", "a.png")
    expect_refusal(patch(make_zip(path, whole), size=10), "cannot be read", "a.png")
    data = make_zip(path, whole).read_bytes()
    path.write_bytes(data.replace(b"IDAT", b"IDOT"))  # the archive's checksum finds it
    expect_refusal(path, "cannot be read", "a.png")


def test_bombs_are_refused_before_they_are_inflated(tmp_path, monkeypatch):
    hundred = make_zip(tmp_path / "a.zip", {"a.png": bytes(FILE_LIMIT + 1)}, method=zipfile.ZIP_DEFLATED)
    claims = make_zip(tmp_path / "b.zip", {"a.png": bytes(1000)}, method=zipfile.ZIP_DEFLATED)
    patch(claims, size=90 * 10**6)
    packed = patch(make_zip(tmp_path / "c.zip", {"a.png": bytes(1000)}, method=zipfile.ZIP_DEFLATED), size=90 * 10**6,
                   packed=10**8)
    stored = patch(make_zip(tmp_path / "d.zip", {"a.png": bytes(1000)}), size=10**6)
    less = patch(make_zip(tmp_path / "e.zip", {"a.png": bytes(FILE_LIMIT)}, method=zipfile.ZIP_DEFLATED), size=9)
    record = make_zip(tmp_path / "f.zip", {"a.png": encode(GREY[0]), "dataset.json": b""})
    with zipfile.ZipFile(record, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", encode(GREY[0]))
        with archive.open("dataset.json", "w") as file:
            for _ in range(201):
                file.write(bytes(10**6))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 100, 100)})
    npz = make_zip(tmp_path / "a.npz", {"images.npy": header.getvalue() + bytes(1000)}, method=zipfile.ZIP_DEFLATED)
    full = make_zip(tmp_path / "b.npz", {"images.npy": header.getvalue()}, method=zipfile.ZIP_DEFLATED)
    patch(full, size=2**32 - 2)
    tracemalloc.start()
    expect_refusal(hundred, "larger than 100 MB", "a.png")
    for path in (claims, packed, stored):
        expect_refusal(path, "more than its", "a.png")
    expect_refusal(less, "cannot be read", "a.png")
    expect_refusal(record, "larger than 200 MB", "dataset.json")
    expect_refusal(npz, "its header says", "images")
    expect_refusal(full, "more than its", "images")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (100, 100, 100)})
    black = make_zip(tmp_path / "c.npz", {"images.npy": header.getvalue() + bytes(10**6)}, method=zipfile.ZIP_DEFLATED)
    assert not read_all(black).any()  # as much as deflate can is no bomb
    monkeypatch.setattr("pidistill.files.archives.LARGE", 10**5)
    expect_refusal(black, "more than its", "images")  # but in a large file it is


@pytest.mark.parametrize("header", [
    b"(" * 3000, b"a" * 60000, b"{}\n", b"\xff\n", b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n",
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8, -8, 3)}\n",
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (0, 8, 8, 3)}\n"])
def test_hostile_headers(tmp_path, header):
    for version in (b"\1\0" + struct.pack("<H", len(header)), b"\2\0" + struct.pack("<I", len(header)), b"\3\0\1\0\0\0",
                    b"\2\0\xff\xff\xff\xff", b"\7\7"):
        expect_refusal(make_zip(tmp_path / "a.npz", {"images.npy": b"\x93NUMPY" + version + header}), "")


def test_errors_of_any_kind_name_the_place():
    for error, detail in ((zipfile.BadZipFile("x"), "BadZipFile"), (OSError(5, "Input/output error"), "Input/output error"),
                          (OSError("odd file"), "odd file"), (MemoryError(), "MemoryError")):
        with pytest.raises(PidistillError) as caught, catch_damage("a.zip: b"):
            raise error
        assert str(caught.value) == f"a.zip: b: cannot be read: damaged, truncated or of another format ({detail})"
    with pytest.raises(PidistillError, match=r"^a\.zip: is odd$"), catch_damage("elsewhere"):
        raise blame("a.zip", "is odd")  # which says already where


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.eye(3, 2, dtype=np.float16)),
                                   np.array(7, np.int64), np.zeros((0, 4), np.uint8)], ids=lambda array: str(array.shape))
def test_arrays_are_read_as_they_were_written(tmp_path, array):
    archive, members = open_archive(make_npz(tmp_path / "a.npz", x=array))
    with archive:
        assert list(members) == ["x.npy"]
        assert read_array_header(archive, members["x.npy"], "x") == (array.shape, array.dtype)
        np.testing.assert_array_equal(read_array(archive, members["x.npy"], "x"), array)


def test_only_the_named_arrays_are_read(tmp_path):
    path = make_npz(tmp_path / "a.npz", x=np.ones(2), y=np.zeros(3), z=np.array([None]))  # z would have to be unpickled
    arrays = read_arrays(path, ("y", "x", "w"))
    assert list(arrays) == ["y", "x"] and arrays["x"].tolist() == [1, 1] and arrays["y"].tolist() == [0, 0, 0]
    with pytest.raises(PidistillError, match=r"a\.npz: z: an array of Python objects"):
        read_arrays(path, ("x", "z"))
