"""Data sets of images on disk: three kinds that agree, and files that are broken or hostile."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from pidistill.core.errors import PidistillError
from pidistill.files.datasets import FILE_LIMIT, LABELS_LIMIT, open_images

NAMES = [f"0000{i // 3}/img{i:08d}.png" for i in range(5)]
LABELS = [2, 0, 1, 1, 0]
RECORD = {"labels": [[name, label] for name, label in zip(NAMES, LABELS)][::-1]}


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


COLOUR, GREY = pixels(5, 6, 8, 3), pixels(5, 6, 8)


def encoded(image: Image.Image | np.ndarray, form: str = "png", **options) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, form, **options)
    return stream.getvalue()


def png(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    """A PNG of any header, whatever PIL would write."""
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), (b"IDAT", zlib.compress(data)), \
             (b"IEND", b"")
    packed = [struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
              for kind, body in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def make_folder(path, files: dict[str, bytes], record=None):
    path.mkdir(exist_ok=True)
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    if record is not None:
        (path / "dataset.json").write_text(record if isinstance(record, str) else json.dumps(record))
    return path


def make_zip(path, files: dict[str, bytes], record=None, method: int = zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        if record is not None:
            archive.writestr("dataset.json", record if isinstance(record, str) else json.dumps(record))
    return path


def make_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def patch(path, **fields: int):
    """Falsify a field of the only member's central record: its offset there and its format."""
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\1\2")
    for field, value in fields.items():
        offset, form = {"flags": (8, "<H"), "packed": (20, "<I"), "size": (24, "<I")}[field]
        struct.pack_into(form, data, start + offset, value)
    path.write_bytes(data)
    return path


def everything(path, batch: int = 2) -> torch.Tensor:
    return torch.cat(list(open_images(path).read_batches(batch)))


def refused(path, words: str, *where: str) -> str:
    """Opening or reading ends in one line with the words, the path, and the member if any."""
    with pytest.raises(PidistillError) as caught:
        everything(path)
    line = str(caught.value)
    assert "\n" not in line and re.search(words, line) and str(path) in line and all(name in line for name in where), line
    return line


@pytest.mark.parametrize("images", [COLOUR, GREY], ids=["colour", "grey"])
def test_the_three_kinds_agree(tmp_path, images):
    files = {name: encoded(image) for name, image in zip(NAMES, images)}
    shuffled = {name: files[name] for name in [NAMES[i] for i in (3, 0, 4, 2, 1)]} | {"README.txt": b"no image"}
    wide = images if images.ndim == 4 else images[..., None]
    paths = [make_folder(tmp_path / "a", shuffled, RECORD), make_zip(tmp_path / "a.zip", shuffled, RECORD),
             make_zip(tmp_path / "b.ZIP", shuffled, RECORD, zipfile.ZIP_DEFLATED),
             make_npz(tmp_path / "a.npz", images=images, labels=np.array(LABELS)),
             make_npz(tmp_path / "b.npz", arr_0=np.moveaxis(wide, -1, 1), arr_1=np.array(LABELS, np.uint8)),
             make_npz(tmp_path / "c.npz", x=np.asfortranarray(wide), y=np.array(LABELS, ">i4"))]
    np.savez_compressed(tmp_path / "d.npz", data=wide, labels=np.array(LABELS, np.uint64))
    expected = torch.from_numpy(np.moveaxis(wide, -1, 1).copy())
    for path in (*paths, tmp_path / "d.npz"):
        data = open_images(path)
        assert len(data) == 5 and data.shape == tuple(expected.shape[1:])
        assert data.labels.dtype == torch.int64 and data.labels.tolist() == LABELS
        for size in (1, 2, 5, 9):  # and again: the order is constant
            batches = list(data.read_batches(size))
            assert [len(x) for x in batches] == [min(size, 5 - i) for i in range(0, 5, size)]
            assert all(x.dtype == torch.uint8 and x.is_contiguous() for x in batches)
            assert torch.equal(torch.cat(batches), expected)
        assert data.read(3).dtype == np.uint8 and np.array_equal(data.read(3), wide[3])
    with pytest.raises(PidistillError, match="at least 1"):
        next(data.read_batches(0))


