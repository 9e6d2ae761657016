"""Data sets of images on disk: three kinds that agree, and files that are broken or hostile."""

from __future__ import annotations

import json
import os
import re
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import dequantise, quantise
from pidistill.files import datasets, image_set
from pidistill.files.datasets import FILE_LIMIT, LABELS_LIMIT, load_digits, open_images
from tests.image_files import (
    COLOUR,
    GREY,
    LABELS,
    NAMES,
    RECORD,
    encode,
    expect_refusal,
    make_folder,
    make_npz,
    make_zip,
    png,
    random_pixels,
    read_all,
)


@pytest.mark.parametrize("images", [COLOUR, GREY], ids=["colour", "grey"])
def test_the_three_kinds_agree(tmp_path, images):
    files = {name: encode(image) for name, image in zip(NAMES, images)}
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
        for k in (3, 0, 3):
            sample = data.sample(k)
            assert sample["y"].dtype == np.float32 and np.array_equal(sample["y"], dequantise(expected[k]).numpy())
            assert sample["labels"].dtype == np.int64 and sample["labels"] == LABELS[k]
        assert data.num_classes == 3 and data.licence == "unknown"
    with pytest.raises(PidistillError, match="at least 1"):
        next(data.read_batches(0))


def test_endings_of_any_case_and_lossless_formats(tmp_path):
    image = COLOUR[0]
    files = {"a.PNG": encode(image), "b.bmp": encode(image, "bmp"), "c.WebP": encode(image, "webp", lossless=True),
             "d.JPEG": encode(image, "jpeg", quality=100, subsampling=0), "e.jpg": encode(image, "jpeg")}
    x = read_all(make_folder(tmp_path / "a", files)).float()
    assert len(x) == 5 and torch.equal(x[0], x[1]) and torch.equal(x[0], x[2]) and (x[3] - x[0]).abs().mean() < 3
    assert torch.equal(x, read_all(make_zip(tmp_path / "a.zip", files)))


def test_palettes_become_colour_and_bits_grey(tmp_path):
    palette = Image.fromarray(COLOUR[0]).quantize(16)
    x = read_all(make_folder(tmp_path / "a", {"a.png": encode(palette), "b.png": encode(palette.convert("RGB"))}))
    assert x.shape == (2, 3, 6, 8) and torch.equal(x[0], x[1])
    x = read_all(make_folder(tmp_path / "b", {"a.png": encode(Image.fromarray(GREY[0] > 99)), "b.png": encode(GREY[0])}))
    assert x.shape == (2, 1, 6, 8) and torch.equal(x[0, 0], torch.from_numpy(np.uint8(255) * (GREY[0] > 99)))


def test_labels_may_be_absent_or_null(tmp_path):
    files = {name: encode(image) for name, image in zip(NAMES, GREY)}
    for record in (None, {"labels": None}):
        assert open_images(make_folder(tmp_path / "a", files, record)).labels is None
        assert open_images(make_zip(tmp_path / "a.zip", files, record)).labels is None
    assert open_images(make_npz(tmp_path / "a.npz", images=GREY)).labels is None
    assert open_images(make_npz(tmp_path / "b.npz", arr_0=GREY, arr_1=np.zeros((2, 2)))).labels is None  # other statistics
    assert open_images(make_npz(tmp_path / "c.npz", arr_0=random_pixels(3, 1, 4, 3))).shape == (3, 1, 4)  # ambiguous: NHWC


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
    files = {name: encode(image) for name, image in zip(NAMES, GREY)}
    text = (record if isinstance(record, str) else json.dumps(record)).encode(errors="surrogateescape")
    expect_refusal(make_folder(tmp_path / "a", files | {"dataset.json": text}), words, "dataset.json")
    expect_refusal(make_zip(tmp_path / "a.zip", files | {"dataset.json": text}), words, "dataset.json")


