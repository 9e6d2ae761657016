"""What makes a step fast changes no number: kernels, compilation, draws ahead of time."""

from __future__ import annotations

import threading

import pytest
import torch

from pidistill.core.precision import has_instructions
from pidistill.jobs.build_objective import build_objective
from pidistill.models.teachers.base import load_teacher
from pidistill.nets.parts.native import build
from pidistill.training import batches, setup
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from pidistill.training.setup import compile_objective, place_objective
from pidistill.training.step import Step
from tests.helpers import draw, vgg_weights
from tests.runs import metrics, start_run

RUN = {"train.steps": 6, "log.every": 1, "train.batch": 5, "train.microbatch": 3}  # microbatches of 3 and of 2


def losses(folder, overrides=None, images=True) -> list[float]:
    start_run(folder, RUN | (overrides or {}), images=images)
    return [record["loss"] for record in metrics(folder)]


def digits_step(compile_: str = "never", device: str = "cpu", **overrides) -> tuple[Step, list[dict]]:
    values = {"train.batch": 8, "train.steps": 20, "compile": compile_, "optimizer.clip": 1.0, **overrides}
    config = load_config(DistillConfig, "digits", values)
    objective = build_objective(config, load_teacher("bundled:digits"))
    place_objective(objective, torch.device(device))
    step = Step(objective, config, torch.device(device))
    compile_objective(objective, config, torch.device(device))
    return step, [draw(objective, range(8), step=s, device=device) for s in range(config.train.steps)]


def curve(step: Step, batches: list[dict], steps: int) -> list[float]:
    """The losses of the first steps."""
    return [step(k, lambda k=k: [(0, batches[k])], 8)["pid"].loss.item() for k in range(steps)]


@pytest.mark.skipif(build.load_library() is None, reason="no C compiler, or not Linux")
def test_kernels_leave_the_loss_curve_as_it_is(monkeypatch):
    curves = []
    for kernels in (build.load_library(), None):
        monkeypatch.setattr(build, "load_library", lambda kernels=kernels: kernels)
        curves.append(curve(*digits_step(), 8))
    assert curves[0] == pytest.approx(curves[1], rel=2e-4) and curves[0] != curves[1]
    assert curves[0][0] == pytest.approx(curves[1][0], rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_compiled_runs_have_the_same_losses_and_compile_once(tmp_path, monkeypatch):
    """Dynamo without its back end, which needs a compiler: every graph is made in the first step."""
    torch._dynamo.reset()
    graphs, when = [], []

    def backend(graph, inputs):
        graphs.append(len(when))
        return graph.forward

    compile_, call = torch.compile, Step.__call__
    monkeypatch.setattr(torch, "compile", lambda f, **_: compile_(f, dynamic=False, backend=backend))
    monkeypatch.setattr(Step, "__call__", lambda self, *a: (when.append(0), call(self, *a))[1])
    fast = losses(tmp_path / "a", {"compile": "default"})
    torch._dynamo.reset()
    assert graphs and set(graphs) == {1}
    assert fast == pytest.approx(losses(tmp_path / "b"), rel=1e-4)


@pytest.mark.parametrize("choice, compiles", [("auto", False), ("never", False), ("default", True), ("max-autotune", True)])
def test_what_is_compiled(tmp_path, monkeypatch, choice, compiles):
    seen = []
    monkeypatch.setattr(setup, "try_compile", lambda target, what, **options: (seen.append((what, options)), target)[1])
    losses(tmp_path / "a", {"compile": choice})
    assert [what for what, _ in seen] == ["the student's network", "the teacher", "the distance"] * compiles
    assert all(options.get("mode") == (choice if "-" in choice else None) for _, options in seen)


def test_the_next_draws_are_made_by_another_thread(tmp_path, monkeypatch):
    names = set()
    draw = batches.draw_batch
    monkeypatch.setattr(batches, "draw_batch", lambda *a: (names.add(threading.current_thread().name), draw(*a))[1])
    losses(tmp_path / "a", images=False)
    assert names and threading.main_thread().name not in names
    assert not names & {thread.name for thread in threading.enumerate()}  # it ends with the run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_real_compiler_on_the_cpu(tmp_path):
    torch._dynamo.reset()
    short = {"train.steps": 2, "train.microbatch": None}
    compiled = losses(tmp_path / "a", short | {"compile": "default"})
    assert compiled == pytest.approx(losses(tmp_path / "b", short), rel=1e-3)
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
def test_on_a_gpu_a_step_never_waits(precision):
    step, batches = digits_step(device="cuda", precision=precision)
    for k in range(10):
        torch.cuda.set_sync_debug_mode("error" if k > 6 else "default")
        try:
            step(k, lambda k=k: [(0, batches[k])], 8)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_on_a_gpu_compiled_losses_are_those_of_eager_ones(mode):
    curves = []
    for choice in ("never", mode):
        curves.append(curve(*digits_step(choice, "cuda"), 6))
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


def test_types_without_instructions_are_named(tmp_path, monkeypatch, capsys):
    for fast in (False, True):
        monkeypatch.setattr(setup, "has_instructions", lambda precision, device, fast=fast: fast)
        losses(tmp_path / str(fast), {"precision": "bf16", "train.steps": 1}, images=False)
        assert ("precision=bf16" in capsys.readouterr().err) != fast
    assert has_instructions("fp32", torch.device("cpu")) and has_instructions("bf16", torch.device("cuda"))
    assert isinstance(has_instructions("bf16", torch.device("cpu")), bool)


@pytest.mark.slow  # many CPUs have no instructions for these types
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_teacher_and_lpips_in_half_precision(half):
    """What the presets of the paper do: the loss within 1 %, the direction of the student's gradient within 1e-3."""
    distance = {"name": "lpips", "weights": str(vgg_weights()), "size": 32}
    results = []
    for teacher, perceptual in (("fp32", "fp32"), (half, half)):
        values = {"train.batch": 16, "objective.teacher_precision": teacher,
                  "objective.distance": distance | {"precision": perceptual}}
        objective = build_objective(load_config(DistillConfig, "digits", values), load_teacher("bundled:digits"))
        loss = objective.loss(draw(objective, range(16))).mean()
        gradients = torch.autograd.grad(loss, list(objective.networks["student"].train().parameters()))
        results.append((loss.item(), torch.cat([g.flatten().double() for g in gradients])))
    (loss, g), (other, h) = results
    assert other == pytest.approx(loss, rel=1e-2) and other != loss
    assert torch.nn.functional.cosine_similarity(g, h, dim=0) > 0.999
