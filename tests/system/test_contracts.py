"""Every member of every open family keeps its family's contract: a new file is covered without a change here.

Where a member's own facts are needed (a sampler's order, a teacher's spec), a table names them, and a member that is
missing there fails.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from pidistill.core.errors import PidistillError
from pidistill.core.registry import HOMES, build, find_member, list_members
from pidistill.core.seeds import stream
from pidistill.evaluation.metrics.base import ImageBatch, Reference
from pidistill.evaluation.metrics.frechet import fit_gaussian
from pidistill.files.image_set import ImageSet
from pidistill.models.denoiser import Denoiser
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import describe_teacher, load_teacher
from pidistill.nets.features.base import FeatureNetwork
from pidistill.nets.features.digit_classifier import DigitClassifier
from pidistill.objectives.base import Objective, Setup, TeacherSetup, check_contract
from pidistill.objectives.pid import pid_residual
from pidistill.training.config import OptimizerConfig
from pidistill.training.optimizer import for_phase
from pidistill.training.unit import hold_constant
from tests.helpers import (
    CLASSES,
    SHAPE,
    MadePairs,
    draw,
    exact_network,
    exact_student,
    gaussian64,
    grid_of,
    invert,
    list_parts,
    network,
    shake,
    start,
    tiny_teacher,
    vgg_weights,
)

NETWORK_SAMPLES = {"upwind": 2, "midpoint": 2, "central": 3, "autodiff": 1}  # by scheme, per sample of the batch
OFF_GRID = {"midpoint"}  # schemes that ask the teacher between two grid points
# By their default options. UniPC's corrector adds one to the order of its predictor, 2.
SAMPLER_ORDERS = {"euler": 1, "heun": 2, "ddim": 1, "ddpm": None, "deis": 3, "dpm_solver": 3, "dpm_solver_pp": 2, "unipc": 3}
SDE = {"ddpm"}  # samplers that are right only with noise; tests/samplers measures their order
FEATURE_NETS = {"digit_classifier": DigitClassifier}  # with random weights; the others are too large for that
OWN_NETS = {"equilibrium"}  # objectives that train the network of their name, and no other
NET_OPTIONS = {"mlp": {"width": 16, "depth": 2},
               "diffusers_net": {"config": {
                   "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 4,
                   "block_out_channels": [8, 8], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
                   "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "num_class_embeds": CLASSES}},
               "dhariwal_unet": {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4],
                                 "head_channels": 8},
               "edm2_unet": {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4],
                             "head_channels": 8},
               "equilibrium": {"width": 16, "heads": 2, "injection": 1, "equilibrium": 2, "expansion": 2},
               "song_unet": {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}}
DISTANCE_OPTIONS = {"features": {"net": "digits_perceptual"}, "lpips": {"size": 32}}
TEACHER_SPECS = {
    "bundled": ["bundled:digits"],
    "diffusers": ["diffusers:{tmp}/pipeline"],
    "edm": ["edm:tiny,weights={tmp}/teacher/model.safetensors"],
    "folder": ["folder:{tmp}/teacher"],
    "gaussian": ["gaussian:2", "gaussian:1x8x8,mean=0.2,std=0.5", "gaussian:2,modes=4,std=0.1",
                 "gaussian:3,modes=3,classes"],
    "onnx": ["onnx:{tmp}/teacher.onnx"],
    "python": ["python:pidistill_test_teacher:make"],
}


@pytest.mark.parametrize("family", HOMES)
def test_family_has_members_and_each_is_named_like_its_file(family: str):
    assert list_members(family)
    for name in list_members(family):
        assert callable(find_member(family, name))


# distances -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=list_members("distances"))
def distance(request):
    options = {"weights": str(vgg_weights())} if request.param == "lpips" else {}
    return build("distances", request.param, **DISTANCE_OPTIONS.get(request.param, {}), **options)


def images(seed: int, batch: int = 4, shape: tuple[int, ...] = (3, 8, 8)) -> torch.Tensor:
    return torch.rand(batch, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def digits(seed: int) -> torch.Tensor:
    """What every distance takes."""
    return images(seed, shape=(1, 16, 16))


def test_distance_is_zero_only_where_equal(distance):
    a, b = digits(0), digits(1)
    b[2] = a[2]
    d = distance(a, b)
    assert d.shape == (4,) and d[2] == 0
    assert bool((d[[0, 1, 3]] > 0).all())


def test_distance_treats_samples_independently(distance):
    a, b = digits(0), digits(1)
    d, order = distance(a, b), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(distance(a[order], b[order]), d[order])
    torch.testing.assert_close(distance(a[:1], b[:1]), d[:1])
    changed = b.clone()
    changed[3] += 1
    torch.testing.assert_close(distance(a, changed)[:3], d[:3])


@pytest.mark.parametrize("gap", [0.0, 1e-6, 1.0])
def test_distance_has_a_finite_gradient(distance, gap):
    a = digits(0).requires_grad_()
    distance(a, digits(0) + gap).sum().backward()
    assert bool(a.grad.isfinite().all())
    assert gap < 1 or bool((a.grad.flatten(1).abs().sum(1) > 0).all())


@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (4, 1, 16, 1), (4, 1, 1, 1), (4, 3, 16, 16), (1, 16, 16), (3, 1, 16, 16)])
def test_distance_broadcasts_nothing(distance, shape):
    for pair in ((digits(0), torch.zeros(shape)), (torch.zeros(shape), digits(0))):
        with pytest.raises(PidistillError, match="prediction and target must have the same shape"):
            distance(*pair)


# schemes -------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=list_members("schemes"))
def scheme(request):
    return build("schemes", request.param)


def name_of(scheme) -> str:
    return type(scheme).__name__.lower()


def tiny_student():
    return make_student(tiny_teacher()).double().eval()


@pytest.mark.parametrize("more", [0, 1, 17])
def test_scheme_stays_inside_the_grid(scheme, more):
    """At every point of the smallest grid that it takes, and of larger ones: nothing is asked outside eps ... T."""
    student, points = tiny_student(), scheme.points + more
    t, i, z = grid_of(student, points).t, torch.arange(points), start(SHAPE, points)

    def F(*times):
        for u in times:
            assert u.dtype == torch.float64 and u.shape == i.shape
            assert bool((u >= student.t_min).all() and (u <= student.t_max).all())
        return network(student, z)(*times)

    with torch.no_grad():
        x, times, prediction = scheme(F, z, i, t, student.t_max)
    assert times.dtype == torch.float64 and times.shape == i.shape
    if name_of(scheme) not in OFF_GRID:
        torch.testing.assert_close(times, t, rtol=0, atol=0)
    assert x.shape == prediction.shape == z.shape and x.dtype == prediction.dtype == torch.float64
    assert bool(x.isfinite().all() and prediction.isfinite().all())


def test_scheme_gives_the_student_state_at_its_time(scheme):
    """Eq. (7) at a grid point; between two of them, the mean of both ends."""
    student, i = tiny_student(), torch.arange(12)
    t, z, y = grid_of(student, 12).t, start(SHAPE, batch=12), torch.arange(12) % CLASSES
    with torch.no_grad():
        x, times, _ = scheme(network(student, z, y), z, i, t, student.t_max)
        if name_of(scheme) in OFF_GRID:
            u = torch.cat([t[1:], t[-2:-1]])
            torch.testing.assert_close(x, (student(z, t, y) + student(z, u, y)) / 2, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(times, (t + u) / 2, rtol=1e-14, atol=0)
        else:
            torch.testing.assert_close(x, student(z, times, y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("part, std", [("T", 40.0), ("inside", 0.5), ("eps", 0.002)])
def test_scheme_order_on_the_exact_trajectory(scheme, part, std):
    """The error of t dx/dt = x - prediction falls as N^-order, at the first and the last grid point too.

    std: where the trajectory bends, so that there is an error to measure.
    """
    gaussian = gaussian64(std=std)

    def error(points: int) -> float:
        i = {"T": torch.tensor([0]), "inside": torch.arange(points // 4, 3 * points // 4),
             "eps": torch.tensor([points - 1])}[part]
        z = start((2,), batch=1).expand(len(i), 2)
        x, t, prediction = scheme(exact_network(gaussian, z), z, i, grid_of(gaussian, points).t, gaussian.t_max)
        return (prediction - gaussian(x, t)).abs().mean().item()

    if scheme.order == float("inf"):
        assert max(error(scheme.points), error(40)) < 1e-11
    else:
        assert error(400) > 1e-9  # far above rounding
        assert np.log2(error(400) / error(800)) == pytest.approx(scheme.order, abs=0.1)


def test_scheme_asks_the_network_once(scheme):
    """One call on so many samples: what a scheme costs."""
    student, sizes, z = tiny_student(), [], start(SHAPE, 5)
    student.net.register_forward_hook(lambda net, args, out: sizes.append(len(out)))
    pid_residual(student, lambda x, t, y: x, z, torch.arange(5), grid_of(student, 5), scheme)
    assert sizes == [5 * NETWORK_SAMPLES[name_of(scheme)]]


def test_scheme_gradient_reaches_every_parameter(scheme):
    student = make_student(tiny_teacher())
    i, z, y = torch.arange(6), start(SHAPE, 6, dtype=torch.float32), torch.arange(6) % CLASSES
    prediction, _ = pid_residual(student, lambda x, t, y: x, z, i, grid_of(student, 6), scheme, y)
    assert prediction.dtype == torch.float32
    prediction.square().mean().backward()
    silent = [name for name, p in student.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == [] and all(bool(p.grad.isfinite().all()) for p in student.parameters())


# samplers ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=list_members("samplers"))
def sampler(request):
    return find_member("samplers", request.param)


def test_sampler_yields_the_given_times(sampler, gaussian):
    for ts in ([80.0, 5.0, 0.3, 0.002], [80.0, 1.0, 0.0]):
        seen = [t for t, _ in sampler(gaussian, start((2,)), torch.tensor(ts, dtype=torch.float64))]
        assert seen == ts[1:]


def test_sampler_stands_still_where_nothing_is_denoised(sampler):
    z, ts = start((2,)), torch.tensor([80.0, 5.0, 0.3, 0.0], dtype=torch.float64)
    for _, x in sampler(lambda x, t, labels=None: x, z, ts):
        torch.testing.assert_close(x, z, rtol=1e-13, atol=0)


def test_sampler_is_exact_for_a_constant_image(sampler):
    """D = c makes the trajectory the straight line c + (t/T)(z - c), and its end at 0 is c."""
    z, c, ts = start((2,)), 0.7, torch.tensor([80.0, 5.0, 0.3, 0.0], dtype=torch.float64)
    for t, x in sampler(lambda x, t, labels=None: torch.full_like(x, c), z, ts):
        if sampler.__name__ not in SDE or t == 0:
            torch.testing.assert_close(x, c + t / 80 * (z - c), rtol=1e-13, atol=1e-13)


def test_sampler_passes_the_labels_on(sampler):
    y = torch.tensor([2, 0, 1])
    seen = []
    list(sampler(lambda x, t, labels=None: seen.append(labels) or x, start((2,)), torch.tensor([80.0, 1.0]), y))
    assert seen and all(labels is y for labels in seen)


@pytest.mark.parametrize("name", sorted(set(list_members("samplers")) - SDE))
def test_sampler_order(name, gaussian):
    """Global error at eps, N = 128 and 256, evenly spaced in log t: 0.99 for Euler, 2.03 for Heun, 3.05 for DPM-Solver-3."""
    def error(n: int) -> float:
        z, ts = start((2,)), torch.linspace(np.log(80), np.log(0.002), n + 1, dtype=torch.float64).exp()
        *_, (t, x) = find_member("samplers", name)(gaussian, z, ts)
        return (x - gaussian.exact(z, t)).abs().max().item()

    assert np.log2(error(128) / error(256)) == pytest.approx(SAMPLER_ORDERS[name], abs=0.16)


# nets ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=list_members("nets"))
def net(request):
    torch.manual_seed(0)
    options = NET_OPTIONS.get(request.param, {})
    return shake(build("nets", request.param, SHAPE, num_classes=CLASSES, **options)).eval()


def net_input(batch: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return start(SHAPE, batch, 1.0, torch.float32), torch.linspace(-1.5, 1.1, batch), torch.arange(batch) % CLASSES


def test_net_keeps_the_shape_and_rows_do_not_mix(net):
    x, c_noise, y = net_input()
    with torch.no_grad():
        out = net(x, c_noise, y)
        assert out.shape == x.shape and out.std() > 1e-3
        for k in range(len(x)):
            torch.testing.assert_close(net(x[k:k + 1], c_noise[k:k + 1], y[k:k + 1]), out[k:k + 1], rtol=1e-5, atol=1e-5)


def test_net_listens_to_all_its_inputs(net):
    x, c_noise, y = net_input()
    with torch.no_grad():
        out = net(x, c_noise, y)
        other_times = [] if getattr(net, "timeless", False) else [net(x, c_noise + 0.5, y)]
        for other in (net(x, c_noise, (y + 1) % CLASSES), *other_times, net(x * 1.1, c_noise, y)):
            assert bool(((other - out).flatten(1).abs().amax(1) > 1e-4).all())
        assert net(x, c_noise, None).shape == x.shape


def test_net_gradient_reaches_every_parameter(net):
    x, c_noise, y = net_input()
    net(x, c_noise, y).square().sum().backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize("name", FEATURE_NETS)
def test_feature_net_gives_one_row_an_image(name):
    net = FEATURE_NETS[name]().eval()
    x = torch.rand(3, *net.shape)
    assert isinstance(net, FeatureNetwork) and all(len(maps) == 3 for maps in net.layers(x))
    features = net.features(x)
    assert features.ndim == 2 and len(features) == 3
    torch.testing.assert_close(net.features(x[1:2]), features[1:2], rtol=1e-5, atol=1e-5)


# objectives ----------------------------------------------------------------------------------------------------------


def make_objective(name: str) -> Objective:
    """An objective over tiny networks, from what its class asks for: a denoiser or a student, and images or pairs."""
    teacher, member = tiny_teacher(), find_member("objectives", name)
    data = {"noise": None, "images": ImageSet.of(images(3, 6)[:, :1], torch.arange(6) % CLASSES), "pairs": MadePairs(),
            "trajectories": MadePairs(times=(20.0, 2.0, 0.5, 0.0))}[member.needs]
    if member.setup is TeacherSetup:
        return build("objectives", name, TeacherSetup(teacher.requires_grad_(True), data))
    net = {"name": name, **NET_OPTIONS[name]} if name in OWN_NETS else None
    plan = member.plan_student(teacher, {}, data)
    student = make_student(teacher, "random" if net else "teacher", net, **plan)
    if net or "extension" in plan:
        shake(student, scale=0.03)  # what is new begins at zero, and no gradient passes through it
    objective: Objective = build("objectives", name, Setup(student, teacher, grid_of(teacher, 10), data))
    for other in (net for key, net in objective.networks.items() if key != "student"):
        shake(other)  # what starts as the teacher finds no fault with it
    return objective


@pytest.fixture(params=list_members("objectives"))
def objective(request) -> Objective:
    return make_objective(request.param)


def parameters(modules) -> dict[str, nn.Parameter]:
    """Of all modules among these, by name."""
    return {f"{name}.{key}": p for name, module in modules.items() if isinstance(module, nn.Module)
            for key, p in module.named_parameters()}


def test_objective_fits_together(objective):
    check_contract(objective)
    first, again = ([(phase.name, phase.trains, phase.every, phase.optimizer) for phase in objective.phases()] for _ in "12")
    assert first == again
    for phase in objective.phases():
        for_phase(OptimizerConfig(), phase)  # refuses settings that no optimiser has
    assert ("teacher" if objective.setup is TeacherSetup else "student") in objective.averaged


def test_objective_gives_one_finite_loss_a_sample(objective):
    for number, k, _, part in list_parts(objective):
        batch = draw(objective, range(5), number=number, part=k)
        loss = part.loss(batch, 0)
        assert loss.shape == (5,) and bool(loss.isfinite().all()) and loss.std() > 0, part.name
        alone = part.loss({key: value[2:3] for key, value in batch.items()}, 0)
        torch.testing.assert_close(alone, loss[2:3], rtol=1e-4, atol=1e-5)
        times = objective.times(batch)
        assert times is None or (times.shape == (5,) and bool((times > 0).all()))


def test_objective_gives_the_same_whatever_the_batch_is_split_into(objective):
    for number, k, _, part in list_parts(objective):
        whole = draw(objective, range(8), 3, 5, number, part=k)
        pieces = [draw(objective, ks, 3, 5, number, part=k) for ks in (range(3), range(3, 4), range(4, 8))]
        for key, value in whole.items():
            assert torch.equal(torch.cat([piece[key] for piece in pieces]), value), key
        losses = torch.cat([part.loss(piece, 5) for piece in pieces])
        torch.testing.assert_close(losses, part.loss(whole, 5), rtol=1e-4, atol=1e-5)


def test_objective_trains_the_networks_of_its_phase_and_nothing_else(objective):
    everything = {"networks": objective.networks, "copies": objective.copies, "calls": objective.calls}
    for number, k, phase, part in list_parts(objective):
        with hold_constant(objective, phase):
            part.loss(draw(objective, range(8), number=number, part=k), 0).mean().backward()
        trained = parameters({name: objective.networks[name] for name in phase.trains})
        assert [name for name, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0] == []
        reached = {id(p) for modules in everything.values() for p in parameters(modules).values() if p.grad is not None}
        assert reached == {id(p) for p in trained.values()}, part.name
        for p in trained.values():
            p.grad = None
    assert all(p.requires_grad for p in parameters(objective.networks).values())  # as they were before the phases
    assert not any(p.requires_grad for p in parameters(objective.copies | objective.calls).values())
    networks = {id(p) for p in parameters(objective.networks).values()}
    assert not networks & {id(p) for p in parameters(objective.copies | objective.calls).values()}


def test_objective_asks_for_its_networks_when_it_needs_them(objective):
    """The trainer may have put another in the place: whole ones for shards, compiled ones for what is called."""
    plain = [part.loss(draw(objective, range(4), number=number, part=k), 0) for number, k, _, part in list_parts(objective)]
    former, called = {**objective.networks}, []
    objective.networks |= copy.deepcopy(objective.networks)
    objective.copies |= copy.deepcopy(objective.copies)
    for name, call in objective.calls.items():
        objective.calls[name] = lambda *args, name=name, call=call: (called.append(name), call(*args))[1]
    losses = [part.loss(draw(objective, range(4), number=number, part=k), 0) for number, k, _, part in list_parts(objective)]
    for (_, _, phase, _), loss, expected in zip(list_parts(objective), losses, plain, strict=True):
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        loss.mean().backward()  # after all losses: one may be scaled by the gradient of another
        for name in phase.trains:
            assert any(p.grad is not None for p in objective.networks[name].parameters())
    assert all(p.grad is None for p in parameters(former).values()) and {*called} == objective.calls.keys()


def test_objective_draws_depend_on_seed_step_number_and_phase_alone(objective):
    for number, k, _, part in list_parts(objective):
        first = part.draw(stream(3, 5, 7, phase=number), 5)
        part.draw(stream(3, 5, 8, phase=number), 5)
        again = part.draw(stream(3, 5, 7, phase=number), 5)
        batch = draw(objective, range(7, 9), 3, 5, number, part=k)
        assert first.keys() == again.keys() == batch.keys()
        for key in first:
            np.testing.assert_array_equal(first[key], again[key])
            np.testing.assert_array_equal(first[key], batch[key][0])
            assert batch[key].shape == (2, *np.shape(first[key]))
            assert batch[key].dtype == torch.from_numpy(np.asarray(first[key])).dtype
        for other in (stream(4, 5, 7, phase=number), stream(3, 6, 7, phase=number), stream(3, 5, 8, phase=number),
                      stream(3, 5, 7, phase=number + 1)):
            drawn = part.draw(other, 5)
            assert any(not np.array_equal(first[key], drawn[key]) for key in first)


def test_pid_draws_what_it_drew_before_there_were_phases():
    """The first phase has the counter's word 0, so that runs of a single phase keep their numbers."""
    sample = draw(make_objective("pid"), range(7, 8), 3, 5)
    rng = np.random.Generator(np.random.Philox(key=[3, 5], counter=[0, 0, 0, 7]))
    assert sample["i"].item() == rng.integers(10) and sample["labels"].item() == rng.integers(CLASSES)
    np.testing.assert_array_equal(sample["z"][0], rng.standard_normal(SHAPE, dtype=np.float32) * np.float32(80))


