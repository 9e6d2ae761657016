"""The training loop on tiny runs: resumption, batch split, options, and what a loop over its steps may do."""

from __future__ import annotations

import math
import signal
from contextlib import nullcontext

import pytest
import torch

from pidistill.training.checkpoint import list_checkpoints
from pidistill.training.trainer import Watcher, take_steps
from tests.runs import cut, flatten, loop, make_objective, make_run, metrics, start_run


def test_a_resumed_run_is_the_same_run(tmp_path):
    options = {"checkpoint.every": 2, "checkpoint.keep": 9, "optimizer.decay": "cosine", "optimizer.warmup": 3}
    whole = start_run(tmp_path / "a", options)
    cut(tmp_path / "a", tmp_path / "b", 4)
    resumed = start_run(tmp_path / "b", options)
    for a, b in zip(whole, resumed):
        assert torch.equal(a, b)
    assert [record["step"] for record in metrics(tmp_path / "b")] == [2, 4, 6]
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


@pytest.mark.parametrize("every, steps", [(4, 10), (5, 7), (20, 9)])
def test_logged_losses_are_means_over_what_was_done_since_the_last_line(tmp_path, every, steps):
    """Resumed at step 3, between two lines: the lines after the next one must be those of the whole run."""
    each = {"log.every": 1, "train.steps": steps, "checkpoint.keep": 9}
    start_run(tmp_path / "each", each)
    losses = [record["loss"] for record in metrics(tmp_path / "each")]
    cut(tmp_path / "each", tmp_path / "b", 3)
    (tmp_path / "b" / "metrics.jsonl").unlink()
    start_run(tmp_path / "b", each | {"log.every": every})
    previous = 3
    for record in metrics(tmp_path / "b"):
        assert record["loss"] == pytest.approx(sum(losses[previous:record["step"]]) / (record["step"] - previous), rel=1e-5)
        previous = record["step"]
    assert previous == steps


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = start_run(tmp_path / "a")
    again = start_run(tmp_path / "a")
    assert torch.equal(first[0], again[0]) and len(metrics(tmp_path / "a")) == 3


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("microbatch", [1, 3])
def test_microbatches_change_nothing(tmp_path, images, microbatch):
    whole = start_run(tmp_path / "a", images=images)
    split = start_run(tmp_path / "b", {"train.microbatch": microbatch}, images=images)
    for a, b in zip(whole, split):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    for a, b in zip(metrics(tmp_path / "a"), metrics(tmp_path / "b")):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_training_learns(tmp_path):
    start_run(tmp_path / "a", {"train.steps": 80, "train.batch": 32, "log.every": 10})
    losses = [record["loss"] for record in metrics(tmp_path / "a")]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("change", [
    {"train.seed": 1}, {"optimizer.name": "adam"}, {"optimizer.lr": 2e-2}, {"optimizer.betas": [0.5, 0.9]},
    {"optimizer.warmup": 3}, {"optimizer.decay": "cosine"}, {"optimizer.clip": 1e-3}, {"train.batch": 5},
    {"optimizer.weight_decay": 0.1}, {"precision": "bf16"}, {"precision": "fp16"}])
def test_every_training_option_changes_the_weights(tmp_path, change):
    base = {"optimizer.name": "radam"}
    ours, other = start_run(tmp_path / "a", base), start_run(tmp_path / "b", base | change)
    assert (ours[0] - other[0]).abs().max() > 1e-6


def test_ema_changes_the_average_alone(tmp_path):
    a, b = start_run(tmp_path / "a", {"ema": 0.0}), start_run(tmp_path / "b", {"ema": 0.9})
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])
    assert torch.allclose(a[0], a[1])


def test_several_averages_are_those_of_several_runs(tmp_path):
    """At once as one by one; rate 0 is the weights themselves, and no rate moves what is trained."""
    weights, *averages = start_run(tmp_path / "all", {"ema": [0.9, 0.0, 0.3]})
    for rate, average in zip((0.9, 0.0, 0.3), averages, strict=True):
        alone = start_run(tmp_path / str(rate), {"ema": rate})
        assert torch.equal(alone[0], weights) and torch.equal(alone[1], average)
    assert torch.equal(averages[1], weights) and not torch.allclose(averages[0], averages[2], rtol=0, atol=1e-5)