def test_endings_of_any_case_and_lossless_formats(tmp_path):
    image = COLOUR[0]
    files = {"a.PNG": encoded(image), "b.bmp": encoded(image, "bmp"), "c.WebP": encoded(image, "webp", lossless=True),
             "d.JPEG": encoded(image, "jpeg", quality=100, subsampling=0), "e.jpg": encoded(image, "jpeg")}
    x = everything(make_folder(tmp_path / "a", files)).float()
    assert len(x) == 5 and torch.equal(x[0], x[1]) and torch.equal(x[0], x[2]) and (x[3] - x[0]).abs().mean() < 3
    assert torch.equal(x, everything(make_zip(tmp_path / "a.zip", files)))


def test_palettes_become_colour_and_bits_grey(tmp_path):
    palette = Image.fromarray(COLOUR[0]).quantize(16)
    x = everything(make_folder(tmp_path / "a", {"a.png": encoded(palette), "b.png": encoded(palette.convert("RGB"))}))
    assert x.shape == (2, 3, 6, 8) and torch.equal(x[0], x[1])
    x = everything(make_folder(tmp_path / "b", {"a.png": encoded(Image.fromarray(GREY[0] > 99)), "b.png": encoded(GREY[0])}))
    assert x.shape == (2, 1, 6, 8) and torch.equal(x[0, 0], torch.from_numpy(np.uint8(255) * (GREY[0] > 99)))


def test_labels_may_be_absent_or_null(tmp_path):
    files = {name: encoded(image) for name, image in zip(NAMES, GREY)}
    for record in (None, {"labels": None}):
        assert open_images(make_folder(tmp_path / "a", files, record)).labels is None
        assert open_images(make_zip(tmp_path / "a.zip", files, record)).labels is None
    assert open_images(make_npz(tmp_path / "a.npz", images=GREY)).labels is None
    assert open_images(make_npz(tmp_path / "b.npz", arr_0=GREY, arr_1=np.zeros((2, 2)))).labels is None  # other statistics
    assert open_images(make_npz(tmp_path / "c.npz", arr_0=pixels(3, 1, 4, 3))).shape == (3, 1, 4)  # ambiguous: NHWC


PAIRS = RECORD["labels"]


@pytest.mark.parametrize("record, words", [
    ("{", "cannot be read"), ("\udcff", "cannot be read"), ("[" * 10**5, "cannot be read"), ("[1]", "must be"),
    ("{}", "must be"), ({"labels": 3}, "must be"), ({"labels": {"a": 1}}, "must be"),
    ({"labels": PAIRS[1:]}, "miss the file"), ({"labels": []}, "miss the file"),
    ({"labels": [*PAIRS, ["x.png", 1]]}, "missing file x.png"),
    ({"labels": [*PAIRS, PAIRS[0]]}, "entry 5"), ({"labels": [[n, float(v)] for n, v in PAIRS]}, "integer"),
    ({"labels": [[n, str(v)] for n, v in PAIRS]}, "integer"), ({"labels": [[n, True] for n, _ in PAIRS]}, "integer"),
    ({"labels": [[n, -1] for n, _ in PAIRS]}, "integer"), ({"labels": [[n, 2**63] for n, _ in PAIRS]}, "integer"),
    ({"labels": [[n, [v]] for n, v in PAIRS]}, "integer"), ({"labels": [n for n, _ in PAIRS]}, "entry 0"),
    ('{"labels": [["a", ' + "9" * 5000 + "]]}", "cannot be read")])
def test_wrong_labels_are_one_line(tmp_path, record, words):
    files = {name: encoded(image) for name, image in zip(NAMES, GREY)}
    text = (record if isinstance(record, str) else json.dumps(record)).encode(errors="surrogateescape")
    refused(make_folder(tmp_path / "a", files | {"dataset.json": text}), words, "dataset.json")
    refused(make_zip(tmp_path / "a.zip", files | {"dataset.json": text}), words, "dataset.json")


def test_a_huge_record_is_not_read(tmp_path):
    path = make_folder(tmp_path / "a", {"a.png": encoded(GREY[0]), "dataset.json": b""})
    os.truncate(path / "dataset.json", LABELS_LIMIT + 1)
    refused(path, "larger than 200 MB", "dataset.json")
    os.truncate(path / "a.png", FILE_LIMIT + 1)
    (path / "dataset.json").unlink()
    refused(path, "larger than 100 MB", "a.png")


ALPHA = Image.fromarray(pixels(6, 8, 4))


