"""The correction against plain transcriptions of its papers; what each option does; runs that are left and go on."""

from __future__ import annotations

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.files.reading import read_json
from pidistill.jobs.build_objective import build_objective
from pidistill.jobs.distill import distil_in_steps, resume_distillation, run_distillation
from pidistill.jobs.stages import list_stages
from pidistill.models.denoiser import FunctionDenoiser
from pidistill.models.student import load_student
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import load_teacher
from pidistill.objectives.base import BANDS, Setup, check_contract
from pidistill.objectives.pid import PID
from pidistill.objectives.pid_corrected import PIDCorrected
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import load_config
from pidistill.training.trainer import take_steps, train
from tests.helpers import MLP, SHAPE, draw, grid_of, shake, tiny_teacher
from tests.runs import metrics
from tests.system.test_phases import launch, state

POINTS = 12


def corrected(teacher=None, shaken=True, **options) -> PIDCorrected:
    """Over a student, and a fake, that are away from the teacher."""
    teacher = teacher or tiny_teacher()
    student = shake(make_student(teacher), seed=1, scale=0.03)
    objective = PIDCorrected(Setup(student, teacher, grid_of(teacher, POINTS)), **options)
    if shaken:
        shake(objective.networks["fake"], seed=2, scale=0.03)
    return objective


def double(objective: PIDCorrected) -> PIDCorrected:
    for module in (*objective.networks.values(), objective.calls["teacher"]):
        module.double()
    return objective


def batch_of(objective: PIDCorrected, count: int = 5) -> dict[str, torch.Tensor]:
    """Of the correction, in float64."""
    batch = draw(objective, range(count), number=1, part=len(objective.phases()[1].parts) - 1)
    return {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}


def gradient(objective: PIDCorrected, loss: torch.Tensor) -> torch.Tensor:
    parameters = [*objective.networks["student"].parameters()]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def close(ours: torch.Tensor, plain: torch.Tensor, rtol: float = 1e-5) -> None:
    assert ((ours - plain).norm() / plain.norm()).item() < rtol and plain.norm() > 1e-6


def student_image(objective, batch):
    student = objective.networks["student"]
    return student(batch["z"], student.t_min, batch["labels"])


# The mathematics -----------------------------------------------------------------------------------------------------------


def test_the_gradient_is_that_of_diff_instruct():
    """Luo et al. (2023), Eq. 3.2: E w(t) (s_fake(x_t) - s_teacher(x_t)) dx_t/dtheta, scores s = (D - x)/t^2, w = t^2."""
    objective = double(corrected(weighting="none"))
    batch = batch_of(objective)
    ours = gradient(objective, objective.correct(batch).mean())
    x_g, t, y = student_image(objective, batch), batch["t"][:, None, None, None], batch["labels"]
    x_t = x_g + t * batch["n"]
    with torch.no_grad():
        score = lambda network: (network(x_t, batch["t"], y) - x_t) / t**2
        difference = t**2 * (score(objective.networks["fake"]) - score(objective.calls["teacher"]))
    close(ours, gradient(objective, (difference * x_t).flatten(1).mean(1).mean()))


def test_the_gradient_is_that_of_dmd():
    """Yin et al. (2024), Algorithm 2, without regression: 0.5 |x - sg(x - grad)|^2, grad = (fake - real)/mean|x - real|."""
    objective = double(corrected())
    batch = batch_of(objective)
    ours = gradient(objective, objective.correct(batch).mean())
    x, t, y = student_image(objective, batch), batch["t"], batch["labels"]
    with torch.no_grad():
        noisy = x + t[:, None, None, None] * batch["n"]
        pred_fake, pred_real = objective.networks["fake"](noisy, t, y), objective.calls["teacher"](noisy, t, y)
        weighting_factor = (x - pred_real).abs().mean(dim=[1, 2, 3], keepdim=True)
        grad = (pred_fake - pred_real) / weighting_factor
    close(ours, gradient(objective, 0.5 * torch.nn.functional.mse_loss(x, (x - grad).detach())))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_the_gradient_is_that_of_sid(alpha):
    """Zhou et al. (2024), Eq. 23: (1 - alpha) w |f - g|^2 + w (f - g)^T (g - x_g), f the teacher's, g the fake's, both
    differentiated."""
    objective = double(corrected(correction="score_identity", alpha=alpha))
    batch = batch_of(objective)
    ours = gradient(objective, objective.correct(batch).mean())
    x_g, t, y = student_image(objective, batch), batch["t"], batch["labels"]
    x_t = x_g + t[:, None, None, None] * batch["n"]
    f, g = objective.calls["teacher"](x_t, t, y), objective.networks["fake"](x_t, t, y)
    w = 1 / (x_g - f).abs().mean(dim=(1, 2, 3), keepdim=True).detach()
    plain = ((1 - alpha) * w * (f - g) ** 2 + w * (f - g) * (g - x_g)).flatten(1).mean(1)
    torch.testing.assert_close(objective.correct(batch), plain, rtol=1e-9, atol=1e-12)
    close(ours, gradient(objective, plain.mean()))


