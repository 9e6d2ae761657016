"""One process or two: the same draws, the same weights."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from pidistill.files import read_json, read_metrics, read_tensors

FLAGS = ["--teacher", "gaussian:2,modes=4,std=0.2", "--set", "student={init: random, net: {name: mlp, width: 16, depth: 2}}",
         "--set", "train={steps: 4, batch: 8, microbatch: 3}", "--set", "evaluate.num=8", "--set", "grid.points=10",
         "--set", "log.every=1", "--set", "optimizer.lr=1e-2", "--set", "checkpoint.every=2"]
RECORD = """
import json, os, sys
from pidistill import trainer
plain = trainer.draws
def draws(objective, seed, step, ks, device):
    batch = plain(objective, seed, step, ks, device)
    with open(f"{sys.argv[-1]}.draws{os.environ.get('RANK', 0)}", "a") as file:
        for row, k in enumerate(ks):
            file.write(json.dumps([step, k, {key: value[row].tolist() for key, value in batch.items()}]) + "\\n")
    return batch
trainer.draws = draws
from pidistill.cli import main
main()
"""


def run(tmp_path, name: str, processes: int, *flags: str):
    script = tmp_path / "record.py"
    script.write_text(RECORD)
    launch = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    done = subprocess.run([sys.executable, *launch, str(script), "distill", *FLAGS, *flags, "--out", str(tmp_path / name)],
                          capture_output=True, text=True, timeout=200,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"})
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_two_processes_train_the_same_student(tmp_path):
    outputs = [run(tmp_path, "one", 1), run(tmp_path, "two", 2, "--set", "train.microbatch=auto")]
    one, two = tmp_path / "one", tmp_path / "two"
    lines = [sorted(line for path in tmp_path.glob(f"{name}.draws*") for line in path.read_text().splitlines())
             for name in ("one", "two")]
    assert lines[0] == lines[1] and len(lines[0]) == 4 * 8  # every draw once, whoever made it
    assert len(list(tmp_path.glob("two.draws*"))) == 2
    for path in ("student/model", "checkpoints/000004/student", "checkpoints/000004/optimizer"):
        a, b = (read_tensors(run / f"{path}.safetensors") for run in (one, two))
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=0, atol=1e-6, msg=f"{path} {key}")
    for a, b in zip(read_metrics(one), read_metrics(two), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    rmse = [read_json(run / "results.json")["student"]["trajectory_rmse"] for run in (one, two)]
    assert rmse[0] == pytest.approx(rmse[1], rel=1e-4)
    assert outputs[1].stdout.count("student in") == 1  # only the main process talks
    assert outputs[1].stderr.count("microbatches of 4 of 4") == 1