@pytest.mark.parametrize("data, words", [
    (b"", "cannot be read"), (b"GIF89a" + bytes(40), "cannot be read"), (pixels(500).tobytes(), "cannot be read"),
    (encoded(GREY[0])[:-1], "cannot be read"), (encoded(GREY[0])[:60], "cannot be read"),
    (encoded(GREY[0]).replace(b"IDAT", b"IDAT\0", 1), "cannot be read"),
    (encoded(COLOUR[0], "jpeg")[:-30], "cannot be read"), (encoded(COLOUR[0], "gif"), "cannot be read"),
    (encoded(ALPHA), "transparency"), (encoded(ALPHA.convert("LA")), "transparency"),
    (encoded(ALPHA, "webp"), "transparency"), (encoded(ALPHA.quantize(8)), "transparency"),
    (encoded(Image.fromarray(GREY[0]), transparency=3), "transparency"),
    (encoded(Image.fromarray(COLOUR[0]), transparency=(1, 2, 3)), "transparency"),
    (encoded(GREY[0].astype(np.uint16) * 257), "16 bits"), (png(2, 1, 16, 2, bytes(13)), "16 bits"),
    (png(2, 1, 16, 6, bytes(17)), "16 bits"), (encoded(Image.fromarray(COLOUR[0]).convert("CMYK"), "jpeg"), "mode CMYK"),
    (encoded(COLOUR[0], save_all=True, append_images=[Image.fromarray(COLOUR[1])]), "animated"),
    (png(4097, 1, 8, 0, bytes(4098)), "larger than 4096"), (png(60000, 60000, 8, 2, bytes(9)), "larger than 4096"),
    (png(10000, 10000, 8, 2, bytes(9)), "larger than 4096")], ids=lambda value: value if isinstance(value, str) else "")
def test_other_images_are_one_line_with_their_name(tmp_path, data, words):
    files = {"a.png": encoded(GREY[0]), "b/c.png": data}
    refused(make_folder(tmp_path / "a", files), words, "b/c.png")
    refused(make_zip(tmp_path / "a.zip", files, method=zipfile.ZIP_DEFLATED), words, "b/c.png")


def test_a_flipped_byte_of_a_png_is_found(tmp_path):
    whole = encoded(COLOUR[0])
    for i in range(len(whole)):
        path = make_folder(tmp_path / "a", {"a.png": whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1:]})
        refused(path, "cannot be read|transparency|16 bits|larger", "a.png")


def test_the_largest_size_is_read(tmp_path):
    assert open_images(make_folder(tmp_path / "a", {"a.png": png(4096, 1, 8, 0, bytes(4097))})).shape == (1, 1, 4096)


def test_mixed_sizes_and_kinds_name_the_first_that_differs(tmp_path):
    grey = {"a.png": encoded(GREY[0]), "b.png": encoded(GREY[1])}
    for other, words in ((GREY[0, :5], "grey 8x5"), (COLOUR[0], "colour 8x6")):
        files = grey | {"c.png": encoded(other), "d.png": encoded(other)}
        for path in (make_folder(tmp_path / "a", files), make_zip(tmp_path / "a.zip", files)):
            line = refused(path, f"c.png: {words}, but the first image, .*a.png, is grey 8x6")
            assert "d.png" not in line


def test_images_are_read_when_they_are_due(tmp_path):
    files = {f"{i}.png": encoded(GREY[i]) for i in range(4)} | {"4.png": b"broken"}
    for path in (make_folder(tmp_path / "a", files), make_zip(tmp_path / "a.zip", files)):
        batches = open_images(path).read_batches(2)
        assert len(next(batches)) == len(next(batches)) == 2
        with pytest.raises(PidistillError, match=re.escape("4.png")):
            next(batches)


@pytest.mark.parametrize("arrays, words", [
    ({"images": COLOUR / 255}, "uint8.*float64"), ({"arr_0": COLOUR.astype(np.float32)}, "uint8.*float32"),
    ({"images": np.array([object()])}, "Python objects"),
    ({"images": GREY, "labels": np.array([None] * 5)}, "Python objects"),
    ({"images": GREY[0]}, "uint8"), ({"images": GREY[:0]}, "uint8"), ({"images": np.uint8(3)}, "uint8"),
    ({"images": pixels(2, 6, 8, 4)}, "C 1 or 3"), ({"pictures": GREY}, "holds no array"), ({}, "holds no array"),
    ({"images": GREY, "labels": np.zeros(4, int)}, "5 integers"), ({"images": GREY, "y": np.zeros(5)}, "5 integers"),
    ({"images": GREY, "labels": np.zeros(5, bool)}, "5 integers"),
    ({"images": GREY, "labels": np.zeros((5, 1), int)}, "5 integers"),
    ({"images": GREY, "labels": np.full(5, -1)}, "from 0"),
    ({"images": GREY, "arr_1": np.full(5, 2**63, np.uint64)}, "from 0")])
