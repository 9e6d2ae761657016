"""One process or several, fewer or more after an interruption, one that dies: the same draws, the same weights, no hang."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from pidistill.files.reading import read_json
from pidistill.files.weights import read_tensors
from pidistill.training.checkpoint import list_checkpoints, newest
from pidistill.training.log import read_metrics
from tests.helpers import exit_code, in_clean_child

FLAGS = ["--teacher", "gaussian:2,modes=4,std=0.2", "--set", "student={init: random, net: {name: mlp, width: 16, depth: 2}}",
         "--set", "evaluate.num=8", "--set", "grid.points=10", "--set", "log.every=1", "--set", "optimizer.lr=1e-2",
         "--set", "checkpoint={every: 3, keep: 9}", "--set", "profiles={widths: [0.05, 0.1], every: 2}", "--resume"]
# Records the draws, and sends this process a signal: "RANK STEP NUMBER" (steps from 0).
SCRIPT = """
import json, os, sys
from pidistill.training import batches, setup
plain, rank = batches.draw_batch, os.environ.get("RANK", "0")
who, when, number = os.environ.get("SIGNAL", "- 0 0").split()
def draw_batch(phase, number, seed, step, ks, device):
    batch = plain(phase, number, seed, step, ks, device)
    with open(f"{sys.argv[-1]}.draws{rank}", "a") as file:
        for row, k in enumerate(ks):
            file.write(json.dumps([step, k, {key: value[row].tolist() for key, value in batch.items()}]) + "\\n")
    return batch
class Step(setup.Step):
    def __call__(self, step, *arguments):
        if (rank, str(step)) == (who, when):
            os.kill(os.getpid(), int(number))
        return super().__call__(step, *arguments)
batches.draw_batch, setup.Step = draw_batch, Step
from pidistill.cli import main
main()
"""


# A loop that the second process asks to end with its second step; prints what each process has seen, and its student.
LOOP = """
import json, os, sys
import pidistill
overrides = {"student.init": "random", "student.net": {"name": "mlp", "width": 16, "depth": 2}, "train.steps": 6,
             "train.batch": 7, "evaluate.num": 8, "grid.points": 10, "log.every": 1}
steps, seen = pidistill.steps("gaussian:2,modes=4,std=0.2", out=sys.argv[-1], overrides=overrides), []
while True:
    try:
        step = next(steps)
    except StopIteration as end:
        print(json.dumps([seen, [p.sum().item() for p in end.value.parameters()]]))
        break
    seen.append([step.number, step.losses["pid"], step.main])
    if step.number == 2 and not step.main:
        step.stop()
