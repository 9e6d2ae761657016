"""Every metric against torch-fidelity's own calculation, on the same images with the same random Inception weights."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
import torch_fidelity
from torch.utils.data import Dataset
from torch_fidelity import feature_extractor_inceptionv3 as inception

from pidistill.core.tensors import dequantise
from pidistill.evaluation.measure import Measure
from pidistill.evaluation.metrics.frechet import Frechet, frechet_distance
from pidistill.evaluation.metrics.inception_score import InceptionScore
from pidistill.evaluation.metrics.kid import Kid
from pidistill.evaluation.metrics.precision_recall import PrecisionRecall
from pidistill.evaluation.references import make_reference, write_reference
from pidistill.files.datasets import open_images

NUM = 12


class Pictures(Dataset):
    def __init__(self, seed: int, contrast: float):
        noise = torch.randn(NUM, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        self.images = (128 + 60 * contrast * noise).clip(0, 255).to(torch.uint8)

    def __len__(self) -> int:
        return NUM

    def __getitem__(self, k: int) -> torch.Tensor:
        return self.images[k]


@pytest.fixture(scope="module", autouse=True)
def both_cores():
    """Inception, twice over all images, is the slowest part of the suite."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """Random weights whose features vary and do not vanish: every convolution keeps the variance of its input."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        net = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    torch.nn.init.normal_(net.fc.weight, std=0.05)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(net.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def theirs(weights) -> dict[str, float]:
    return torch_fidelity.calculate_metrics(
        input1=Pictures(0, 1.0), input2=Pictures(1, 0.6), feature_extractor="inception-v3-compat", fid=True, isc=True,
        feature_extractor_weights_path=weights, kid=True, prc=True, feature_layer_prc="2048",
        kid_subset_size=NUM, batch_size=20, cuda=False, cache=False, verbose=False, save_cpu_ram=True)


@pytest.fixture(scope="module")
def ours(weights, tmp_path_factory) -> dict[str, float]:
    """By way of a reference's file, made of the second set as an NPZ."""
    folder = tmp_path_factory.mktemp("reference")
    np.savez(folder / "data.npz", images=Pictures(1, 0.6).images.permute(0, 2, 3, 1).numpy())
    measure = Measure(f"inception:{weights}", str(folder / "data.npz"), (3, 16, 16))
    data = open_images(folder / "data.npz")
    write_reference(folder / "ref.npz", make_reference(data, "data", measure.net, "inception", measure.hash))
    names = ["frechet", "inception_score", "kid", "precision_recall"]
    measure = Measure(f"inception:{weights}", str(folder / "ref.npz"), (3, 16, 16), metrics=names)
    return measure(dequantise(Pictures(0, 1.0).images), batch=25)


@pytest.mark.parametrize("key, their_key", [
    ("fid", "frechet_inception_distance"), ("is", "inception_score_mean"), ("is_std", "inception_score_std"),
    ("kid", "kernel_inception_distance_mean"), ("kid_std", "kernel_inception_distance_std"), ("precision", "precision"),
    ("recall", "recall")])
def test_equals_torch_fidelity(ours, theirs, key, their_key):
    assert ours[key] == pytest.approx(theirs[their_key], rel=1e-3, abs=1e-6)
    assert key != "fid" or ours[key] > 1


def test_features_of_thousands_against_torch_fidelity():
    """Enough points for subsets of KID and for precision and recall to lie between 0 and 1."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    from pidistill.evaluation.metrics.base import ImageBatch, Reference

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1500, 8, generator=generator) * scale for scale in (1.0, 1.3))
    reference = Reference(*(torch.from_numpy(np.asarray(x)) for x in (b.double().mean(0), torch.cov(b.double().T))), b)
    fid, score = Frechet(1500, 8, reference, "fid"), InceptionScore(1500, 8, None)
    for rows in torch.arange(1500).split(128):
        batch = ImageBatch(a[rows], rows.tolist(), a[rows], 3 * a[rows])
        fid.add(batch)
        score.add(batch)
    their_fid = fid_statistics_to_metric(*(fid_features_to_statistics(x) for x in (a, b)), verbose=False)
    assert fid.result()["fid"] == pytest.approx(their_fid["frechet_inception_distance"], rel=1e-3)
    assert score.result()["is"] == pytest.approx(isc_features_to_metric(3 * a)["inception_score_mean"], rel=1e-6)
    kid = Kid(1500, 8, reference).result(a)
    assert kid["kid"] == pytest.approx(kid_features_to_metric(a, b, verbose=False)["kernel_inception_distance_mean"])
    found = PrecisionRecall(1500, 8, reference).result(a)
    their = prc_features_to_metric(a, b, verbose=False, save_cpu_ram=False)
    assert found == {key: pytest.approx(their[key], abs=2e-3) for key in ("precision", "recall")}
    assert 0.1 < found["recall"] < found["precision"] <= 1


@pytest.mark.parametrize("ranks", [(10, 10), (3, 10), (10, 4), (3, 4), (1, 1)])
def test_frechet_distance_to_fifty_digits(ranks):
    """Also of singular covariances, against mpmath's matrix square root of the product's symmetric form."""
    generator = torch.Generator().manual_seed(sum(ranks))
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)
    (m, p), (n, q) = ((draw(10), draw(10, rank)) for rank in ranks)
    with mpmath.workdps(50):
        P, Q = mpmath.matrix(p.tolist()), mpmath.matrix(q.tolist())
        # tr (A^1/2 B A^1/2)^1/2 with A = P P^T and B = Q Q^T is the sum of the singular values of P^T Q.
        cross = mpmath.fsum(mpmath.svd_r(P.T * Q, compute_uv=False))
        square = mpmath.fsum((a - b) ** 2 for a, b in zip(m.tolist(), n.tolist()))
        exact = square + mpmath.fsum((P * P.T)[k, k] + (Q * Q.T)[k, k] for k in range(10)) - 2 * cross
    assert frechet_distance((m, p @ p.T), (n, q @ q.T)) == pytest.approx(float(exact), rel=1e-8)


def test_formulas_of_edms_fid_py():
    """mu = sum / N, sigma = (sum of outer products - N mu mu^T) / (N - 1); |mu - mu'|^2 + tr(S + S' - 2 sqrtm(S S'))."""
    import scipy.linalg

    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(300, 12)) + 0.5, generator.normal(size=(200, 12)) @ generator.normal(size=(12, 12))
    stats = []
    for x in (a, b):
        mu, outer = sum(x) / len(x), sum(np.outer(row, row) for row in x)
        stats.append((mu, (outer - len(x) * np.outer(mu, mu)) / (len(x) - 1)))
    (mu, sigma), (mu_ref, sigma_ref) = stats
    expected = np.square(mu - mu_ref).sum() + np.trace(sigma + sigma_ref - 2 * scipy.linalg.sqrtm(sigma @ sigma_ref).real)
    as_tensors = [tuple(torch.from_numpy(x) for x in each) for each in stats]
    assert frechet_distance(*as_tensors) == pytest.approx(expected, rel=1e-8)