def test_other_arrays_are_one_line(tmp_path, arrays, words):
    refused(make_npz(tmp_path / "a.npz", **arrays), words)


def test_paths_without_images(tmp_path):
    refused(make_folder(tmp_path / "a", {"b/c.txt": b""}), "holds no images")
    refused(make_zip(tmp_path / "a.zip", {"a.txt": b"", "b.png/": b""}), "holds no images")
    for name in ("x", "x.zip", "x.npz", "x" * 300, "x\ny"):
        with pytest.raises(PidistillError, match=r"does not exist|cannot be read") as caught:
            open_images(tmp_path / name)
        assert "\n" not in str(caught.value)
    (tmp_path / "a.png").write_bytes(encoded(GREY[0]))
    refused(tmp_path / "a.png", "a folder, a .zip or an .npz")
    for ending in ("zip", "npz"):
        for data in (b"", b"PK\3\4", encoded(GREY[0]), pixels(3000).tobytes()):
            (tmp_path / f"b.{ending}").write_bytes(data)
            refused(tmp_path / f"b.{ending}", "cannot be read")


def test_links_and_pipes(tmp_path):
    path = make_folder(tmp_path / "a", {"a.png": encoded(GREY[0]), "b/c.png": encoded(GREY[1])})
    (path / "b" / "loop").symlink_to(path)
    (path / "d.png").symlink_to(path / "a.png")
    assert len(everything(path)) == 3
    (path / "e.png").symlink_to("e.png")
    refused(path, "cannot be read", "e.png")
    (path / "e.png").unlink()
    os.mkfifo(path / "e.png")
    refused(path, "no regular file", "e.png")


@pytest.mark.parametrize("name", ["../../up.png", "a/../../up.png", "..", "/etc/root.png", "C:\\x.png", "..\\up.png",
                                  "\\\\host\\x.png", "a.png\0.exe"])
def test_names_that_lead_out_of_an_archive_are_refused(tmp_path, name):
    (tmp_path / "in").mkdir()
    path = make_zip(tmp_path / "in" / "a.zip", {"a.png": encoded(GREY[0]), name.replace("\0", "#"): encoded(GREY[0])})
    path.write_bytes(path.read_bytes().replace(name.replace("\0", "#").encode(), name.encode()))  # zipfile cuts at the NUL
    refused(path, "leads out of the archive")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.zip", "in"]


