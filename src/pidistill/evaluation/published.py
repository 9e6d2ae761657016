"""Numbers of the paper's Tables 1 and 2, for tables beside one's own: (method, distance, evaluations, FID, IS).

As the paper reports them, from the respective papers; an asterisk marks methods that need a synthetic data set.
"""

from __future__ import annotations

PUBLISHED: dict[str, list[tuple[str, str, int, float, float | None]]] = {
    "cifar10": [  # Table 1
        ("EDM (Karras et al., 2022)", "", 36, 2.04, None),
        ("EDM + Euler solver (Karras et al., 2022)", "", 250, 2.10, None),
        ("DDPM (Ho et al., 2020)", "", 1000, 3.17, 9.46),
        ("DDIM (Song et al., 2021)", "", 10, 13.36, None),
        ("DDIM (Song et al., 2021)", "", 50, 4.67, None),
        ("DPM-Solver-Fast (Lu et al., 2022)", "", 10, 4.70, None),
        ("3-DEIS (Zhang & Chen, 2023)", "", 10, 4.17, None),
        ("Progressive Distillation (Salimans & Ho, 2022)", "L2", 1, 8.34, 8.69),
        ("DSNO* (Zheng et al., 2023)", "LPIPS", 1, 3.78, None),
        ("2-Rectified Flow (+ distill)* (Liu et al., 2023)", "LPIPS", 1, 4.85, 9.01),
        ("Consistency Model (Song et al., 2023)", "LPIPS", 1, 3.55, 9.48),
        ("BOOT (Gu et al., 2023)", "LPIPS", 1, 4.38, None),
        ("Diff-Instruct (Luo et al., 2023)", "L2", 1, 4.12, 9.89),
        ("Equilibrium Models (Geng et al., 2023)", "L1", 1, 6.91, 9.16),
        ("PID", "LPIPS", 1, 3.92, 9.13),
    ],
    "imagenet64": [  # Table 2
        ("ADM (Dhariwal & Nichol, 2021)", "", 250, 2.07, None),
        ("EDM (Karras et al., 2022)", "", 79, 2.44, None),
        ("EDM + Euler solver (Karras et al., 2022)", "", 250, 2.41, None),
        ("BigGAN-deep (Brock et al., 2019)", "", 1, 4.06, None),
        ("Progressive Distillation (Salimans & Ho, 2022)", "L2", 1, 15.39, None),
        ("DSNO* (Zheng et al., 2023)", "L1", 1, 7.83, None),
        ("Consistency Model (Song et al., 2023)", "LPIPS", 1, 6.20, None),
        ("BOOT (Gu et al., 2023)", "LPIPS", 1, 12.3, None),
        ("Diff-Instruct (Luo et al., 2023)", "L2", 1, 4.24, None),
        ("PID", "LPIPS", 1, 9.49, None),
    ],
}
