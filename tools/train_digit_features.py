"""Train a bundled digit classifier and write its reference statistics.

    python tools/train_digit_features.py                                        # the network of the metric, `digits`
    python tools/train_digit_features.py --seed 1 --width 32 --pool avg \
        --out src/pidistill/assets/digits_perceptual/features                   # the network of the perceptual distance

Two networks, because a student that was trained in the metric's own features would flatter itself.
4,500 digits train each, 500 are held out to measure its accuracy (others for another seed); the reference statistics
are over all 5,000, quantised.
"""

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from pidistill.core.provenance import find_commit, list_versions
from pidistill.core.tensors import dequantise, quantise
from pidistill.evaluation.metrics.frechet import fit_gaussian, relative_frechet
from pidistill.files.datasets import load_digits
from pidistill.files.folders import write_folder
from pidistill.nets.features.digit_classifier import DigitClassifier

STEPS, BATCH, LR = 1200, 128, 4e-3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("src/pidistill/assets/digits/features"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--pool", choices=["max", "avg"], default="max")
    args = parser.parse_args()
    data = load_digits()
    images = torch.from_numpy(np.stack([data.sample(k)["y"] for k in range(len(data))]))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))
    held_out, training = order[:500], order[500:]
    torch.manual_seed(args.seed)
    options = {"width": args.width, "dim": 32, "pool": args.pool}
    net = DigitClassifier(**options)
    optimizer = torch.optim.AdamW(net.parameters(), LR, weight_decay=0.2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, STEPS)
    for _ in range(STEPS):
        rows = training[torch.randint(len(training), (BATCH,))]
        shift = tuple(torch.randint(-1, 2, (2,)).tolist())
        loss = F.cross_entropy(net(torch.roll(images[rows], shift, (2, 3))), data.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()
    with torch.inference_mode():
        accuracy = (net(images[held_out]).argmax(1) == data.labels[held_out]).double().mean().item()
        features = net.features(dequantise(quantise(images)))
    mean, covariance = fit_gaussian(features)
    halves = []
    for _ in range(20):
        a, b = torch.randperm(len(features)).chunk(2)
        halves.append(relative_frechet(fit_gaussian(features[a]), fit_gaussian(features[b])))
    provenance = {"command": shlex.join(["python", *sys.argv]), "commit": find_commit(), "seed": args.seed, "steps": STEPS,
                  "batch": BATCH, "final_loss": loss.item(), "held_out_accuracy": accuracy,
                  "fd_of_two_halves": {"mean": sum(halves) / 20, "min": min(halves), "max": max(halves)},
                  "data_licence": data.licence, "versions": list_versions()}
    reference = {"mean": mean, "covariance": covariance, "features": features}
    write_folder(args.out, {"model": net.state_dict(), "reference": reference},
                 {"config": {"net": {"name": "digit_classifier", **options}}, "provenance": provenance})
    print(f"held-out accuracy {accuracy:.3f}; FD of halves {sum(halves) / 20:.3f} ({min(halves):.3f} to {max(halves):.3f})")


if __name__ == "__main__":
    main()