"""


def launch(tmp_path, name: str, processes: int, *flags: str, send: str = "- 0 0", shards: bool = False,
           script: str = SCRIPT) -> list[tuple[int, str, str]]:
    """As srun does: every process with its number in its environment. Gives (exit code, stdout, stderr) of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    of = lambda rank: {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
    argv = ["script.py", "distill", *FLAGS, *flags, "--out", str(tmp_path / name)]
    outputs = [[tmp_path / f"{rank}.{end}" for end in ("out", "err")] for rank in range(processes)]
    environment = {"ACCELERATE_USE_CPU": "true", "SIGNAL": send}
    if shards:  # what `accelerate launch --use_fsdp --fsdp_version 2` sets
        environment |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    started = [in_clean_child(run_script, script, argv, environment | of(rank), *outputs[rank]) for rank in range(processes)]
    codes = [exit_code(process) for process in started]
    return [(code, *(path.read_text() for path in paths)) for code, paths in zip(codes, outputs)]


def run_script(script: str, argv: list[str], environment: dict[str, str], out, err) -> None:
    os.environ.update(environment)
    for number, name, path in ((1, "stdout", out), (2, "stderr", err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        setattr(sys, name, os.fdopen(number, "w", buffering=1, closefd=False))
    sys.argv = argv
    exec(script, {})


def run(tmp_path, name: str, processes: int, *flags: str, **options) -> list[tuple[int, str, str]]:
    done = launch(tmp_path, name, processes, *flags, **options)
    assert [code for code, *_ in done] == [0] * processes, done[0][2][-2000:]
    return done


def drawn(tmp_path, name: str) -> set[str]:
    return {line for path in tmp_path.glob(f"{name}.draws*") for line in path.read_text().splitlines()}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run of 6 steps by one process."""
    folder = tmp_path_factory.mktemp("one")
    run(folder, "run", 1, "--set", "train={steps: 6, batch: 8, microbatch: 3}")
    return folder


def assert_same(one, other) -> None:
    profiles = [f"profiles/{step:06d}/student-{width}" for step in (2, 4, 6) for width in (0.05, 0.1)]
    for path in ("student/model", "checkpoints/000006/student", "checkpoints/000006/optimizer-pid", *profiles):
        a, b = (read_tensors(folder / f"{path}.safetensors") for folder in (one, other))
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=0, atol=1e-6, msg=f"{path} {key}")
    for a, b in zip(read_metrics(one), read_metrics(other), strict=True):
        keys = a.keys() - {"seconds", "images_per_s", "lr"}
        assert a.keys() == b.keys() and all(a[key] == pytest.approx(b[key], rel=1e-4) for key in keys)
    rmse = [read_json(folder / "results.json")["student"]["trajectory_rmse"] for folder in (one, other)]
    assert rmse[0] == pytest.approx(rmse[1], rel=1e-4)


def test_two_then_one_then_three_processes_train_the_same_student(tmp_path, one):
    """Stopped by SIGTERM to one of two after step 2, continued by one to step 4, finished by three (8 = 2 + 3 + 3)."""
    steps = lambda n, micro="auto": ["--set", f"train={{steps: {n}, batch: 8, microbatch: {micro}}}"]
    two = launch(tmp_path, "run", 2, *steps(6), send="1 1 15")
    assert [code for code, *_ in two] == [143, 143]  # all agreed, one was asked
    stopped = int(newest(tmp_path / "run" / "checkpoints")[0].name)
    assert stopped in (2, 3) and f"stopped by SIGTERM after step {stopped}" in two[0][2] and "stopped" not in two[1][2]
    assert two[0][2].count("microbatches of 4 of 4") == 1 and two[0][1] == ""
    run(tmp_path, "run", 1, *steps(4))
    three = run(tmp_path, "run", 3, *steps(6, 2))  # 2, or 1 + 2: two microbatches, as on the others
    assert sum(output.count("student in") for _, output, _ in three) == 1  # only the main process talks
    assert len(list(tmp_path.glob("run.draws*"))) == 3
    assert drawn(tmp_path, "run") == drawn(one, "run") and len(drawn(one, "run")) == 6 * 8
    assert_same(one / "run", tmp_path / "run")


UNET = ["--set", "student={init: random, net: {name: song_unet, model_channels: 8, channel_mult: [1, 2], num_blocks: 1, "
        "attn_resolutions: [4]}}", "--teacher", "gaussian:1x8x8,modes=4,std=0.2", "--set", "evaluate.every=1"]


@pytest.mark.parametrize("network", [pytest.param([], id="mlp"), pytest.param(UNET, id="song_unet", marks=pytest.mark.slow)])
def test_shards_train_the_same_student(tmp_path, network):
    """FSDP2 on two processes, then on three, then none: against one process. Previews and evaluations gather in between."""
    flags = lambda n: ["--set", f"train={{steps: {n}, batch: 8, microbatch: 2}}", *network]
    run(tmp_path, "whole", 1, *flags(6))
    run(tmp_path, "run", 2, *flags(3), shards=True)
    run(tmp_path, "run", 3, *flags(5), shards=True)
    run(tmp_path, "run", 1, *flags(6))
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_what_shards_cannot_do_is_one_line(tmp_path):
    edm2 = ["--set", "student={init: random, net: {name: edm2_unet, model_channels: 16, channel_mult: [1], num_blocks: 1, "
            "attn_resolutions: []}}", "--teacher", "gaussian:1x8x8"]
    steps = "train={steps: 1, batch: 2, microbatch: %s}"
    for k, (flags, said) in enumerate((([*edm2, "--set", steps % 1], "error: FSDP2 has no shards of a single number"),
                        (["--set", steps % "auto"], "error: train.microbatch=auto does not go with FSDP2"))):
        for code, _, err in launch(tmp_path, f"run{k}", 2, *flags, shards=True):
            assert code == 2 and said in err and "Traceback" not in err


@pytest.mark.slow
def test_torchrun_starts_it(tmp_path, one):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                           str(tmp_path / "script.py"), "distill", *FLAGS, "--set", "train={steps: 6, batch: 8}",
                           "--out", str(tmp_path / "run")], capture_output=True, text=True, timeout=200,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same(one / "run", tmp_path / "run")


def test_the_others_end_when_one_dies(tmp_path):
    """SIGKILL to the second of three: the others end with a line, within a minute, and the run can go on."""
    began = time.monotonic()
    flags = ["--set", "train={steps: 6, batch: 8}"]
    done = launch(tmp_path, "run", 3, *flags, send="1 4 9")
    assert time.monotonic() - began < 60 + 30  # the start of three processes is no part of it
    assert [code for code, *_ in done] == [2, -signal.SIGKILL, 2]
    for _, _, said in (done[0], done[2]):
        assert "error: another process of this run has ended" in said and "Traceback" not in said
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["000003"]


def test_one_of_two_processes_ends_the_run_of_both(tmp_path):
    """With the step after: the same steps and the same student. Each has told the loss of its own samples, of 7 = 3 + 4."""
    done = launch(tmp_path, "run", 2, script=LOOP)
    assert [code for code, *_ in done] == [0, 0], [err[-1000:] for *_, err in done]
    (first, student), (second, other) = (json.loads(out.splitlines()[-1]) for _, out, _ in done)
    assert student == other and [main for *_, main in first + second] == [True] * 3 + [False] * 3
    lines = read_metrics(tmp_path / "run")
    numbers = [[number for number, *_ in seen] for seen in (first, second)]
    assert numbers[0] == numbers[1] == [line["step"] for line in lines] == [1, 2, 3]
    for line, (_, a, _), (_, b, _) in zip(lines, first, second, strict=True):
        assert line["loss"] == pytest.approx((3 * a + 4 * b) / 7, rel=1e-5) and a != b
    assert read_json(tmp_path / "run" / "results.json")["steps"] == 3
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["000003"]
