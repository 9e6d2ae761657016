"""Inception v3 with random weights, so that nothing is downloaded, against torch-fidelity's own."""

from __future__ import annotations

import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as library

from pidistill.core.errors import PidistillError
from pidistill.core.tensors import quantise
from pidistill.nets.features.base import load_features
from pidistill.nets.features.inception import Inception, copy_torch_fidelity


def images(channels: int = 3) -> torch.Tensor:
    return torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def net(inception_spec) -> Inception:
    return load_features(inception_spec)


def test_features_are_torch_fidelity_s(inception_extractor, net):
    assert torch.equal(net.features(images()), inception_extractor(quantise(images()))[0])
    assert net.features(images()).shape == (2, 2048) and torch.equal(net.layers(images())[0], net.features(images()))
    assert torch.equal(net.features(images(1)), net.features(images(1).expand(-1, 3, -1, -1)))
    assert not net.training and not any(p.requires_grad for p in net.parameters())


def test_images_are_quantised_first(net):
    """Less than a level changes nothing, a whole one does."""
    pixels = quantise(images()).clamp(1, 254).float()
    features = net.features((pixels + 0.25 - 128) / 127.5)
    assert torch.equal(net.features((pixels + 0.75 - 128) / 127.5), features)
    assert not torch.equal(net.features((pixels + 1.25 - 128) / 127.5), features)


def test_classes_are_the_logits_without_the_bias(inception_extractor, net):
    features = net.features(images())
    logits = net.classify(features)
    assert logits.shape == (2, 1008) and inception_extractor.fc.bias.abs().max() > 0
    torch.testing.assert_close(logits + inception_extractor.fc.bias, inception_extractor.fc(features))


def test_the_library_is_left_as_it_was(inception_spec):
    """What the constructor replaces, it replaces in a copy of the module of its own."""
    download = library.load_state_dict_from_url
    load_features(inception_spec)
    assert library.load_state_dict_from_url is download
    first, second = copy_torch_fidelity(), copy_torch_fidelity()
    assert first is not second and first is not library and first.URL_INCEPTION_V3 == library.URL_INCEPTION_V3


def test_bad_files_are_one_line(tmp_path):
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "few.pth")
    torch.save({}, tmp_path / "weights-00000000.pth")
    for name, words in (("no.pth", "does not exist"), ("few.pth", "does not fit Inception v3"),
                        ("weights-00000000.pth", "SHA-256")):
        with pytest.raises(PidistillError, match=words) as caught:
            load_features(f"inception:{tmp_path / name}")
        assert "\n" not in str(caught.value)
