"""Improved precision and recall (Kynkaanniemi et al., 2019) tell fidelity from variety; torch-fidelity computes them."""

from __future__ import annotations

from collections import Counter

from torch import Tensor

from pidistill.evaluation.metrics.base import Metric

NEIGHBOUR = 3  # whose distance is a point's radius
ENOUGH = 1000  # images; a share of so many has a standard error of 1.6 per cent at most


class PrecisionRecall(Metric):
    """The metrics are `precision`, the share of images among the data, and `recall`, that of the data among the images.

    Among: nearer to one of them than its third neighbour of its own kind is, in the features. Those of the paper are VGG's;
    ADM's and EDM2's tables use Inception's, as we do unless another network is named.
    """

    needs = "stored"

    def doubts(self) -> list[str]:
        few = self.count_smaller()
        if few <= NEIGHBOUR:
            return [f"precision and recall of {few} images mean nothing: none of them has a third neighbour; use {ENOUGH} "
                    "or more, of the model and of the data"]
        return [f"precision and recall of {few} images are noisy; use {ENOUGH} or more, of the model and of the data"
                ] if few < ENOUGH else []

    def result(self, stored: Tensor | None = None) -> dict[str, float]:
        from torch_fidelity.metric_prc import prc_features_to_metric

        assert stored is not None and self.reference is not None and self.reference.features is not None
        copies, kept = Counter(row.tobytes() for row in self.reference.features.numpy()), len(self.reference.features)
        if (same := sum(count for count in copies.values() if count > NEIGHBOUR)) > kept / 2:
            self.remarks = [f"precision and recall mean nothing: {same} of {kept} features of the data equal their third "
                            "neighbour, so that no other image is near them"]
        nearest = min(NEIGHBOUR, len(stored) - 1, len(self.reference.features) - 1)
        # Distances of 1000 images at a time: all of 50,000 would need 10 GB.
        out = prc_features_to_metric(stored, self.reference.features, prc_neighborhood=nearest, prc_batch_size=1000,
                                     save_cpu_ram=True, verbose=False)
        return {"precision": out["precision"], "recall": out["recall"]}