def test_a_resumed_run_has_the_same_averages_at_every_rate(tmp_path):
    options = {"ema": [0.9, 0.0, 0.3], "checkpoint.keep": 9}
    whole = start_run(tmp_path / "a", options)
    cut(tmp_path / "a", tmp_path / "b", 3)
    names = {path.name for path in (tmp_path / "b" / "checkpoints" / "000003").iterdir()}
    assert {f"student-ema-{rate}.safetensors" for rate in (0.9, 0.0, 0.3)} < names
    resumed = start_run(tmp_path / "b", options)
    assert len(whole) == 4
    for a, b in zip(whole, resumed, strict=True):
        assert torch.equal(a, b)


def test_clipping_shortens_the_step_and_logs_the_norm_before_it(tmp_path):
    """Adam divides by |g| + 1e-8: a gradient clipped to 1e-12 moves no weight by more than about lr * 1e-4."""
    adam = {"optimizer.name": "adam", "train.steps": 1}
    free = start_run(tmp_path / "a", adam)[0]
    clipped = start_run(tmp_path / "b", adam | {"optimizer.clip": 1e-12})[0]
    before, = flatten(make_objective(), {})
    assert (clipped - before).abs().max() < 1e-5 < 1e-3 < (free - before).abs().max()
    assert metrics(tmp_path / "a")[0]["grad_norm"] == metrics(tmp_path / "b")[0]["grad_norm"] > 0


def test_weight_decay_pulls_towards_zero(tmp_path):
    """Where nothing else moves the weights: their gradient is clipped away, and the decay is not."""
    options = {"optimizer.name": "adam", "train.steps": 1, "optimizer.clip": 1e-12}
    still, decayed = (start_run(tmp_path / str(value), options | {"optimizer.weight_decay": value})[0]
                      for value in (0.0, 0.1))
    large = still.abs() > 0.02  # a step of Adam is at most its rate, 0.01
    assert large.sum() > 100 and bool((decayed.abs() < still.abs() - 0.005)[large].all())


@pytest.mark.parametrize("every, steps, resumed", [(3, [3, 6], [6]), (4, [4, 6], [4, 6]), (2, [2, 4, 6], [4, 6]),
                                                   (1, [1, 2, 3, 4, 5, 6], [4, 5, 6]), (50, [6], [6])])
def test_watchers_are_called_at_their_steps_and_once_at_the_end(tmp_path, every, steps, resumed):
    """And after an interruption at step 3 only for what is done again; their numbers are in the log once each."""
    def watchers(seen):
        return [Watcher(every, lambda averages, step, folder: seen.append(step) or {"seen": float(step)}),
                Watcher(5, lambda averages, step, folder: None)]

    first, second, options = [], [], {"checkpoint.keep": 9, "log.every": 1}
    whole = start_run(tmp_path / "a", options, watchers(first))
    assert first == steps
    cut(tmp_path / "a", tmp_path / "b", 3)
    again = start_run(tmp_path / "b", options, watchers(second))
    assert second == resumed and torch.equal(whole[0], again[0])
    for name in "ab":
        assert [record["seen"] for record in metrics(tmp_path / name) if "seen" in record] == steps
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    start_run(tmp_path / "a", options, watchers(first))
    assert first == steps  # the run was finished: nothing is done


def test_watching_changes_nothing(tmp_path):
    def look(averages, step, folder):
        torch.randn(3)
        return {"norm": sum(p.square().sum().item() for p in averages[0.9]["student"].parameters())}

    a, b = start_run(tmp_path / "a"), start_run(tmp_path / "b", watchers=[Watcher(1, look)])
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert [r for r in metrics(tmp_path / "b") if "loss" in r] == metrics(tmp_path / "a")


def test_previews_and_files(tmp_path):
    seen = []

    def look(averages, step, folder):
        seen.append((step, folder.name))
        assert [*averages] == [0.9] and not averages[0.9]["student"].training

    start_run(tmp_path / "a", {"checkpoint.every": 2}, [Watcher(4, look)])
    assert seen == [(4, "a"), (6, "a")]
    assert sorted(path.name for path in (tmp_path / "a" / "checkpoints").iterdir()) == ["000004", "000006"]
    assert any((tmp_path / "a" / "tensorboard").iterdir())
    for record in metrics(tmp_path / "a"):
        bands = {key for key in record if key.startswith("loss_by_t/")}
        assert set(record) - bands == {"step", "loss", "lr", "grad_norm"} and math.isfinite(record["loss"])
        assert bands and min(record[key] for key in bands) <= record["loss"] <= max(record[key] for key in bands)