@pytest.mark.parametrize("text, line, column", [
    ('{"labels": [["00000/img00000000.png", 0],\n ]}', 1, 41), ('{"labels": null,}', 1, 16), ('{"labels": null\n', 2, 1),
    ("{'labels': null}", 1, 2), ('{"labels": null}\n}', 2, 1), ('{\n"labels": [["a", 1],,]}', 2, 21),
    ('{"labels": null,\n "labels": []}', 2, 2), ('{"labels": None}', 1, 12),
    ('{"labels": [[[' + "[" * 60 + "]" * 63 + "}", 1, 61)])
def test_mistakes_of_a_record_have_line_and_column(tmp_path, text, line, column):
    files = {name: encode(image) for name, image in zip(NAMES, GREY)} | {"dataset.json": text.encode()}
    for path in (make_folder(tmp_path / "a", files), make_zip(tmp_path / "a.zip", files)):
        expect_refusal(path, f"cannot be read: line {line}, column {column}: ", "dataset.json")


def test_a_record_may_have_a_byte_order_mark(tmp_path):
    files = {name: encode(image) for name, image in zip(NAMES, GREY)}
    text = b"\xef\xbb\xbf" + json.dumps(RECORD).encode()
    assert open_images(make_folder(tmp_path / "a", files | {"dataset.json": text})).labels.tolist() == LABELS
    expect_refusal(make_folder(tmp_path / "a", {"dataset.json": json.dumps(RECORD).encode("utf-16")}), "save it as UTF-8")


# what is no data, and what folders mean -----------------------------------------------------------------------------------


JUNK = {"__MACOSX/._a.png": b"\0\5\x16\7", "__MACOSX/cats/._b.png": b"", ".DS_Store": b"\0\0\0\1Bud1", "cats/._b.png": b"x",
        "Thumbs.db": b"\xd0\xcf", "desktop.ini": b"", ".ipynb_checkpoints/a-checkpoint.png": encode(GREY[4]),
        "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg": encode(GREY[4]), ".cache/x/y.png": encode(GREY[4])}


@pytest.mark.parametrize("make", [make_folder, make_zip])
def test_hidden_files_are_left_out_and_counted(tmp_path, capsys, make):
    files = {"a.png": encode(GREY[0]), "cats/b.png": encode(GREY[1])}
    path = make(tmp_path / "a.zip", JUNK | files)
    assert torch.equal(read_all(path)[:, 0], torch.from_numpy(GREY[:2]))
    said = capsys.readouterr().err
    assert "a.zip: left out: 9 hidden or the system's (.DS_Store, ...)\n" in said
    record = {"labels": [["a.png", 1], ["cats/b.png", 0], [".cache/x/y.png", 2]]}  # one with a label is meant
    path = make(tmp_path / "a.zip", JUNK | files, record)
    data = open_images(path)
    assert len(data) == 3 and data.labels.tolist() == [2, 1, 0] and np.array_equal(data.read(0)[..., 0], GREY[4])
    assert "left out: 8 hidden" in capsys.readouterr().err