# teachers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list_members("teachers"))
def test_teacher_keeps_the_protocol(kind, tmp_path, monkeypatch):
    from pidistill.files.folders import write_folder
    from pidistill.models.teachers.edm import CHECKPOINTS

    tiny = tiny_teacher()
    monkeypatch.setitem(CHECKPOINTS, "tiny", {"shape": SHAPE, "num_classes": CLASSES, "net": tiny.net_spec})
    write_folder(tmp_path / "teacher", {"model": tiny.state_dict()}, {"config": describe_teacher(tiny)})
    (tmp_path / "pidistill_test_teacher.py").write_text(
        "from pidistill.models.teachers.gaussian import gaussian\n\ndef make():\n    return gaussian('2')\n")
    monkeypatch.chdir(tmp_path)
    if kind == "diffusers":
        from tests.models.teachers.test_diffusers import ddim, save

        save(tmp_path / "pipeline", ddim())
    elif kind == "onnx":
        from tests.models.teachers.test_onnx import graph

        graph(tmp_path / "teacher.onnx")
    for spec in TEACHER_SPECS[kind]:
        try:
            teacher = load_teacher(spec.format(tmp=tmp_path))
        except PidistillError as error:
            if kind == "bundled" and "unknown bundled teacher" in str(error):
                pytest.skip("the bundled teacher is not in this checkout")
            raise
        assert isinstance(teacher, Denoiser) and isinstance(teacher, nn.Module) and not teacher.training
        assert 0 < teacher.t_min < teacher.t_max and teacher.sigma_data > 0 and teacher.rho > 0
        x = torch.randn(4, *teacher.shape) * 0.3
        y = torch.arange(4) % teacher.num_classes if teacher.num_classes else None
        D = teacher(x, teacher.t_min, y)
        assert D.shape == x.shape and D.dtype == torch.float32
        # Almost no noise: almost nothing to remove.
        torch.testing.assert_close(D, x, rtol=0, atol=max(0.02, 5 * teacher.t_min))
        assert not torch.allclose(teacher(x, 1.0, y), x, atol=0.02)
        assert all(not p.requires_grad for p in teacher.parameters())