# Options -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share, expected", [(0.25, [6, 2]), (0.5, [4, 4]), (1.0, [8]), (0.1, [7, 1])])
def test_share_of_the_batch(share, expected):
    objective = corrected(share=share)
    fake, student = objective.phases()
    assert [len(ks) for ks in student.split(8)] == expected and [len(ks) for ks in fake.split(8)] == [8]
    assert [k for ks in student.split(8) for k in ks] == [*range(8)]
    assert [part.name for part in student.parts] == ["pid", "correction"][-len(expected):]
    check_contract(objective)


@pytest.mark.parametrize("options", [{}, {"distance": "pseudo_huber", "scheme": "midpoint", "balance": 0.5, "floor": 0.1}])
def test_the_rest_has_pid_s_loss(options):
    objective = corrected(**options)
    batch = draw(objective, range(4), number=1, part=0)
    plain = PID(Setup(objective.networks["student"], objective.calls["teacher"], objective.grid), **options)
    assert batch.keys() == {"z", "i", "labels"}
    torch.testing.assert_close(objective.follow(batch), plain.loss(batch), rtol=0, atol=0)


def test_weight_multiplies_the_correction_alone():
    once, thrice = corrected(), corrected(weight=3)
    batch = draw(once, range(4), number=1, part=1)
    torch.testing.assert_close(thrice.correct(batch), 3 * once.correct(batch))
    pid = draw(once, range(4), number=1, part=0)
    assert torch.equal(thrice.follow(pid), once.follow(pid))


@pytest.mark.parametrize("options, balanced, weight", [
    ({}, True, 1), ({"weight": 3}, False, 3), ({"weight": 3, "balanced": True}, True, 3), ({"balanced": False}, False, 1),
    ({"share": 1}, False, 1), ({"correction": "score_identity"}, False, 1)])
def test_the_correction_is_as_large_as_pid_s_loss_unless_its_weight_is_given(options, balanced, weight):
    objective = corrected(**options)
    assert (objective.balanced, objective.weight) == (balanced, weight)


@pytest.mark.parametrize("scale", [1.0, 512.0])
@pytest.mark.parametrize("weight", [0.3, 2.0])
def test_balanced_gradients_have_the_ratio_that_is_asked_for(weight, scale):
    """At the prediction and at the image, whatever factor the trainer gives the losses."""
    objective = corrected(balanced=True, weight=weight, share=0.5)
    pulls, images = [], []
    plain = objective.compute_sides

    def keep(batch):
        prediction, target = plain(batch)
        prediction.retain_grad()
        pulls.append(prediction)
        return prediction, target

    objective.compute_sides = keep
    for ks in (range(4), range(4, 6)):
        (objective.follow(draw(objective, ks, number=1, part=0), 7).sum() * scale).backward()
    student = objective.networks["student"]
    student.register_forward_hook(lambda module, args, output: (images.append(output), output.retain_grad())[0:0] or None)
    (objective.correct(draw(objective, range(6, 12), number=1, part=1), 7).sum() * scale).backward()
    pull = torch.cat([p.grad.abs().flatten(1).mean(1) for p in pulls]).mean()
    assert (images[-1].grad.abs().mean() / pull).item() == pytest.approx(weight, rel=1e-4)


def test_warmup_leaves_the_student_to_pid():
    objective = corrected(warmup=3)
    batch = draw(objective, range(4), number=1, part=1)
    for step in range(3):
        assert gradient(objective, objective.correct(batch, step).sum()).abs().max() == 0
    assert gradient(objective, objective.correct(batch, 3).sum()).abs().max() > 0
    assert objective.notes.keys() == {f"gap/{band}" for band in BANDS}


def test_fake_steps_are_those_of_the_run():
    fake, student = corrected(fake_steps=5).phases()
    assert [step for step in range(11) if student.is_due(step)] == [0, 5, 10] and all(map(fake.is_due, range(11)))


