"""Feature networks: bundled ones, functions of the user, and what is asked of both."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pidistill.core.errors import PidistillError
from pidistill.evaluation.references import load_reference
from pidistill.nets.features.base import FeatureFunction, FeatureNetwork, check_shape, fingerprint, load_features


def test_unknown_names_list_the_choices():
    with pytest.raises(PidistillError, match=r"unknown feature network 'digit'; did you mean 'digits'"):
        load_features("digit")
    with pytest.raises(PidistillError, match="no reference statistics"):
        load_reference(None, "digit", None)


def test_loaded_network_is_fixed():
    net = load_features("digits")
    assert not net.training and not any(p.requires_grad for p in net.parameters())


def test_the_perceptual_network_is_not_the_metric_s():
    """Training in the features that measure would flatter the measure."""
    x = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    metric, perceptual = (load_features(name).features(x) for name in ("digits", "digits_perceptual"))
    assert metric.shape == perceptual.shape and not torch.allclose(metric, perceptual, atol=0.1)


def test_fingerprint_is_of_the_weights():
    net, same, changed = (load_features("digits") for _ in range(3))
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1e-6
    assert fingerprint(same) == fingerprint(net) != fingerprint(changed)
    assert fingerprint(torch.nn.Identity()) is None


def test_fingerprint_knows_names_and_shapes_too():
    with torch.no_grad():
        nets = [nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False), nn.Sequential(nn.Linear(2, 3, bias=False))]
        for net in nets:
            next(net.parameters()).fill_(1)
    assert len({fingerprint(net) for net in nets}) == 3


def test_a_function_s_features_are_the_means_of_its_last_map():
    x = torch.randn(2, 3, 4, 5)
    several = FeatureFunction(lambda x: (x, 2 * x))
    assert len(several.layers(x)) == 2
    torch.testing.assert_close(several.features(x), 2 * x.mean((2, 3)))
    vector = FeatureFunction(lambda x: x.flatten(1))
    assert torch.equal(vector.features(x), x.flatten(1)) and len(vector.layers(x)) == 1


def test_features_are_counted_and_wrong_images_refused():
    assert check_shape(load_features("digits"), (1, 16, 16), "digits") == 32
    assert check_shape(FeatureFunction(lambda x: x), (5, 8, 8), "mine") == 5
    for function, words in ((lambda x: "text", r"must give tensors \(B, c, ...\), .* got \['str'\]"),
                            (lambda x: x.sum(), r"must give tensors .* got \[\(\)\]"),
                            (lambda x: x.long(), "must give tensors"),
                            (lambda x: x @ torch.zeros(3, 3), r"'mine' cannot take images of shape \(1, 8, 8\)")):
        with pytest.raises(PidistillError, match=words) as caught:
            check_shape(FeatureFunction(function), (1, 8, 8), "mine")
        assert "\n" not in str(caught.value)
    with pytest.raises(PidistillError, match=r"'digits' are of images of shape \(1, 16, 16\), these have \(1, 8, 8\)"):
        check_shape(load_features("digits"), (1, 8, 8), "digits")


def test_what_is_loaded_keeps_the_protocol(tmp_path):
    torch.jit.script(torch.nn.Conv2d(1, 3, 3)).save(tmp_path / "net.ts")
    for spec in ("digits", "digits_perceptual", str(tmp_path / "net.ts")):
        assert isinstance(load_features(spec), FeatureNetwork)
    assert not isinstance(torch.nn.Linear(1, 1), FeatureNetwork)