# metrics -------------------------------------------------------------------------------------------------------------

NUM, WIDTH = 40, 4
WORST = {"frechet": ("fd", 1), "kid": ("kid", 1), "trajectory_rmse": ("trajectory_rmse", 1),
         "precision_recall": ("recall", -1), "inception_score": ("is", -1)}
# By metric: a number of the metric, and which way it goes as images leave the data


def measured(name: str, values: torch.Tensor, parts: list[list[int]], processes: int = 1) -> dict[str, float]:
    """The metric's numbers of features, logits or images `values`, added in parts that several processes take in turn."""
    make = find_member("metrics", name)
    data = torch.randn(NUM, WIDTH, generator=torch.Generator().manual_seed(9))
    reference = Reference(*fit_gaussian(data), features=data)
    each = [make(NUM, WIDTH, reference, "fd") for _ in range(processes)]
    for k, rows in enumerate(parts):
        x = values[rows]
        each[k % processes].add(ImageBatch(x, rows, features=x, logits=x, solutions=torch.zeros_like(x)))
    for key, value in each[0].state.items():
        for other in each[1:]:
            value += other.state[key]
    return each[0].result(values)


@pytest.mark.parametrize("name", list_members("metrics"))
def test_metric_is_a_sum_over_images(name):
    """Batches, their order and the number of processes change nothing."""
    values = torch.randn(NUM, WIDTH, generator=torch.Generator().manual_seed(0)) * 2
    whole = measured(name, values, [list(range(NUM))])
    rows = [list(range(k, min(k + 7, NUM))) for k in range(0, NUM, 7)]
    for other in (measured(name, values, rows), measured(name, values, rows[::-1]), measured(name, values, rows, 3)):
        assert other.keys() == whole.keys()
        for key, value in whole.items():
            assert isinstance(value, float) and other[key] == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("name", list_members("metrics"))