def test_a_set_without_junk_says_nothing(tmp_path, capsys):
    files = {name: encode(image) for name, image in zip(NAMES, GREY)}
    for path in (make_folder(tmp_path / "a", files, RECORD), make_zip(tmp_path / "a.zip", files, {"labels": None}),
                 make_npz(tmp_path / "a.npz", images=GREY, labels=np.array(LABELS))):
        read_all(path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("make", [make_folder, make_zip])
def test_images_of_other_kinds_and_other_files_are_counted(tmp_path, capsys, make):
    files = {"a.png": encode(GREY[0]), "b.gif": b"", "c.tiff": b"", "d.TIFF": b"", "README": b"", "x/labels.csv": b""}
    assert len(read_all(make(tmp_path / "a.zip", files))) == 1
    said = capsys.readouterr().err
    assert "5 of other kinds (2 .tiff" in said and all(f"1 {kind}" in said for kind in (".gif", ".csv", "no ending"))
    expect_refusal(make(tmp_path / "b.zip", {".a.png": files["a.png"], "b.tif": b""}),
                   r"holds no images .*left out: 1 hidden or the system's \(.a.png\); 1 of other kinds")


def test_a_hidden_folder_that_cannot_be_read_is_no_matter(tmp_path, monkeypatch):
    """Such as lost+found, which is root's; any other one is."""
    path = make_folder(tmp_path / "a", {"a.png": encode(GREY[0]), "lost+found/x": b"", "b/c.png": encode(GREY[1])})
    scandir = os.scandir
    for closed, found in (("lost+found", 2), ("b", None)):
        def refuse(top, closed=closed):
            if os.path.basename(top) == closed:
                raise PermissionError(13, "Permission denied", top)
            return scandir(top)

        monkeypatch.setattr(os, "scandir", refuse)
        if found:
            assert len(open_images(path)) == found
        else:
            expect_refusal(path, "Permission denied")


CLASSES = {"cat/1.png": GREY[0], "ant/x/2.png": GREY[1], "dog/1.png": GREY[2], "cat/0.png": GREY[3]}


@pytest.mark.parametrize("make", [make_folder, make_zip])
@pytest.mark.parametrize("around", ["", "pets/", "my pets/images/"])
def test_folders_of_images_are_classes(tmp_path, capsys, make, around):
    files = {around + name: encode(image) for name, image in CLASSES.items()}
    data = open_images(make(tmp_path / "a.zip", files | {"__MACOSX/" + around + "cat/._1.png": b"", ".x/1.png": b""}))
    assert data.labels.dtype == torch.int64 and data.labels.tolist() == [0, 1, 1, 2] and data.num_classes == 3
    assert [int(data.sample(k)["labels"]) for k in range(4)] == [0, 1, 1, 2]
    assert np.array_equal(data.read(0)[..., 0], GREY[1]) and np.array_equal(data.read(3)[..., 0], GREY[2])
    assert "a.zip: labels of 3 classes, its folders: ant, cat, dog (a dataset.json" in capsys.readouterr().err
    record = {"labels": [[name, 5 - k] for k, name in enumerate(CLASSES)]}
    for text, labels in ((record, [4, 2, 5, 3]), ({"labels": None}, None)):  # what the user wrote is what counts
        files[f"{around}dataset.json"] = json.dumps(text).encode()
        found = open_images(make(tmp_path / "b.zip", files)).labels
        assert (found if found is None else found.tolist()) == labels
    assert "classes" not in capsys.readouterr().err


@pytest.mark.parametrize("make", [make_folder, make_zip])
@pytest.mark.parametrize("names, said", [
    (["a.png", "b.png"], ""), (["cat/a.png", "cat/b.png"], ""), (["cat/a.png", "b.png"], "1 of 2 images lie beside"),
    (["train/cat/a.png", "test/cat/b.png"], "the folders test, train"), (NAMES, "the numbered folders 00000 to 00001"),
    (["a/1.png", "b/2.png", "a/dataset.json"], "labels in a/dataset.json are not read")])
def test_folders_that_are_no_classes(tmp_path, capsys, make, names, said):
    data = open_images(make(tmp_path / "a.zip", {name: encode(GREY[0]) for name in names}))
    err = capsys.readouterr().err
    assert data.labels is None and (f"no labels: {said}" in err if said else err == ""), (err, said)


def test_an_archive_of_windows_has_folders_too(tmp_path):
    """Older .NET writes their names with backslashes; elsewhere these are letters."""
    for system, labels in ((0, [0, 1]), (3, None)):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for name in ("cat\\1.png", "dog\\2.png"):
                info = zipfile.ZipInfo(name)
                info.create_system = system
                archive.writestr(info, encode(GREY[0]))
        found = open_images(tmp_path / "a.zip").labels
        assert (found if found is None else found.tolist()) == labels
        assert len(read_all(tmp_path / "a.zip")) == 2


def test_linked_folders_are_said(tmp_path, capsys):
    path = make_folder(tmp_path / "a", {"a.png": encode(GREY[0]), "b/c.png": encode(GREY[1])})
    (path / "linked").symlink_to(path / "b")
    assert len(open_images(path)) == 2 and "left out: 1 linked folder\n" in capsys.readouterr().err


def test_a_huge_record_is_not_read(tmp_path):
    path = make_folder(tmp_path / "a", {"a.png": encode(GREY[0]), "dataset.json": b""})
    os.truncate(path / "dataset.json", LABELS_LIMIT + 1)
    expect_refusal(path, "larger than 200 MB", "dataset.json")
    os.truncate(path / "a.png", FILE_LIMIT + 1)
    (path / "dataset.json").unlink()
    expect_refusal(path, "larger than 100 MB", "a.png")


ALPHA = Image.fromarray(random_pixels(6, 8, 4))


@pytest.mark.parametrize("data, words", [
    (b"", "cannot be read"), (b"GIF89a" + bytes(40), "cannot be read"), (random_pixels(500).tobytes(), "cannot be read"),
    (encode(GREY[0])[:-1], "cannot be read"), (encode(GREY[0])[:60], "cannot be read"),
    (encode(GREY[0]).replace(b"IDAT", b"IDAT\0", 1), "cannot be read"),
    (encode(COLOUR[0], "jpeg")[:-30], "cannot be read"), (encode(COLOUR[0], "gif"), "cannot be read"),
    (encode(ALPHA), "transparency"), (encode(ALPHA.convert("LA")), "transparency"),
    (encode(ALPHA, "webp"), "transparency"), (encode(ALPHA.quantize(8)), "transparency"),
    (encode(Image.fromarray(GREY[0]), transparency=3), "transparency"),
    (encode(Image.fromarray(COLOUR[0]), transparency=(1, 2, 3)), "transparency"),
    (encode(GREY[0].astype(np.uint16) * 257), "16 bits"), (png(2, 1, 16, 2, bytes(13)), "16 bits"),
    (png(2, 1, 16, 6, bytes(17)), "16 bits"), (encode(Image.fromarray(COLOUR[0]).convert("CMYK"), "jpeg"), "mode CMYK"),
    (encode(COLOUR[0], save_all=True, append_images=[Image.fromarray(COLOUR[1])]), "animated"),
    (png(4097, 1, 8, 0, bytes(4098)), "larger than 4096"), (png(60000, 60000, 8, 2, bytes(9)), "larger than 4096"),
    (png(10000, 10000, 8, 2, bytes(9)), "larger than 4096")], ids=lambda value: value if isinstance(value, str) else "")
def test_other_images_are_one_line_with_their_name(tmp_path, data, words):
    files = {"a.png": encode(GREY[0]), "b/c.png": data}
    expect_refusal(make_folder(tmp_path / "a", files), words, "b/c.png")
    expect_refusal(make_zip(tmp_path / "a.zip", files, method=zipfile.ZIP_DEFLATED), words, "b/c.png")


def test_a_flipped_byte_of_a_png_is_found(tmp_path):
    whole = encode(COLOUR[0])
    for i in range(len(whole)):
        path = make_folder(tmp_path / "a", {"a.png": whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1:]})
        expect_refusal(path, "cannot be read|transparency|16 bits|larger", "a.png")