# a loop over the steps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("microbatch", [None, 3])
def test_a_loop_sees_every_step_and_changes_nothing(tmp_path, microbatch):
    """Its number, its losses, its averages; what the loop logs stands in metrics.jsonl beside the losses."""
    options = {"log.every": 1, "ema": [0.9, 0.0], "train.microbatch": microbatch}
    whole, half = (start_run(tmp_path / str(steps), options | {"train.steps": steps}) for steps in (6, 3))
    objective, config, folder = make_run(tmp_path / "a", options)
    seen = []

    def look(step):
        assert step.main and step.folder == folder and step.last == (step.number == 6)
        assert step.average() is step.average("student", 0.9) is step.averages()[0.9]["student"]
        assert not step.average().training and step.average(rate=0.0) is step.averages()[0.0]["student"]
        expected = {3: half, 6: whole}.get(step.number, flatten(objective, step.averages()))
        assert all(torch.equal(a, b) for a, b in zip(flatten(objective, step.averages()), expected, strict=True))
        seen.append((step.number, *step.losses.items()))
        step.log({"mine": 2.0 * step.number})

    trained = loop(take_steps(objective, config, folder), look)
    assert trained.main and trained.steps == 6 and trained.averages[0.9]["student"] is not objective.networks["student"]
    lines = metrics(folder)
    assert [line for line in lines if "loss" in line] == metrics(tmp_path / "6")
    assert [(line["step"], line["mine"]) for line in lines if "mine" in line] == [(k, 2.0 * k) for k in range(1, 7)]
    assert [number for number, _ in seen] == [1, 2, 3, 4, 5, 6] and {name for _, (name, _) in seen} == {"pid"}
    losses = [line["loss"] for line in lines if "loss" in line]
    assert [loss for _, (_, loss) in seen] == (losses if microbatch is None else pytest.approx(losses, rel=1e-6))
    again = loop(take_steps(make_objective(), config, folder), look)  # the run is finished
    assert again.steps == 6 and len(seen) == 6


@pytest.mark.parametrize("at", [1, 3, 4, 6])
def test_a_step_may_end_the_run(tmp_path, at):
    """As if it were the last: the same weights, lines, looks and checkpoint; and the run may go on from there."""
    options, looks, fewer = {"log.every": 4, "checkpoint.keep": 9}, [], []
    watch = lambda seen: [Watcher(3, lambda averages, step, folder: seen.append(step) or {"seen": float(step)})]
    objective, config, folder = make_run(tmp_path / "a", options)
    numbers = []
    trained = loop(take_steps(objective, config, folder, watch(looks)),
                   lambda step: (numbers.append(step.number), step.stop() if step.number == at else None))
    assert trained.main and trained.steps == at and numbers == list(range(1, at + 1))
    shorter = start_run(tmp_path / "b", options | {"train.steps": at}, watch(fewer))
    assert all(torch.equal(a, b) for a, b in zip(flatten(objective, trained.averages), shorter, strict=True))
    assert looks == fewer == [k for k in (3, 6) if k < at] + [at]
    lines = [sorted(metrics(tmp_path / name), key=lambda line: (line["step"], "seen" in line)) for name in "ab"]
    assert lines[0] == lines[1]
    names = lambda folder: [path.name for path in list_checkpoints(folder / "checkpoints")]
    assert names(folder) == names(tmp_path / "b") and names(folder)[-1] == f"{at:06d}"
    for a, b in zip(start_run(folder, options), start_run(tmp_path / "c", options), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("at, left", [(3, []), (5, ["000003"])])
@pytest.mark.parametrize("leave", ["break", "raise"])
def test_a_loop_that_is_left_leaves_a_run_that_goes_on(tmp_path, at, left, leave):
    """From its newest checkpoint (that of a step is written after the loop's body); signals act as before."""
    handler = signal.getsignal(signal.SIGTERM)
    whole = start_run(tmp_path / "a")

    def begin():
        for step in take_steps(*make_run(tmp_path / "b")):
            assert signal.getsignal(signal.SIGTERM) != handler
            if step.number == at and leave == "break":
                break
            if step.number == at:
                raise ValueError("of the loop")

    with pytest.raises(ValueError, match="of the loop") if leave == "raise" else nullcontext():
        begin()
    assert signal.getsignal(signal.SIGTERM) == handler
    assert [path.name for path in list_checkpoints(tmp_path / "b" / "checkpoints")] == left
    for a, b in zip(whole, start_run(tmp_path / "b"), strict=True):
        assert torch.equal(a, b)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
