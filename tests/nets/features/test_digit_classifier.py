"""The bundled feature network knows digits."""

from __future__ import annotations

import numpy as np
import torch

from pidistill.evaluation.metrics.frechet import fit_gaussian, relative_frechet
from pidistill.evaluation.references import load_reference
from pidistill.files.datasets import load_digits
from pidistill.nets.features.base import load_features


def test_bundled_classifier_knows_digits_and_its_reference_is_theirs():
    net, data = load_features("digits"), load_digits()
    part = torch.arange(0, 5000, 10)  # 50 of each class
    with torch.inference_mode():
        features = net.features(torch.from_numpy(np.stack([data.sample(k)["y"] for k in part.tolist()])))
        accuracy = (net.out(features).argmax(1) == data.labels[part]).float().mean().item()
    assert accuracy >= 0.98
    bundled = load_reference(None, "digits", net)
    reference = (bundled.mean, bundled.covariance)
    assert reference[0].dtype == torch.float64 and reference[1].shape == (32, 32)
    assert relative_frechet(fit_gaussian(features), reference) < 4  # 500 of the very images
    noise = net.features(torch.randn(500, 1, 16, 16).clip(-1, 1))
    assert relative_frechet(fit_gaussian(noise), reference) > 50
