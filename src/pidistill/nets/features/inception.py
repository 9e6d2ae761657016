"""Inception v3, the network with which FID is defined (Heusel et al., 2017), as ported by torch-fidelity."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pidistill.core.tensors import quantise
from pidistill.files.downloads import check_hash, fetch_published
from pidistill.files.selection import load_chosen, split_entry


def inception(rest: str) -> Inception:
    """Load the network with its weights. rest: `FILE[,entry=NAME]`; without it torch.hub's cache has them, or gets them."""
    return Inception(*split_entry(rest)) if rest else Inception(fetch_published(
        copy_torch_fidelity().URL_INCEPTION_V3, "Inception v3", "evaluate.features=inception:FILE"))


class Inception(nn.Module):
    """The Inception v3 of 2015-12-05 maps images (B, C, H, W) in [-1, 1], quantised first, to features (B, 2048).

    weights: file of its weights, whose SHA-256 must begin with the hash in the file's name, if there is one.
    entry: of the file, as in `choose_weights`.
    """

    distance = "fid"  # name of the Frechet distance in its features

    def __init__(self, weights: Path, entry: str | None = None):
        super().__init__()
        check_hash(weights)
        library = copy_torch_fidelity()
        library.load_state_dict_from_url = lambda *_, **__: {}  # of this copy of the module alone
        network = library.FeatureExtractorInceptionV3
        network.load_state_dict = lambda *_: None  # what its constructor loads; below the class is as it was
        self.net = network("inception-v3-compat", ["2048"])
        del network.load_state_dict
        load_chosen(self.net, weights, "Inception v3", entry=entry)

    def layers(self, x: Tensor) -> list[Tensor]:
        return [self.features(x)]

    def features(self, x: Tensor) -> Tensor:
        return self.net(quantise(x).expand(-1, 3, -1, -1))[0]  # grey images: three equal channels

    def classify(self, features: Tensor) -> Tensor:
        """Give the 1008 logits with which the Inception Score is defined, without the bias: (B, 2048) -> (B, 1008)."""
        return features @ self.net.fc.weight.T


def copy_torch_fidelity() -> Any:
    """Load a second copy of torch-fidelity's module of Inception v3.

    The network's constructor there fetches the weights, or unpickles a file that it is given. In the copy it does neither,
    and nobody else's module is changed.
    """
    spec = importlib.util.find_spec("torch_fidelity.feature_extractor_inceptionv3")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
