"""The Inception Score (Salimans et al., 2016) is exp(mean_i KL(p(c | x_i) || p(c))), over the classes of images x_i."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pidistill.core.tensors import home_of_float64, to_float64
from pidistill.evaluation.metrics.base import ImageBatch, Metric, Reference

SPLITS, SEED = 10, 2020  # torch-fidelity's: the mean over ten parts of the images, in a random order


class InceptionScore(Metric):
    """The metrics are `is` and `is_std`, mean and deviation over ten parts: exp(mean_i sum_c p_ic (log p_ic - log p_c)).

    The classes are Inception's 1008, by its unbiased logits, or those of any network that has `classify`.
    """

    needs = "logits"

    def __init__(self, num: int, width: int, reference: Reference | None, key: str = "", device: torch.device | str = "cpu"):
        super().__init__(num, width, reference)
        splits = min(SPLITS, num)
        order = np.random.RandomState(SEED).permutation(num)
        split = np.empty(num, dtype=np.int64)
        for k in range(splits):
            split[order[k * num // splits:(k + 1) * num // splits]] = k
        self.split = torch.from_numpy(split)  # of each image
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=home_of_float64(torch.device(device)))
        self.state = {"n": zeros(splits), "entropy": zeros(splits), "p": zeros(splits, width)}

    def add(self, batch: ImageBatch) -> None:
        assert batch.logits is not None
        log_p = to_float64(batch.logits).to(self.state["p"].device).log_softmax(dim=1)
        p, split = log_p.exp(), self.split[list(batch.rows)].to(log_p.device)
        self.state["n"].index_add_(0, split, torch.ones_like(p[:, 0]))
        self.state["entropy"].index_add_(0, split, (p * log_p).sum(dim=1))
        self.state["p"].index_add_(0, split, p)

    def doubts(self) -> list[str]:
        classes, part = self.state["p"].shape[1], self.num // len(self.state["n"])
        if classes < 2:
            return ["the Inception Score means nothing: it is 1 of whatever images, as the feature network has one class"]
        if part < 2:
            return [f"the Inception Score of {self.num} images means nothing: it is 1 for each of its parts that has one "
                    f"image, whatever it shows; use {SPLITS * classes} images or more"]
        return [f"the Inception Score of {self.num} images is biased downwards: in each of its parts there are {part} for "
                f"{classes} classes; use {SPLITS * classes} images or more"] if part < classes else []

    def result(self, stored: Tensor | None = None) -> dict[str, float]:
        n, entropy, p = (self.state[key].cpu() for key in ("n", "entropy", "p"))
        mean = p / n[:, None]
        scores = (entropy / n - torch.special.xlogy(mean, mean).sum(dim=1)).exp()
        return {"is": float(scores.mean()), "is_std": float(scores.std(correction=0))}
