"""`hf:NAME` reads what Hugging Face's library has written, as any other data set; no network is used here."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import dequantise
from pidistill.evaluation import references
from pidistill.files.datasets import open_images
from pidistill.files.hugging_face import import_library
from tests.image_files import COLOUR, GREY, LABELS, encode, make_folder


@pytest.fixture
def offline(monkeypatch, tmp_path):
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return library


@pytest.fixture
def table(offline, tmp_path):
    """A folder with a parquet file of five images in three classes, a second column of images, and numbers."""
    def write(images=COLOUR, labels=LABELS, numbers=(4, 3, 2, 1, 0), name="train"):
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        files = [{"bytes": image if isinstance(image, bytes) else encode(image), "path": None} for image in images]
        features = offline.Features({"img": offline.Image(), "label": offline.ClassLabel(names=["a", "b", "c"]),
                                     "number": offline.Value("int64"), "mask": offline.Value("string")})
        rows = [dict(zip(features, row)) for row in zip(files, labels, numbers, "vwxyz")]
        (tmp_path / "set").mkdir(exist_ok=True)
        written = arrow.Table.from_pylist(rows, schema=features.arrow_schema)
        parquet.write_table(written, tmp_path / "set" / f"{name}.parquet")
        return tmp_path / "set"

    return write


def refusal(spec: str) -> str:
    with pytest.raises(PidistillError) as caught:
        open_images(spec).read(2)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_parquet_file_is_read_with_its_labels(table):
    data = open_images(f"hf:{table()}")
    assert torch.equal(torch.cat(list(data.read_batches(2))), torch.from_numpy(np.moveaxis(COLOUR, -1, 1).copy()))
    assert data.labels.tolist() == LABELS and data.num_classes == 3 and data.licence.endswith("as the data set's page says")
    sample = data.sample(3, flip=True)
    expected = dequantise(torch.from_numpy(COLOUR[3])).permute(2, 0, 1).numpy()[..., ::-1]
    assert np.array_equal(sample["y"], expected) and sample["labels"] == LABELS[3]


def test_columns_and_splits_are_chosen_by_name(table):
    table(GREY, name="test")
    folder = table()
    assert open_images(f"hf:{folder},split=test").shape == (1, 6, 8)
    assert open_images(f"hf:{folder},image=img,label=number").labels.tolist() == [4, 3, 2, 1, 0]
    assert open_images(f"hf:{folder},label=none").labels is None
    assert len(open_images(f"hf:{folder},split=train[:40%]")) == 2


def test_a_folder_of_images_is_read_by_the_library_too(offline, tmp_path):
    folder = make_folder(tmp_path / "set", {f"{name}/{k}.png": encode(GREY[k]) for k, name in enumerate("ab")})
    data = open_images(f"hf:{folder}")
    assert data.labels.tolist() == [0, 1] and np.array_equal(data.read(1)[..., 0], GREY[1])


def test_references_are_made_of_them(table, monkeypatch):
    monkeypatch.setattr(references, "make_reference", lambda images, *_: images)
    assert references.load_reference(f"hf:{table()}", "inception", None).labels.tolist() == LABELS


@pytest.mark.parametrize("options, words", [
    (",image=label", "no such column of images, label; image=COLUMN names one of img"), (",split=tst", "tst"),
    (",label=mask", "must be integers from 0"), (",label=nope", "unknown column"), (",splt=a", "unknown option of hf:NAME"),
    (",split", "unknown option of hf:NAME"), (",config=other", "cannot be had")])
def test_wrong_options_are_one_line(table, options, words):
    assert words in refusal(f"hf:{table()}{options}")


def test_images_that_are_broken_or_of_another_size_are_one_line(table):
    assert "image 2: cannot be read" in refusal(f"hf:{table([COLOUR[0], COLOUR[1], b'no image', *COLOUR[3:]])}")
    other = table([*COLOUR[:2], GREY[2], *COLOUR[3:]], name="test")
    assert "image 2: grey 8x6, but the first image" in refusal(f"hf:{other},split=test")


def test_labels_that_are_missing_are_one_line(table):
    assert "must be integers from 0" in refusal(f"hf:{table(labels=[0, 1, None, 1, 0])}")


def test_unknown_names_are_one_line(offline, tmp_path):
    assert "hf:nobody/nothing cannot be had" in refusal("hf:nobody/nothing")
    assert "cannot be had" in refusal(f"hf:{tmp_path / 'nowhere'}") and "names no data set" in refusal("hf:")


def test_the_library_is_an_extra_and_not_too_old(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'pidistill[hf]'" in refusal("hf:a/b")
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(__version__="3.6.0"))
    with pytest.raises(PidistillError, match="needs datasets 4 or newer, which runs no code of a data set; this is 3"):
        import_library()
