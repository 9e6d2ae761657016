"""Inception v3, the network that FID is defined with (Heusel et al., 2017), as ported by torch-fidelity."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pidistill.core.errors import PidistillError, first_line
from pidistill.core.tensors import quantise
from pidistill.files.downloads import check_hash, fetch_published
from pidistill.files.weights import read_state_dict


def inception(rest: str) -> Inception:
    """The network with torch-fidelity's weights. rest: their file; without one torch.hub's cache has them, or gets them."""
    return Inception(Path(rest) if rest else fetch_published(torch_fidelity().URL_INCEPTION_V3, "Inception v3",
                                                             "evaluate.features=inception:FILE"))


class Inception(nn.Module):
    """The Inception v3 of 2015-12-05: images (B, C, H, W) in [-1, 1], quantised first -> features (B, 2048).

    weights: the file of its weights.
    """

    distance = "fid"  # what the Frechet distance in its features is called

    def __init__(self, weights: Path):
        super().__init__()
        check_hash(weights)
        state, library = read_state_dict(weights), torch_fidelity()
        library.load_state_dict_from_url = lambda *_, **__: state  # of this copy of the module alone
        try:
            self.net = library.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        except RuntimeError as error:
            raise PidistillError(f"{weights} does not fit Inception v3: {first_line(error)}") from None

    def layers(self, x: Tensor) -> list[Tensor]:
        return [self.features(x)]

    def features(self, x: Tensor) -> Tensor:
        return self.net(quantise(x).expand(-1, 3, -1, -1))[0]  # grey images: three equal channels

    def classify(self, features: Tensor) -> Tensor:
        """(B, 2048) -> the 1008 logits that the Inception Score is defined with: without the bias."""
        return features @ self.net.fc.weight.T


def torch_fidelity() -> Any:
    """A copy of torch-fidelity's module of its own.

    The network's constructor there fetches the weights, or unpickles a file that it is given. In the copy it is handed
    weights that were read safely, and nobody else's module is changed.
    """
    spec = importlib.util.find_spec("torch_fidelity.feature_extractor_inceptionv3")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
