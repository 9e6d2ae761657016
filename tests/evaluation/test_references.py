"""References: made of images, kept in files, refused where they are of another network."""

from __future__ import annotations

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import dequantise
from pidistill.evaluation.metrics.base import Reference
from pidistill.evaluation.metrics.frechet import fit_gaussian
from pidistill.evaluation.references import load_reference, make_reference, read_pickle, write_reference
from pidistill.files.datasets import open_images
from pidistill.nets.features.base import fingerprint, load_features

NUM = 50


@pytest.fixture(scope="module")
def net():
    return load_features("digits")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (NUM, 16, 16), dtype=np.uint8)


@pytest.fixture(params=["folder", "zip", "npz"])
def data(request, pixels, tmp_path) -> str:
    if request.param == "npz":
        np.savez_compressed(tmp_path / "data.npz", images=pixels)
        return str(tmp_path / "data.npz")
    files = {}
    for k, image in enumerate(pixels):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        files[f"00000/img{k:08d}.png"] = buffer.getvalue()
    if request.param == "folder":
        (tmp_path / "data" / "00000").mkdir(parents=True)
        for name, content in files.items():
            (tmp_path / "data" / name).write_bytes(content)
        return str(tmp_path / "data")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr("dataset.json", json.dumps({"labels": [[name, k % 10] for k, name in enumerate(files)]}))
    return str(tmp_path / "data.zip")


def measure_digits(data: str, net, *args, **options) -> Reference:
    return make_reference(open_images(data), data, net, "digits", *args, **options)


def test_every_kind_of_data_gives_the_same(net, pixels, data):
    found = measure_digits(data, net, batch=16)
    with torch.inference_mode():
        features = net.features(dequantise(torch.from_numpy(pixels))[:, None])
    mean, covariance = fit_gaussian(features)
    torch.testing.assert_close(found.mean, mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.covariance, covariance, rtol=1e-5, atol=1e-5)
    assert found.num == NUM and found.features.shape == (NUM, 32)
    torch.testing.assert_close(found.features, features, rtol=1e-4, atol=1e-4)
    again = load_reference(data, "digits", net)  # named directly
    torch.testing.assert_close(again.covariance, found.covariance, rtol=1e-5, atol=1e-5)


def test_kept_features_are_a_sample_of_all(net, pixels, tmp_path):
    np.savez(tmp_path / "data.npz", images=pixels)
    some = measure_digits(str(tmp_path / "data.npz"), net, keep=20, batch=7)
    all_of_them = measure_digits(str(tmp_path / "data.npz"), net, batch=7)
    assert some.features.shape == (20, 32) and torch.equal(some.mean, all_of_them.mean)
    places = [int((all_of_them.features == row).all(dim=1).nonzero()[0]) for row in some.features]
    assert places == sorted(set(places)) and places != list(range(20))
    assert measure_digits(str(tmp_path / "data.npz"), net, keep=0).features is None


def test_round_trip_and_the_network_inside(net, pixels, tmp_path):
    np.savez(tmp_path / "data.npz", images=pixels)
    mark = fingerprint(net)
    made = measure_digits(str(tmp_path / "data.npz"), net, mark)
    write_reference(tmp_path / "ref.npz", made)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    found = load_reference(str(tmp_path / "ref.npz"), "digits", net, mark)
    assert torch.equal(found.mean, made.mean) and torch.equal(found.covariance, made.covariance)
    assert torch.equal(found.features, made.features) and (found.num, found.network) == (NUM, mark)
    with np.load(tmp_path / "ref.npz", allow_pickle=False) as file:  # EDM's names: others can read it
        assert file["mu"].shape == (32,) and file["sigma"].shape == (32, 32)
    other = load_features("digits_perceptual")
    with pytest.raises(PidistillError, match=r"made with another feature network .* mean nothing"):
        load_reference(str(tmp_path / "ref.npz"), "digits", other, fingerprint(other))


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_edm2s_pickles_are_read_without_unpickling(tmp_path, protocol, order):
    generator = np.random.default_rng(0)
    spread = lambda d: np.array(np.cov(generator.normal(size=(9, d)).T), order=order)
    draw = lambda d: {"mu": generator.normal(size=d), "sigma": spread(d)}
    root = {"fid": draw(6), "fd_dinov2": draw(4)}
    path = tmp_path / "img512.pkl"
    path.write_bytes(pickle.dumps(root, protocol))
    for features, key in (("inception", "fid"), ("inception:x.pth", "fid"), ("dinov2", "fd_dinov2")):
        found = load_reference(str(path), features, None)
        np.testing.assert_array_equal(found.mean.numpy(), root[key]["mu"])
        np.testing.assert_array_equal(found.covariance.numpy(), root[key]["sigma"])
    with pytest.raises(PidistillError, match="inception or dinov2"):
        read_pickle(path, "digits")


class Evil:
    def __reduce__(self):
        return (eval, ("__import__('pathlib').Path('executed').touch()",))


@pytest.mark.parametrize("root", [{"fid": Evil()}, {"fid": {"mu": Evil(), "sigma": np.zeros((2, 2))}}, [1], {"fid": 3},
                                  {"fid": {"mu": np.zeros(2), "sigma": np.zeros((2, 3))}},
                                  {"fid": {"mu": np.array(["a"]), "sigma": np.zeros((1, 1))}},
                                  {"fid": {"mu": np.array([None]), "sigma": np.zeros((1, 1))}},
                                  {"fid": {"mu": np.zeros(2, dtype=np.int64), "sigma": np.zeros((2, 2))}}])
def test_hostile_pickles_are_one_line(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ref.pkl").write_bytes(pickle.dumps(root))
    with pytest.raises(PidistillError) as error:
        read_pickle(tmp_path / "ref.pkl", "inception")
    assert "\n" not in str(error.value) and not (tmp_path / "executed").exists()


def test_damaged_pickles_are_one_line(tmp_path):
    whole = pickle.dumps({"fid": {"mu": np.zeros(3), "sigma": np.eye(3)}})
    generator = np.random.default_rng(0)
    for k in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[k] ^= 1 << int(generator.integers(8))
        for content in (whole[:k], bytes(changed)):
            (tmp_path / "ref.pkl").write_bytes(content)
            try:
                found = read_pickle(tmp_path / "ref.pkl", "inception")
                assert found.mean.shape == (3,) and bool(found.covariance.isfinite().all())
            except PidistillError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("name, words", [
    ("no/such", "does not exist"), ("x.txt", "does not exist"), ("no.npz", "does not exist"), ("no.pkl", "does not exist")])
def test_missing_references(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PidistillError, match=words):
        load_reference(name, "inception", None)


def test_few_images_are_said(net, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    np.savez(tmp_path / "data.npz", images=np.random.default_rng(0).integers(0, 256, (20, 16, 16), dtype=np.uint8))
    measure_digits(str(tmp_path / "data.npz"), net)
    said = capsys.readouterr().err
    assert "20 images" in said and "32 features" in said
    np.savez(tmp_path / "one.npz", images=np.zeros((1, 16, 16), dtype=np.uint8))
    with pytest.raises(PidistillError, match="one image"):
        measure_digits(str(tmp_path / "one.npz"), net)
    np.savez(tmp_path / "rgb.npz", images=np.zeros((3, 16, 16, 3), dtype=np.uint8))
    with pytest.raises(PidistillError, match=r"\(1, 16, 16\), these have \(3, 16, 16\)"):
        measure_digits(str(tmp_path / "rgb.npz"), net)