def test_the_student_alone_waits_for_the_warm_up(tmp_path):
    """It takes no step until then: zeros in Adam's second moment would make the steps after it several times the rate."""
    assert [corrected(share=share, warmup=5, fake_steps=2).phases()[1].first for share in (1.0, 0.5)] == [5, 0]
    options = {"objective.share": 1.0, "objective.warmup": 3, "checkpoint.every": 1, "optimizer.name": "adam",
               "optimizer.warmup": 1, "log.every": 1}
    steps, config = [], configure(tmp_path / "b", **options)
    (tmp_path / "b").mkdir()
    objective = build_objective(config, load_teacher(config.teacher))
    student = objective.networks["student"]
    of = lambda: torch.cat([p.detach().flatten().clone() for p in student.parameters()])
    before = of()
    for step in take_steps(objective, config, tmp_path / "b"):
        steps.append((of() - before).abs().max().item())
        before = of()
        if step.number == 5:
            break
    assert steps[:3] == [0, 0, 0] and steps[3] == pytest.approx(5e-4, rel=1e-3) and 5e-4 < steps[4] < 1.1e-3
    whole = run(tmp_path / "a", **options)
    for name in ("b", "c"):  # "c" is left before the student's first step, when its optimiser has no state
        if name == "c":
            (tmp_path / "c").mkdir()
            config = configure(tmp_path / "c", **options)
            for step in take_steps(build_objective(config, load_teacher(config.teacher)), config, tmp_path / "c"):
                if step.number == 2:
                    break
        assert torch.equal(run(tmp_path / name, **options), whole)
        assert metrics(tmp_path / name) == metrics(tmp_path / "a")


def test_fake_optimizer_is_the_fake_s_alone():
    fake, student = corrected(fake_optimizer={"lr": 2e-3, "betas": (0.5, 0.9)}).phases()
    assert fake.optimizer == {"name": "adam", "lr": 2e-3, "betas": (0.5, 0.9), "weight_decay": 0.0}
    assert student.optimizer == {}


def test_score_identity_needs_the_teacher_s_gradient():
    def detached(x, t, y):
        return (x / (1 + t[:, None, None, None] ** 2)).detach()

    teacher = FunctionDenoiser(detached, SHAPE, 3)
    setup = Setup(make_student(teacher, "random", net=MLP), teacher, grid_of(teacher, POINTS))
    objective = PIDCorrected(setup, fake=MLP, correction="score_identity")
    with pytest.raises(PidistillError, match="score_identity needs a teacher that can be differentiated"):
        objective.correct(draw(objective, range(3), number=1, part=1))
    with torch.no_grad():
        assert objective.correct(draw(objective, range(3), number=1, part=1)).shape == (3,)


@pytest.mark.parametrize("options, words", [
    ({"share": 0}, "share must be above 0 and at most 1"), ({"share": 1.5}, "share"), ({"weight": -1}, "weight"),
    ({"fake_steps": 0}, "fake_steps"), ({"level_max": 1e-9}, "leave no times"), ({"p_std": 0}, "p_std"),
    ({"share": 1, "balanced": True}, "needs both"), ({"correction": "score_identity", "balanced": True}, "needs both"),
    ({"fake": "mlpp"}, "did you mean 'mlp'")])
def test_what_means_nothing_is_one_line(options, words):
    with pytest.raises(PidistillError, match=words):
        corrected(**options)


# Runs ----------------------------------------------------------------------------------------------------------------------


def configure(folder, **values) -> DistillConfig:
    options = {"teacher": "gaussian:2,modes=4,std=0.1,classes", "student": {"init": "random", "net": MLP}, "grid.points": 10,
               "objective": {"name": "pid_corrected", "fake": MLP, "share": 0.5, "balanced": False,
                             "fake_optimizer": {"lr": 1e-3}},
               "train.steps": 6, "train.batch": 8, "log.every": 2, "checkpoint.every": 2, "checkpoint.keep": 9, "ema": 0.9,
               "optimizer.lr": 1e-3, "evaluate.num": 8, "preview.every": 100, "out": str(folder)}
    return load_config(DistillConfig, "default", options | values)


def weights(objective) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for net in objective.networks.values() for p in net.parameters()])


def run(folder, **values) -> torch.Tensor:
    config = configure(folder, **values)
    folder.mkdir(exist_ok=True)
    objective = build_objective(config, load_teacher(config.teacher))
    train(objective, config, folder)
    return weights(objective)


def test_a_run_that_was_left_goes_on_bit_for_bit(tmp_path):
    """With the sums of losses, of parts and of notes between two lines of metrics."""
    options = {"objective.balanced": True, "log.every": 3}
    whole, config = run(tmp_path / "a", **options), configure(tmp_path / "b", **options)
    (tmp_path / "b").mkdir()
    for step in take_steps(build_objective(config, load_teacher(config.teacher)), config, tmp_path / "b"):
        if step.number == 3:
            break
    assert torch.equal(run(tmp_path / "b", **options), whole)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    line = metrics(tmp_path / "a")[-1]
    assert {"loss/fake", "loss/student", "loss/pid", "loss/correction", "gap/low", "gap/high"} <= line.keys()
    assert line["loss/student"] == pytest.approx((line["loss/pid"] + line["loss/correction"]) / 2, rel=1e-5)


@pytest.mark.parametrize("microbatch", [1, 3])
def test_microbatches_change_nothing(tmp_path, microbatch):
    close(run(tmp_path / "a", **{"train.microbatch": microbatch}), run(tmp_path / "b"))


