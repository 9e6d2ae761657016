"""The paper's Tables 1 and 2 are kept as numbers, for tables beside one's own.

As the paper reports them, from the respective papers; an asterisk marks methods that need a synthetic data set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PublishedResult:
    """A row of the paper's tables is the result of one method.

    distance: that it was trained with; empty where there is none. nfe: evaluations of the network.
    fid, inception_score: as reported.
    """

    method: str
    distance: str
    nfe: int
    fid: float
    inception_score: float | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The reported numbers, by the keys of our own."""
        return {"fid": self.fid, **({} if self.inception_score is None else {"is": self.inception_score})}

    def record(self) -> dict[str, Any]:
        """Write the row for JSON."""
        return {"method": self.method, "distance": self.distance, "nfe": self.nfe, "fid": self.fid,
                "is": self.inception_score}


PUBLISHED: dict[str, list[PublishedResult]] = {
    "cifar10": [  # Table 1
        PublishedResult("EDM (Karras et al., 2022)", "", 36, 2.04),
        PublishedResult("EDM + Euler solver (Karras et al., 2022)", "", 250, 2.10),
        PublishedResult("DDPM (Ho et al., 2020)", "", 1000, 3.17, 9.46),
        PublishedResult("DDIM (Song et al., 2021)", "", 10, 13.36),
        PublishedResult("DDIM (Song et al., 2021)", "", 50, 4.67),
        PublishedResult("DPM-Solver-Fast (Lu et al., 2022)", "", 10, 4.70),
        PublishedResult("3-DEIS (Zhang & Chen, 2023)", "", 10, 4.17),
        PublishedResult("Progressive Distillation (Salimans & Ho, 2022)", "L2", 1, 8.34, 8.69),
        PublishedResult("DSNO* (Zheng et al., 2023)", "LPIPS", 1, 3.78),
        PublishedResult("2-Rectified Flow (+ distill)* (Liu et al., 2023)", "LPIPS", 1, 4.85, 9.01),
        PublishedResult("Consistency Model (Song et al., 2023)", "LPIPS", 1, 3.55, 9.48),
        PublishedResult("BOOT (Gu et al., 2023)", "LPIPS", 1, 4.38),
        PublishedResult("Diff-Instruct (Luo et al., 2023)", "L2", 1, 4.12, 9.89),
        PublishedResult("Equilibrium Models (Geng et al., 2023)", "L1", 1, 6.91, 9.16),
        PublishedResult("PID", "LPIPS", 1, 3.92, 9.13),
    ],
    "imagenet64": [  # Table 2
        PublishedResult("ADM (Dhariwal & Nichol, 2021)", "", 250, 2.07),
        PublishedResult("EDM (Karras et al., 2022)", "", 79, 2.44),
        PublishedResult("EDM + Euler solver (Karras et al., 2022)", "", 250, 2.41),
        PublishedResult("BigGAN-deep (Brock et al., 2019)", "", 1, 4.06),
        PublishedResult("Progressive Distillation (Salimans & Ho, 2022)", "L2", 1, 15.39),
        PublishedResult("DSNO* (Zheng et al., 2023)", "L1", 1, 7.83),
        PublishedResult("Consistency Model (Song et al., 2023)", "LPIPS", 1, 6.20),
        PublishedResult("BOOT (Gu et al., 2023)", "LPIPS", 1, 12.3),
        PublishedResult("Diff-Instruct (Luo et al., 2023)", "L2", 1, 4.24),
        PublishedResult("PID", "LPIPS", 1, 9.49),
    ],
}