def test_the_largest_size_is_read(tmp_path):
    assert open_images(make_folder(tmp_path / "a", {"a.png": png(4096, 1, 8, 0, bytes(4097))})).shape == (1, 1, 4096)


def test_mixed_sizes_and_kinds_name_the_first_that_differs(tmp_path):
    grey = {"a.png": encode(GREY[0]), "b.png": encode(GREY[1])}
    for other, words in ((GREY[0, :5], "grey 8x5"), (COLOUR[0], "colour 8x6")):
        files = grey | {"c.png": encode(other), "d.png": encode(other)}
        for path in (make_folder(tmp_path / "a", files), make_zip(tmp_path / "a.zip", files)):
            line = expect_refusal(path, f"c.png: {words}, but the first image, .*a.png, is grey 8x6")
            assert "d.png" not in line


def test_images_are_read_when_they_are_due(tmp_path):
    files = {f"{i}.png": encode(GREY[i]) for i in range(4)} | {"4.png": b"broken"}
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
    ({"images": random_pixels(2, 1, 6, 8, 4)}, "uint8"), ({"pictures": GREY}, "holds no array"), ({}, "holds no array"),
    ({"images": GREY, "labels": np.zeros(4, int)}, "5 integers"), ({"images": GREY, "y": np.zeros(5)}, "5 integers"),
    ({"images": GREY, "labels": np.zeros(5, bool)}, "5 integers"),
    ({"images": GREY, "labels": np.zeros((5, 1), int)}, "5 integers"),
    ({"images": GREY, "labels": np.full(5, -1)}, "from 0"), ({"images": GREY[:0], "labels": np.zeros(0, int)}, "uint8"),
    ({"images": GREY, "arr_1": np.full(5, 2**63, np.uint64)}, "from 0")])
