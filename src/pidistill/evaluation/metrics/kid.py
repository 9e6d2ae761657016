"""The Kernel Inception Distance (Binkowski et al., 2018) is computed by torch-fidelity.

KID = E k(x, x') + E k(y, y') - 2 E k(x, y) with k(x, y) = (x.y/d + 1)^3, the squared maximum mean discrepancy.
"""

from __future__ import annotations

from torch import Tensor

from pidistill.evaluation.metrics.base import Metric

SUBSET = 1000


class Kid(Metric):
    """The metrics are `kid` and `kid_std`, mean and deviation over 100 random subsets of 1000 images.

    Where there are fewer images, or kept features of the reference, the subsets are as large as those. The estimate is
    unbiased, so it may be a little below 0.
    """

    needs = "stored"

    def doubts(self) -> list[str]:
        few = self.count_smaller()
        return [f"KID of {few} images is noisy, and its deviation is that of subsets that overlap; use {SUBSET} or more, of "
                "the model and of the data"] if few < SUBSET else []

    def result(self, stored: Tensor | None = None) -> dict[str, float]:
        from torch_fidelity.metric_kid import kid_features_to_metric

        assert stored is not None and self.reference is not None and self.reference.features is not None
        data = self.reference.features
        out = kid_features_to_metric(stored, data, kid_subset_size=min(SUBSET, len(stored), len(data)), verbose=False)
        return {"kid": out["kernel_inception_distance_mean"], "kid_std": out["kernel_inception_distance_std"]}