def test_metric_gets_worse_as_images_leave_the_data(name):
    """Features that move away from those of the data; logits that move together, so that the classes lose their variety."""
    key, sign = WORST[name]
    values = torch.randn(NUM, WIDTH, generator=torch.Generator().manual_seed(0))
    shift = torch.zeros(WIDTH)
    shift[0] = 1
    found = [sign * measured(name, values + by * shift, [list(range(NUM))])[key] for by in (0.0, 2.0, 6.0)]
    assert found[0] < found[1] < found[2]


def test_exact_student_is_the_trajectory():
    """The helper that other tests lean on."""
    gaussian = gaussian64()
    z, student = start((2,)), exact_student(gaussian)
    for t in (80.0, 40.0, 1.0, 0.002):
        torch.testing.assert_close(student(z, t), gaussian.exact(z, t), rtol=1e-12, atol=1e-12)


def test_exact_network_is_the_trajectory():
    """Its closed form is Eq. (7) solved for F, and finite and smooth at T, where that is 0/0."""
    gaussian, z = gaussian64(), start((2,), 5)
    t = torch.tensor([79.0, 40.0, 1.0, 0.05, 0.002], dtype=torch.float64)
    F, = exact_network(gaussian, z)(t)
    torch.testing.assert_close(F, invert(gaussian.exact(z, t), z, t, 80.0), rtol=1e-9, atol=1e-11)
    ends = [exact_network(gaussian, z[:1])(torch.tensor([u], dtype=torch.float64))[0] for u in (80.0, 79.999)]
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)
