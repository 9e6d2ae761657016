"""What an evaluation of 50,000 images of 32x32 costs beside its networks: memory, and time.

Memory: the whole measurement with all metrics, in which stand-ins that cost nothing take the place of student and Inception
(2048 features, 1008 logits); the resident set's peak over that before the measurement began. Time: the seconds of everything
in that run, which is all but the networks, against what the networks take for as many images: a student of the size of EDM's
CIFAR-10 network and Inception v3, both with random weights, timed on a few batches in the same program.

    python benchmarks/evaluation.py --write benchmarks/results/evaluation.md
"""

from __future__ import annotations

import argparse
import resource
import threading
import time
from pathlib import Path
from unittest.mock import patch

import psutil
import torch
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as inception

from pidistill.core.provenance import find_commit, list_versions
from pidistill.core.seeds import noise
from pidistill.evaluation.measure import Measure
from pidistill.evaluation.metrics.base import Reference
from pidistill.evaluation.results import Measurement
from pidistill.evaluation.side_by_side import measure_models
from pidistill.evaluation.subject import Subject
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import load_teacher
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config

SHAPE = (3, 32, 32)
METRICS = {"fid": ["frechet"], "fid,is": ["frechet", "inception_score"],
           "fid,is,kid": ["frechet", "inception_score", "kid"],
           "fid,is,kid,pr": ["frechet", "inception_score", "kid", "precision_recall"]}


class Cheap(nn.Module):
    """Features in no time: a table, chosen and scaled by the image."""

    distance = "fid"

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("table", torch.rand(4096, 2048, generator=generator))
        self.register_buffer("classes", torch.randn(2048, 1008, generator=generator) / 8)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        key = (x.flatten(1)[:, ::7].abs().sum(dim=1) * 1e4).long()
        return self.table[key % 4096] * self.table[key // 4096 % 4096]

    def layers(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.features(x)]

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return features[:, :1008]


class Peak(threading.Thread):
    """The largest resident set of this process, looked at every 5 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.process, self.running = psutil.Process(), True
        self.before = self.peak = self.process.memory_info().rss

    def run(self) -> None:
        while self.running:
            self.peak = max(self.peak, self.process.memory_info().rss)
            time.sleep(0.005)


def measure(names: list[str], num: int, batch: int) -> tuple[float, float]:
    """(peak in GB over the start, seconds of all but the networks)."""
    net = Cheap()
    with patch("pidistill.evaluation.measure.load_features", lambda spec: net), \
            patch("pidistill.evaluation.measure.load_reference", lambda *_: reference()):
        tool = Measure("cheap", None, SHAPE, metrics=names)
    subject = Subject(nn.Identity(), lambda seeds, y, n: noise(seeds, SHAPE).clip(-1, 1), {})
    subject.network(torch.zeros(1))
    subject._count = lambda *_: None  # type: ignore[method-assign]
    subject.make_measurement = lambda metrics, settings: Measurement(0, 0.0)  # type: ignore[method-assign]
    peak = Peak()
    peak.start()
    began = time.perf_counter()
    measure_models({"student": subject}, tool, range(num), batch=batch)
    seconds = time.perf_counter() - began
    peak.running = False
    return (peak.peak - peak.before) / 1e9, seconds


def reference() -> Reference:
    features = torch.rand(10_000, 2048, generator=torch.Generator().manual_seed(1)) ** 2
    return Reference(features.double().mean(dim=0), torch.cov(features.double().T), features)


def networks(batch: int, turns: int) -> tuple[float, float]:
    """Seconds an image of the student and of Inception, taken in turn."""
    config = load_config(DistillConfig, "cifar10")
    student = make_student(load_teacher(config.teacher, weights=False), "random").eval().to_empty(device="cpu")
    with patch.object(inception, "load_state_dict_from_url", lambda *_, **__: None), \
            patch.object(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None):
        extractor = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).eval()
    for p in student.parameters():
        nn.init.normal_(p, std=0.02)
    times = [0.0, 0.0]
    for k in range(turns + 1):
        began = time.perf_counter()
        images = student.sample(range(batch), batch_size=batch)
        middle = time.perf_counter()
        with torch.inference_mode():
            extractor((images * 127.5 + 128).clip(0, 255).to(torch.uint8))
        if k:  # the first warms up
            times[0] += middle - began
            times[1] += time.perf_counter() - middle
    return times[0] / turns / batch, times[1] / turns / batch


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--num", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    student, extractor = networks(32, args.turns)
    lines = [f"`python benchmarks/evaluation.py`, {torch.get_num_threads()} threads, commit {find_commit()[:12]}, torch "
             f"{list_versions()['torch']}. {args.num} images of {SHAPE}; the networks would take {student * 1000:.0f} ms "
             f"(student of EDM's CIFAR-10 size) and {extractor * 1000:.0f} ms (Inception v3) an image here.", "",
             "| metrics | peak memory beside the networks, GB | seconds of all but the networks | of the networks' time |",
             "|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    for name, metrics in METRICS.items():
        gigabytes, seconds = measure(metrics, args.num, args.batch)
        share = seconds / (args.num * (student + extractor))
        lines.append(f"| {name} | {gigabytes:.2f} | {seconds:.0f} | {100 * share:.1f} % |")
        print(lines[-1], flush=True)
    print(f"peak of the whole program: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    if args.write:
        args.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