@pytest.mark.parametrize("shards", [
    pytest.param(False, id="whole"), pytest.param(True, id="shards", marks=pytest.mark.slow)])
def test_two_processes_then_one_train_the_same_networks(tmp_path, shards):
    """A step of 8 is a part of 6, 3 + 3, and one of 2, 1 + 1."""
    of = lambda steps: configure(tmp_path, **{"train.steps": steps, "objective.share": 0.25, "log.every": 1})
    for steps, processes in ((3, 2), (6, 1)):
        launch(of(steps), tmp_path / "run", processes, shards and processes > 1)
    (tmp_path / "one").mkdir()
    config = of(6)
    train(build_objective(config, load_teacher(config.teacher)), config, tmp_path / "one")
    one, run = (state(tmp_path / name, 6) for name in ("one", "run"))
    assert one.keys() == run.keys() and {key.split("/")[0] for key in one} == {
        "student", "fake", "student-ema-0.9", "optimizer-student", "optimizer-fake"}
    for key in one:
        torch.testing.assert_close(one[key], run[key], rtol=0, atol=2e-6, msg=key)
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "run"), strict=True):
        assert a.keys() == b.keys() and all(a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-6) for key in a)


def test_two_processes_balance_by_the_sizes_of_both(tmp_path):
    """Sizes are means over all processes, so that both scale alike, and as one process with the same microbatches does."""
    config = configure(tmp_path, **{"objective.balanced": True, "train.steps": 3})
    launch(config, tmp_path / "run", 2)
    launch(config, tmp_path / "one", 1)
    one, run = (state(tmp_path / name, 3) for name in ("one", "run"))
    for key in one:
        torch.testing.assert_close(one[key], run[key], rtol=0, atol=2e-6, msg=key)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(tmp_path, precision):
    """Loss and gradients stay near those of float32; each phase has its own loss scale in fp16."""
    close(run(tmp_path / "half", precision=precision), run(tmp_path / "whole"), rtol=0.05)
    record = read_json(tmp_path / "half" / "checkpoints" / "000006" / "state.json")
    scales = [phase["loss_scale"] for phase in record["phases"].values()]
    assert all(("scale" in scale) == (precision == "fp16") for scale in scales) and len(scales) == 2


def test_too_small_a_batch_is_one_line(tmp_path):
    with pytest.raises(PidistillError, match=r"train\.batch=1 gives the part pid of the phase student 0 samples"):
        run(tmp_path / "a", **{"train.batch": 1})


def test_pid_comes_first_as_a_stage(tmp_path):
    """One folder, one command: PID with its own settings, then the correction from its student; also from its checkpoint."""
    first = {"train": {"steps": 4}, "optimizer": {"lr": 1e-2}, "objective": {"balance": 0.5}}
    options = {"objective.first": first, "objective.distance": "l1", "objective.share": 1.0}
    config = configure(tmp_path / "whole", **options)
    one, two = list_stages(config).values()
    assert one.objective == {"name": "pid", "distance": "l1", "balance": 0.5}
    assert (one.train.steps, one.train.batch, one.optimizer.lr) == (4, 8, 1e-2) and two.optimizer.lr == 1e-3
    assert two.student.init == "previous" and "first" not in two.objective and two.objective["share"] == 1
    run_distillation(config)
    assert (tmp_path / "whole" / "1-pid" / "student" / "config.json").exists()
    before, after = (load_student(tmp_path / "whole" / name) for name in ("1-pid", "2-pid_corrected"))
    started = build_objective(two, load_teacher(config.teacher), previous=tmp_path / "whole" / "1-pid").networks["student"]
    z = torch.randn(3, 2) * 80
    assert torch.equal(started(z, 0.002, torch.tensor([0, 1, 2])), before(z, 0.002, torch.tensor([0, 1, 2])))
    assert torch.equal(load_student(tmp_path / "whole").sample(range(5)), after.sample(range(5)))
    for stage, step in ((1, 2), (2, 3)):  # left in either stage, and resumed
        part = tmp_path / f"left-{stage}"
        for taken in distil_in_steps(configure(part, **options)):
            if taken.folder.name.startswith(str(stage)) and taken.number == step:
                break
        resume_distillation(part)
        assert torch.equal(load_student(part).sample(range(5)), after.sample(range(5)))


@pytest.mark.parametrize("first, words", [({"train": {"step": 4}}, r"train\.step"), ({"optimiser": {}}, "optimiser"),
                                          ({"train": {"steps": 0}}, "greater than or equal to 1")])
def test_a_first_run_that_cannot_be_is_one_line(tmp_path, first, words):
    with pytest.raises(PidistillError, match=rf"objective\.first: .*{words}"):
        list_stages(configure(tmp_path, **{"objective.first": first}))
