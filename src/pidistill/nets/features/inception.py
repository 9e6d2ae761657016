"""Inception v3, the network that FID is defined with (Heusel et al., 2017), as ported by torch-fidelity."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

from torch import Tensor, nn

from pidistill.core.errors import PidistillError, first_line
from pidistill.core.tensors import quantise
from pidistill.files.downloads import check_hash, published
from pidistill.files.weights import read_state_dict


class Inception(nn.Module):
    """The Inception v3 of 2015-12-05 that FID is defined with, ported by torch-fidelity: images (B, C, H, W) -> (B, 2048).

    weights: torch-fidelity's file; by default from torch.hub's cache, or fetched there.
    """

    def __init__(self, weights: str | None = None):
        super().__init__()
        from torch_fidelity import feature_extractor_inceptionv3 as inception

        path = Path(weights) if weights else published(inception.URL_INCEPTION_V3, "Inception v3",
                                                       "evaluate.features=inception:FILE")
        check_hash(path)
        state = read_state_dict(path)
        try:  # its constructor reads the weights itself, and a path that it is given with weights_only=False
            with patch.object(inception, "load_state_dict_from_url", lambda *_, **__: state):
                self.net = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        except RuntimeError as error:
            raise PidistillError(f"{path} does not fit Inception v3: {first_line(error)}") from None

    def layers(self, x: Tensor) -> list[Tensor]:
        return [self.features(x)]

    def features(self, x: Tensor) -> Tensor:
        return self.net(quantise(x).expand(-1, 3, -1, -1))[0]  # grey images: three equal channels

    def classify(self, features: Tensor) -> Tensor:
        """(B, 2048) -> the 1008 logits that the Inception Score is defined with: without the bias."""
        return features @ self.net.fc.weight.T