def test_links_in_an_archive_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("a.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    refused(tmp_path / "a.zip", "a.png is a link")


def test_an_archive_of_too_many_members_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("pidistill.files.archives.MEMBERS", 3)
    assert len(everything(make_zip(tmp_path / "a.zip", {f"{i}.png": encoded(GREY[0]) for i in range(3)}))) == 3
    refused(make_zip(tmp_path / "a.zip", {f"{i}.png": encoded(GREY[0]) for i in range(4)}), "4 members, more than 3")


def test_odd_names_in_an_archive_are_only_names(tmp_path):
    path, names = tmp_path / "a.zip", ["a..b.png", "a\n\x1b[31m.png", "b/...png"]
    assert len(everything(make_zip(path, {name: encoded(GREY[0]) for name in names}))) == 3
    line = refused(make_zip(path, {names[0]: encoded(GREY[0]), names[1]: b""}), "cannot be read", "[31m.png")
    assert line.isprintable()
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", encoded(GREY[0]))
        archive.writestr("a.png", encoded(GREY[1]))
    refused(path, "same name")


def test_members_that_cannot_be_read(tmp_path):
    whole, path = {"a.png": encoded(GREY[0])}, tmp_path / "a.zip"
    refused(patch(make_zip(path, whole), flags=1), "encrypted", "a.png")
    refused(patch(make_npz(tmp_path / "a.npz", images=GREY), flags=1), "encrypted", "images")
    refused(make_zip(path, whole, method=zipfile.ZIP_LZMA), "stored or deflated", "a.png")
    refused(make_zip(path, whole, method=zipfile.ZIP_BZIP2), "stored or deflated", "a.png")
    refused(patch(make_zip(path, whole), size=10), "cannot be read", "a.png")
    data = make_zip(path, whole).read_bytes()
    path.write_bytes(data.replace(b"IDAT", b"IDOT"))  # the archive's checksum finds it
    refused(path, "cannot be read", "a.png")


def test_bombs_are_refused_before_they_are_inflated(tmp_path, monkeypatch):
    hundred = make_zip(tmp_path / "a.zip", {"a.png": bytes(FILE_LIMIT + 1)}, method=zipfile.ZIP_DEFLATED)
    claims = make_zip(tmp_path / "b.zip", {"a.png": bytes(1000)}, method=zipfile.ZIP_DEFLATED)
    patch(claims, size=90 * 10**6)
    packed = patch(make_zip(tmp_path / "c.zip", {"a.png": bytes(1000)}, method=zipfile.ZIP_DEFLATED), size=90 * 10**6,
                   packed=10**8)
    stored = patch(make_zip(tmp_path / "d.zip", {"a.png": bytes(1000)}), size=10**6)
    less = patch(make_zip(tmp_path / "e.zip", {"a.png": bytes(FILE_LIMIT)}, method=zipfile.ZIP_DEFLATED), size=9)
    record = make_zip(tmp_path / "f.zip", {"a.png": encoded(GREY[0]), "dataset.json": b""})
    with zipfile.ZipFile(record, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", encoded(GREY[0]))
        with archive.open("dataset.json", "w") as file:
            for _ in range(201):
                file.write(bytes(10**6))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 100, 100)})
    npz = make_zip(tmp_path / "a.npz", {"images.npy": header.getvalue() + bytes(1000)}, method=zipfile.ZIP_DEFLATED)
    full = make_zip(tmp_path / "b.npz", {"images.npy": header.getvalue()}, method=zipfile.ZIP_DEFLATED)
    patch(full, size=2**32 - 2)
    tracemalloc.start()
    refused(hundred, "larger than 100 MB", "a.png")
    for path in (claims, packed, stored):
        refused(path, "more than its", "a.png")
    refused(less, "cannot be read", "a.png")
    refused(record, "larger than 200 MB", "dataset.json")
    refused(npz, "its header says", "images")
    refused(full, "more than its", "images")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (100, 100, 100)})
    black = make_zip(tmp_path / "c.npz", {"images.npy": header.getvalue() + bytes(10**6)}, method=zipfile.ZIP_DEFLATED)
    assert not everything(black).any()  # as much as deflate can is no bomb
    monkeypatch.setattr("pidistill.files.archives.LARGE", 10**5)
    refused(black, "more than its", "images")  # but in a large file it is


@pytest.mark.parametrize("header", [
    b"(" * 3000, b"a" * 60000, b"{}\n", b"\xff\n", b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n",
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8, -8, 3)}\n",
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (0, 8, 8, 3)}\n"])
def test_hostile_headers(tmp_path, header):
    for version in (b"\1\0" + struct.pack("<H", len(header)), b"\2\0" + struct.pack("<I", len(header)), b"\3\0\1\0\0\0",
                    b"\2\0\xff\xff\xff\xff", b"\7\7"):
        refused(make_zip(tmp_path / "a.npz", {"images.npy": b"\x93NUMPY" + version + header}), "")


@pytest.mark.parametrize("kind", ["zip", "npz"])
def test_truncated_and_damaged_archives(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        make_zip(path, {name: encoded(image) for name, image in zip(NAMES, COLOUR)}, RECORD, zipfile.ZIP_DEFLATED)
    else:
        np.savez_compressed(path, images=COLOUR, labels=np.array(LABELS))
    whole, expected = path.read_bytes(), everything(path)
    rng = np.random.default_rng(1)
    cuts = [whole[:size] for size in np.linspace(0, len(whole) - 1, 40).astype(int)]
    for i in rng.integers(0, len(whole), 200):
        cuts.append(whole[:i] + bytes([whole[i] ^ (1 << rng.integers(8))]) + whole[i + 1:])
    wrong = 0
    for data in cuts:
        path.write_bytes(data)
        try:
            found = everything(path)
            # a flipped byte of a member's name may lose or move that member, never change its pixels
            assert all(any(torch.equal(image, other) for other in expected) for image in found)
        except PidistillError as error:
            wrong += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert wrong > 100


def test_pil_is_left_as_it_was(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    refused(make_folder(tmp_path / "a", {"a.png": png(60000, 60000, 8, 2, b"")}), "larger")
    assert before == Image.MAX_IMAGE_PIXELS