def test_other_arrays_are_one_line(tmp_path, arrays, words):
    expect_refusal(make_npz(tmp_path / "a.npz", **arrays), words)


def test_paths_without_images(tmp_path):
    expect_refusal(make_folder(tmp_path / "a", {"b/c.txt": b""}), "holds no images")
    expect_refusal(make_zip(tmp_path / "a.zip", {"a.txt": b"", "b.png/": b""}), "holds no images")
    for name in ("x", "x.zip", "x.npz", "x" * 300, "x\ny"):
        with pytest.raises(PidistillError, match=r"does not exist|cannot be read") as caught:
            open_images(tmp_path / name)
        assert "\n" not in str(caught.value)
    (tmp_path / "a.png").write_bytes(encode(GREY[0]))
    expect_refusal(tmp_path / "a.png", "a.png: images come as `digits`, a folder, a .zip or an .npz")
    for ending in ("zip", "npz"):
        for data in (b"", b"PK\3\4", encode(GREY[0]), random_pixels(3000).tobytes()):
            (tmp_path / f"b.{ending}").write_bytes(data)
            expect_refusal(tmp_path / f"b.{ending}", "cannot be read")


def test_links_and_pipes(tmp_path):
    path = make_folder(tmp_path / "a", {"a.png": encode(GREY[0]), "b/c.png": encode(GREY[1])})
    (path / "b" / "loop").symlink_to(path)
    (path / "d.png").symlink_to(path / "a.png")
    assert len(read_all(path)) == 3
    (path / "e.png").symlink_to("e.png")
    expect_refusal(path, "cannot be read", "e.png")
    (path / "e.png").unlink()
    os.mkfifo(path / "e.png")
    expect_refusal(path, "no regular file", "e.png")


@pytest.mark.parametrize("kind", ["zip", "npz"])
def test_truncated_and_damaged_archives(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        make_zip(path, {name: encode(image) for name, image in zip(NAMES, COLOUR)}, RECORD, zipfile.ZIP_DEFLATED)
    else:
        np.savez_compressed(path, images=COLOUR, labels=np.array(LABELS))
    whole, expected = path.read_bytes(), read_all(path)
    rng = np.random.default_rng(1)
    cuts = [whole[:size] for size in np.linspace(0, len(whole) - 1, 40).astype(int)]
    for i in rng.integers(0, len(whole), 200):
        cuts.append(whole[:i] + bytes([whole[i] ^ (1 << rng.integers(8))]) + whole[i + 1:])
    refusals = 0
    for data in cuts:
        path.write_bytes(data)
        try:
            images = read_all(path)
            # a flipped byte of a member's name may lose or move that member, never change its pixels
            assert all(any(torch.equal(image, other) for other in expected) for image in images)
        except PidistillError as error:
            refusals += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refusals > 100


def test_pil_is_left_as_it_was(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    expect_refusal(make_folder(tmp_path / "a", {"a.png": png(60000, 60000, 8, 2, b"")}), "larger")
    assert before == Image.MAX_IMAGE_PIXELS


# samples, as training takes them --------------------------------------------------------------------------------------


def test_every_byte_becomes_the_same_float(tmp_path):
    pixels = np.arange(256, dtype=np.uint8).reshape(2, 16, 8)
    data = open_images(make_npz(tmp_path / "a.npz", images=pixels))
    y = np.stack([data.sample(k)["y"] for k in range(2)])
    assert np.array_equal(y[:, 0], pixels / np.float32(127.5) - np.float32(1)) and set(data.sample(0)) == {"y"}
    assert np.array_equal(y, dequantise(torch.from_numpy(pixels)[:, None]).numpy()) and data.num_classes == 0


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_arrays_may_have_other_channels_than_a_picture(tmp_path, channels):
    pixels = random_pixels(3, 4, 5, channels)
    data = open_images(make_npz(tmp_path / "a.npz", images=pixels))
    assert data.shape == (channels, 4, 5) and np.array_equal(data.read(2), pixels[2])
    assert np.array_equal(data.sample(2)["y"], dequantise(torch.from_numpy(pixels[2].transpose(2, 0, 1))).numpy())


def test_digits_are_averages_and_500_of_each_class():
    data = open_images("digits")
    y = torch.from_numpy(np.stack([data.sample(k)["y"] for k in range(5000)]))
    assert len(data) == 5000 and data.shape == (1, 16, 16) and y.shape == (5000, 1, 16, 16) and y.dtype == torch.float32
    assert torch.bincount(data.labels).tolist() == [500] * 10 and data.num_classes == 10 and "MNIST" in data.licence
    assert y.min() == -1 and 0.99 < y.max() <= 1 and bool((y[:, :, 0] == -1).all())  # the padding
    quarters = (y + 1) * 510
    assert (quarters - quarters.round()).abs().max() < 1e-3 and (quarters.round() % 4 > 0).any()  # no whole bytes
    assert torch.equal(torch.cat(list(data.read_batches(1000))), quantise(y))


@pytest.mark.parametrize("make", [make_folder, make_zip])
def test_samples_are_decoded_once_while_all_images_fit_in_memory(tmp_path, monkeypatch, make):
    path = make(tmp_path / "a.zip", {name: encode(image) for name, image in zip(NAMES, COLOUR)}, RECORD)
    decoded, decode_image = [], datasets._decode_image
    monkeypatch.setattr(datasets, "_decode_image", lambda data, where: decoded.append(where) or decode_image(data, where))
    for limit, expected in ((COLOUR.nbytes, 2), (COLOUR.nbytes - 1, 5)):
        monkeypatch.setattr(image_set, "MEMORY_LIMIT", limit)
        data = open_images(path)
        assert len(list(data.read_batches(2))) == 3  # which leave nothing behind
        decoded.clear()
        samples = [data.sample(k)["y"] for k in (1, 4, 1, 4, 1)]
        assert len(decoded) == expected
        assert np.array_equal(samples[0], samples[2]) and np.array_equal(samples[1], samples[3])
        samples[0][:] = 3
        assert np.array_equal(data.sample(1)["y"], samples[2])


def test_a_broken_image_is_one_line_when_it_is_drawn(tmp_path):
    files = {"0.png": encode(GREY[0]), "1.png": b"broken", "2.png": encode(COLOUR[0])}
    data = open_images(make_folder(tmp_path / "a", files))
    assert data.sample(0)["y"].shape == (1, 6, 8)
    for k, words in ((1, "1.png: cannot be read"), (2, "2.png: colour 8x6, but the first image")):
        for _ in range(2):
            with pytest.raises(PidistillError, match=words):
                data.sample(k)


def test_digits_are_a_name_and_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_npz(tmp_path / "a.npz", images=GREY)
    make_folder(tmp_path / "digits", {"a.png": encode(GREY[0])})
    assert len(open_images("digits")) == len(load_digits()) == 5000 and len(open_images("./digits")) == 1
    with pytest.raises(PidistillError, match=r"mnist: does not exist; images come as `digits`, a folder, a .zip or an .npz"):
        open_images("mnist")


# What others pack, and how they number it ----------------------------------------------------------------------------------


def test_numbered_folders_are_classes_in_the_order_of_the_numbers(tmp_path, capsys):
    """0, 1, 10, 11, 2 is the order of words: folder 2 would be class 4."""
    files = {f"{k}/a.png": encode(GREY[k % 5]) for k in range(12)}
    data = open_images(make_folder(tmp_path / "a", files))
    assert data.labels.tolist() == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9] and data.read(2).max() == GREY[0].max()
    assert "its folders: 0, 1, 2, 3" in capsys.readouterr().err
    padded = open_images(make_zip(tmp_path / "a.zip", {f"{k}/{k:02d}.png": encode(GREY[k]) for k in (1, 2, 3)}))
    assert padded.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("labels, said", [
    ([1, 2, 3, 4, 5], "1 of the labels 0 to 5 have no image, first 0"),
    ([0, 1, 2, 2, 9], "6 of the labels 0 to 9 have no image, first 3"),
    ([0, 0, 0, 0, 10**12], "have no image, first 1"), ([4, 3, 2, 1, 0], None), ([0] * 5, None)])
def test_labels_without_images_are_said(tmp_path, capsys, labels, said):
    record = {"labels": [[name, label] for name, label in zip(NAMES, labels)]}
    for path in (make_folder(tmp_path / "a", {name: encode(image) for name, image in zip(NAMES, GREY)}, record),
                 make_npz(tmp_path / "a.npz", images=GREY, labels=np.array(labels))):
        assert open_images(path).labels.tolist() == labels
        err = " ".join(capsys.readouterr().err.split())
        assert said in err if said else "have no image" not in err


@pytest.mark.parametrize("change, words", [
    (lambda name: name.replace("/", "\\"),
     r"miss the file 00000/img00000000\.png and 4 more and name a missing file 00000\\img"),
    (lambda name: f"./{name}", r"miss the file .* and name a missing file \./00000"),
    (lambda name: name.replace("img", "\xe9"), "the same letters in another form of Unicode: NFC, NFD")])
def test_names_that_nearly_fit_are_shown_side_by_side(tmp_path, change, words):
    stored = [name.replace("img", "e\u0301") for name in NAMES] if "Unicode" in words else NAMES
    files = {name: encode(image) for name, image in zip(stored, GREY)}
    record = {"labels": [[change(name), 0] for name in NAMES]}
    expect_refusal(make_folder(tmp_path / "a", files, record), words, "dataset.json")


def test_a_backslash_that_parts_no_folders_is_said(tmp_path, capsys):
    files = {f"{folder}\\{k}.png": encode(GREY[k]) for k, folder in enumerate(("cat", "cat", "dog"))}
    for path in (make_folder(tmp_path / "a", files), make_zip(tmp_path / "a.zip", files)):
        assert open_images(path).labels is None
        assert "is a letter here, and parts no folders: cat\\0.png" in " ".join(capsys.readouterr().err.split())


def test_what_an_npz_holds_instead_is_named(tmp_path):
    expect_refusal(make_npz(tmp_path / "a.npz", x_train=GREY, y_train=np.arange(5)), "it holds x_train, y_train")
    expect_refusal(make_npz(tmp_path / "b.npz", images=GREY / 255), r"got float64 .*; convert them, from 0 to 255")
