"""diffusers' pipelines against diffusers' own samplers, on tiny random networks; nothing is downloaded."""

from __future__ import annotations

import copy
import json
import shutil
import socket
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from pidistill.core.errors import PidistillError
from pidistill.jobs.convert import convert
from pidistill.jobs.distill import distill, resume_distillation
from pidistill.models.samplers.base import sample_teacher
from pidistill.models.samplers.euler import euler
from pidistill.models.samplers.heun import heun
from pidistill.models.student import load_student
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import load_teacher
from pidistill.models.teachers.diffusers import FILES, IGNORED
from tests.helpers import MLP, NET, loss_of, shake, tiny_teacher
from tests.runs import cut

diffusers = pytest.importorskip("diffusers")
SIZE = 8


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def unet(classes=None, out=1, size=SIZE, **options):
    torch.manual_seed(0)
    return shake(diffusers.UNet2DModel(
        sample_size=size, in_channels=1, out_channels=out, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8, num_class_embeds=classes, **options), scale=0.03).eval()


def dit(classes=5):
    torch.manual_seed(0)
    return shake(diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=SIZE,
        patch_size=2, num_embeds_ada_norm=classes), scale=0.05).eval()


def vae():
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8),
                                   down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                                   norm_num_groups=4, sample_size=16, scaling_factor=0.3).eval()


def save(folder, scheduler, network=None, latent=None, kind=None):
    """What DiffusionPipeline.save_pretrained writes."""
    network = network if network is not None else unet()
    part = "transformer" if isinstance(network, diffusers.DiTTransformer2DModel) else "unet"
    network.save_pretrained(folder / part)
    scheduler.save_pretrained(folder / "scheduler")
    index = {"_class_name": kind or "DDIMPipeline", part: ["diffusers", type(network).__name__],
             "scheduler": ["diffusers", type(scheduler).__name__]}
    if latent is not None:
        latent.save_pretrained(folder / "vae")
        index["vae"] = ["diffusers", "AutoencoderKL"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return f"diffusers:{folder}"


def edit(path, **values):
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | values).items() if v != "left out"}))


def ddim(**options):
    return diffusers.DDIMScheduler(clip_sample=False, **options)


def close(ours, theirs, most=1e-4):
    assert ((ours - theirs).norm() / theirs.norm()).item() < most and theirs.std() > 1e-3


SCHEDULES = [{"beta_schedule": "linear"}, {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
             {"beta_schedule": "squaredcos_cap_v2"}]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s["beta_schedule"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@torch.no_grad()
def test_euler_through_the_denoiser_is_diffusers_ddim(tmp_path, prediction, schedule):
    """DDIM with eta 0 is Euler's method on dx/dt = (x - D)/t, at the levels of its own steps."""
    network, scheduler = unet(), ddim(prediction_type=prediction, **schedule)
    teacher = load_teacher(save(tmp_path / "p", scheduler, network))
    scheduler.set_timesteps(10)
    x = torch.randn(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    ts = torch.cat([teacher.times[scheduler.timesteps], torch.zeros(1, dtype=torch.float64)])
    z = x * (1 + ts[0] ** 2).sqrt().float()
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t).sample, t, x, eta=0.0).prev_sample
    *_, (_, ours) = euler(teacher, z, ts)
    close(ours, x)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_edm_schedulers(tmp_path, prediction):
    network, scheduler = unet(), diffusers.EDMEulerScheduler(prediction_type=prediction, sigma_data=0.4, sigma_max=50)
    teacher = load_teacher(save(tmp_path / "p", scheduler, network))
    assert (teacher.t_max, teacher.sigma_data, teacher.times) == (50, 0.4, None)
    scheduler.set_timesteps(8)
    x = z = torch.randn(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * scheduler.sigmas[0]
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    *_, (_, ours) = euler(teacher, z, scheduler.sigmas.double())
    close(ours, x)


@torch.no_grad()
def test_sigma_data_of_the_user_s_leaves_the_formula_as_it_was_trained(tmp_path):
    """It is the scale of the data, by which the student's input is scaled and the grid's checks are made."""
    spec = save(tmp_path / "p", diffusers.EDMEulerScheduler(sigma_data=0.4))
    plain, other, x = load_teacher(spec), load_teacher(spec + ",sigma_data=0.9"), torch.randn(2, 1, SIZE, SIZE)
    assert (plain.sigma_data, other.sigma_data) == (0.4, 0.9) and plain.preconditioning.spec == "edm"
    assert torch.equal(plain(x, 0.7), other(x, 0.7))
    make_student(other).save(tmp_path / "s")
    assert load_student(tmp_path / "s").preconditioning.spec == {"name": "edm", "sigma_data": 0.4}
    convert(spec + ",sigma_data=0.9", tmp_path / "c")
    assert torch.equal(load_teacher(str(tmp_path / "c"))(x, 0.7), plain(x, 0.7))


CONTINUOUS = {"timestep_type": "continuous", "prediction_type": "v_prediction", "beta_schedule": "scaled_linear",
              "beta_start": 0.00085, "beta_end": 0.012, "sigma_min": 0.002, "sigma_max": 80.0}


@pytest.mark.parametrize("respaced", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
@torch.no_grad()
def test_a_continuous_clock_is_diffusers_own(tmp_path, respaced):
    """D was off by 0.048 of 0.31: T was 14.6 and the clock a step of the table."""
    network, scheduler = unet(), diffusers.EulerDiscreteScheduler(**CONTINUOUS, **{respaced: True})
    teacher = load_teacher(save(tmp_path / "p", scheduler, network))
    assert (teacher.t_min, teacher.t_max, teacher.times) == (0.002, 80.0, None)
    scheduler.set_timesteps(9)
    x = z = torch.randn(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * scheduler.sigmas[0]
    for t, s in zip(scheduler.timesteps, scheduler.sigmas):
        step = scheduler.step(network(scheduler.scale_model_input(x, t), t).sample, t, x)
        close(teacher(x, float(s)), step.pred_original_sample, 1e-5)
        x = step.prev_sample
    *_, (_, ours) = euler(teacher, z, scheduler.sigmas.double())
    close(ours, x)
    assert loss_of(make_student(teacher), teacher) < 10


def test_a_model_of_100_levels_says_that_it_draws_no_250(cli, tmp_path):
    spec = save(tmp_path / "p", ddim(num_train_timesteps=100))
    result = cli("sample", spec, "--seeds", "0-1", "--sampler", "euler,spacing=uniform:250", "--out", tmp_path / "a.png")
    assert result.code == 0
    assert "euler,spacing=uniform:250: 100 steps, as many as differ among the teacher's 100 noise levels" in result.err


@torch.no_grad()
def test_flow_matching_schedulers(tmp_path):
    """Euler in s is not Euler in t: the denoiser itself is compared, and a fine Heun with a fine Euler."""
    network, scheduler = unet(), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    teacher = load_teacher(save(tmp_path / "p", scheduler, network))
    scheduler.set_timesteps(400)
    x_s = torch.randn(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    k = 20
    s, t = scheduler.sigmas[k], scheduler.timesteps[k]
    close(teacher(x_s / (1 - s), float(s / (1 - s))), x_s - s * network(x_s, t).sample)
    start, state = scheduler.sigmas[k], x_s
    z = state / (1 - start)
    for t, s, u in zip(scheduler.timesteps[k:], scheduler.sigmas[k:], scheduler.sigmas[k + 1:]):
        state = state + (u - s) * network(state, t).sample
    levels = torch.logspace(float((start / (1 - start)).log10()), -3, 60, dtype=torch.float64)
    ts = torch.cat([levels, torch.zeros(1, dtype=torch.float64)])
    *_, (_, ours) = heun(teacher, z, ts)
    close(ours, state, 0.02)


@torch.no_grad()
def test_score_of_a_variance_exploding_model(tmp_path):
    """D = x + sigma^2 score for its images in [0, 1], here in [-1, 1]."""
    network = unet(time_embedding_type="fourier", center_input_sample=True)
    scheduler = diffusers.ScoreSdeVeScheduler(sigma_max=50)
    teacher = load_teacher(save(tmp_path / "p", scheduler, network, kind="ScoreSdeVePipeline"))
    x, sigma = torch.rand(2, 1, SIZE, SIZE) + 0.7 * torch.randn(2, 1, SIZE, SIZE), 0.7
    D = x + sigma**2 * network(x, torch.full((2,), sigma)).sample
    close(teacher(2 * x - 1, 2 * sigma), 2 * D - 1)
    assert (teacher.t_min, teacher.t_max) == (0.02, 100)


@torch.no_grad()
def test_classes_learned_variance_and_other_sizes(tmp_path):
    network, scheduler = unet(classes=4, out=2, size=(8, 16)), ddim()
    teacher = load_teacher(save(tmp_path / "p", scheduler, network))
    assert teacher.shape == (1, 8, 16) and teacher.num_classes == 4
    x, y, t = torch.randn(4, 1, 8, 16), torch.arange(4), teacher.times[[700]].expand(4)
    scale = (1 + t[0] ** 2).sqrt().float()
    eps = network(x / scale, torch.tensor(700), class_labels=y).sample[:, :1]
    close(teacher(x, t, y), x - t[0].float() * eps)
    assert not torch.allclose(teacher(x, t, y), teacher(x, t, y.flip(0)), atol=1e-3)


@torch.no_grad()
def test_dit_with_guidance_is_the_pipeline_s(tmp_path, monkeypatch):
    network, scheduler, decoder = dit(classes=1000), ddim(), vae()
    spec = save(tmp_path / "p", scheduler, network, decoder, "DiTPipeline")
    teacher = load_teacher(spec + ",guidance=3")
    assert teacher.shape == (4, SIZE, SIZE) and teacher.num_classes == 1000 and teacher.sigma_data == 1
    pipeline = diffusers.DiTPipeline(network, decoder, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    latents = []
    monkeypatch.setattr(type(decoder), "decode", lambda self, z, **_: (latents.append(z), torch.zeros(2, 3, 16, 16))[1:] and
                        type("O", (), {"sample": torch.zeros(2, 3, 16, 16)}))
    z = torch.randn(2, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    pipeline([7, 900], guidance_scale=3.0, num_inference_steps=8, output_type="pt",
             generator=torch.Generator().manual_seed(3))
    scheduler.set_timesteps(8)
    ts = torch.cat([teacher.times[scheduler.timesteps], torch.zeros(1, dtype=torch.float64)])
    *_, (_, ours) = euler(teacher, z * (1 + ts[0] ** 2).sqrt().float(), ts, torch.tensor([7, 900]))
    close(ours, latents[0] * 0.3)


def test_latents_are_decoded_where_images_are_wanted(tmp_path):
    teacher = load_teacher(save(tmp_path / "p", ddim(), dit(), vae(), "DiTPipeline"))
    student = make_student(teacher).eval()
    assert student.sample(range(3)).shape == (3, 3, 16, 16) and student.sample(range(3), decode=False).shape == (3, 4, 8, 8)
    assert sample_teacher(teacher, range(2), torch.tensor([0, 1]), steps=3).shape == (2, 3, 16, 16)
    student.save(tmp_path / "s")
    again = load_student(tmp_path / "s")
    assert torch.equal(again.sample(range(3)), student.sample(range(3)))
    latents = student.sample(range(3), decode=False)
    expected = vae().decode(latents / 0.3).sample.clip(-1, 1)
    torch.testing.assert_close(again.sample(range(3)), expected.detach(), rtol=1e-4, atol=1e-5)
    assert not any(name.startswith("decoder") for name, _ in student.named_parameters())
    assert again.image_shape == teacher.image_shape == (3, 16, 16)


def test_verbs_draw_and_measure_decoded_images(cli, tmp_path):
    spec, run = save(tmp_path / "p", ddim(), dit(), vae(), "DiTPipeline"), tmp_path / "run"
    keys = ("train.steps=2", "train.batch=2", "evaluate.num=4", "optimizer.clip=1", "preview.seeds=0-1")
    quick = [f"--set={key}" for key in keys]
    assert cli("distill", "--teacher", spec, *quick, "--out", run).code == 0
    assert (run / "teacher-student.png").exists()
    for model in (spec, run):
        assert cli("sample", model, "--seeds", "0-1", "--out", tmp_path / "a.png", "--force").code == 0
    assert cli("convert", spec, "--out", tmp_path / "folder").code == 0
    again = load_teacher(str(tmp_path / "folder"))
    teacher = load_teacher(spec)
    images = [sample_teacher(t, range(2), torch.tensor([0, 1]), steps=3) for t in (teacher, again)]
    assert torch.equal(*images) and images[0].shape == (2, 3, 16, 16)


def learnt(network, scheduler, steps=200):
    """The network, trained a little to predict noise: what a random one gives is no noise, and D = x - t eps no image."""
    rng, optimizer = torch.Generator().manual_seed(0), torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(steps):
        noise = torch.randn(16, network.config.in_channels, SIZE, SIZE, generator=rng)
        x_0 = 0.3 + 0.5 * torch.randn(noise.shape, generator=rng).mean((2, 3), keepdim=True).expand(noise.shape)
        k = torch.randint(1000, (16,), generator=rng)
        y = {"class_labels": k % 5} if hasattr(network, "patch_size") else {}
        eps = network(scheduler.add_noise(x_0, noise, k), k, **y).sample[:, :noise.shape[1]]
        (eps - noise).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return network.eval()


LATENT = SCHEDULES[1]
CASES = {"epsilon": lambda: (ddim(**LATENT), learnt(unet(), ddim(**LATENT))),
         "v": lambda: (ddim(prediction_type="v_prediction"), unet(classes=3)),
         "flow": lambda: (diffusers.FlowMatchEulerDiscreteScheduler(), unet()),
         "dit": lambda: (ddim(**LATENT), learnt(dit(), ddim(**LATENT)), vae(), "DiTPipeline")}


@pytest.mark.parametrize("case", CASES)
def test_distillation_lowers_the_loss(tmp_path, capsys, case):
    spec = save(tmp_path / "p", *CASES[case]()) + (",guidance=2" if case == "dit" else "")
    student = distill(spec, out=tmp_path / "run", overrides={
        "train.steps": 100, "train.batch": 16, "optimizer.lr": 1e-3, "optimizer.clip": 1.0, "ema": 0.5, "grid.points": 40,
        "evaluate.num": 4, "preview.every": 100})
    teacher = load_teacher(spec)
    assert ("grid.points=40: " in capsys.readouterr().err) == (len(teacher.grid_times(40)) < 40)
    assert loss_of(student, teacher) < 0.9 * loss_of(make_student(teacher), teacher)
    assert student.sample(range(2)).shape == ((2, 3, 16, 16) if case == "dit" else (2, 1, SIZE, SIZE))
    assert load_student(tmp_path / "run").preconditioning.name in ("epsilon", "v_prediction", "flow")


@torch.no_grad()
def test_null_in_a_configuration_overrides_a_default(tmp_path):
    """attention_head_dim is 8 unless it is null: one head then, of the same weights."""
    spec, folder = save(tmp_path / "p", ddim()), tmp_path / "p" / "unet"
    eight = diffusers.UNet2DModel.from_pretrained(folder)
    edit(folder / "config.json", attention_head_dim=None)
    network = diffusers.UNet2DModel.from_pretrained(folder)
    teacher = load_teacher(spec)
    assert teacher.net_spec["config"]["attention_head_dim"] is None
    make_student(teacher).save(tmp_path / "s")
    convert(spec, tmp_path / "c")
    x, t = torch.randn(2, 1, SIZE, SIZE), torch.full((2,), 500.0)
    expected = network(x, t).sample
    assert not torch.allclose(eight(x, t).sample, expected, atol=1e-4)
    for net in (teacher.model, load_student(tmp_path / "s").net, load_teacher(str(tmp_path / "c")).model):
        close(net(x, t), expected, 1e-6)
    edit(folder / "config.json", num_class_embeds=None, num_embeds_ada_norm=None)
    teacher = load_teacher(spec)
    assert teacher.num_classes == 0 and teacher.null_label is None
    edit(folder / "config.json", sample_size=None)
    with pytest.raises(PidistillError, match="does not say its sample_size"):
        load_teacher(spec)


def at_root(folder, binary):
    """The pipeline as google/ddpm-cifar10-32 keeps it: everything beside model_index.json, attention under older names."""
    for path in [*(folder / "unet").iterdir(), *(folder / "scheduler").iterdir()]:
        path.rename(folder / path.name)
    (folder / "unet").rmdir()
    (folder / "scheduler").rmdir()
    edit(folder / "model_index.json", _class_name="DDPMPipeline")
    weights, old = folder / "diffusion_pytorch_model.safetensors", {
        "to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    state = {next((key.replace(*names) for names in old.items() if names[0] in key), key): value
             for key, value in load_file(weights).items()}
    assert any("proj_attn" in key for key in state)
    weights.unlink()
    if binary:
        torch.save(state, weights.with_suffix(".bin"))
    else:
        save_file(state, weights)


@pytest.mark.parametrize("binary", [False, True], ids=["safetensors", "bin"])
@torch.no_grad()
def test_old_pipelines_keep_their_files_at_the_root(tmp_path, binary):
    spec, folder = save(tmp_path / "p", diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")), tmp_path / "p"
    edit(folder / "unet" / "config.json", attention_head_dim=None)
    at_root(folder, binary)
    assert not [path for path in folder.iterdir() if path.is_dir()]
    pipeline, teacher = diffusers.DDPMPipeline.from_pretrained(folder, use_safetensors=not binary), load_teacher(spec)
    scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(10)
    x = torch.randn(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    ts = torch.cat([teacher.times[scheduler.timesteps], torch.zeros(1, dtype=torch.float64)])
    z = x * (1 + ts[0] ** 2).sqrt().float()
    for t in scheduler.timesteps:
        x = scheduler.step(pipeline.unet(x, t).sample, t, x, eta=0.0).prev_sample
    *_, (_, ours) = euler(teacher, z, ts)
    close(ours, x)
    assert list(teacher.origin["sha256"]) == [f"diffusion_pytorch_model.{'bin' if binary else 'safetensors'}"]
    assert load_teacher(spec, weights=False).net_spec == teacher.net_spec
    (folder / "scheduler_config.json").unlink()
    with pytest.raises(PidistillError, match=r"scheduler.scheduler_config\.json does not exist$"):
        load_teacher(spec)


def test_only_a_component_without_a_folder_is_at_the_root(tmp_path):
    """As in diffusers, each for itself; an empty folder is no missing one."""
    spec, folder = save(tmp_path / "p", ddim()), tmp_path / "p"
    config = folder / "scheduler" / "scheduler_config.json"
    config.rename(folder / config.name)
    with pytest.raises(PidistillError, match=r"scheduler.scheduler_config\.json does not exist$"):
        load_teacher(spec)
    config.parent.rmdir()
    edit(folder / "model_index.json", _class_name="DDPMPipeline")
    assert diffusers.DDPMPipeline.from_pretrained(folder).unet.config.sample_size == SIZE
    assert load_teacher(spec).shape == (1, SIZE, SIZE)
    shutil.rmtree(folder / "unet")
    with pytest.raises(PidistillError, match=r"unet.config\.json does not exist$"):
        load_teacher(spec)


def test_what_is_downloaded():
    """The files of old pipelines and of new, and no code."""
    from huggingface_hub.utils import filter_repo_objects

    wanted = ["model_index.json", "config.json", "scheduler_config.json", "diffusion_pytorch_model.bin",
              "diffusion_pytorch_model.safetensors", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
              "transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"]
    others = ["README.md", "images/a.png", "pipeline.py", "unet/mine.py", "text_encoder/model.safetensors", "model.ckpt",
              "diffusion_pytorch_model.fp16.bin", "diffusion_pytorch_model.msgpack"]
    assert list(filter_repo_objects(wanted + others, allow_patterns=FILES, ignore_patterns=IGNORED)) == wanted


def frozen(net):
    return {name for name, p in net.named_parameters() if not p.requires_grad}


def test_what_diffusers_does_not_train_stays_as_it_is(tmp_path):
    """The random frequencies of Fourier features: in training with weight decay, averages, resuming and starting again."""
    name = "net.time_proj.weight"
    network = unet(time_embedding_type="fourier")
    spec = save(tmp_path / "p", diffusers.ScoreSdeVeScheduler(sigma_max=50), network)
    before, teacher = network.time_proj.weight.detach().clone(), load_teacher(spec)
    keys = {"train.steps": 3, "train.batch": 4, "train.microbatch": 2, "optimizer.lr": 1e-2, "optimizer.clip": 1.0,
            "optimizer.weight_decay": 0.1, "ema": [0.5, 0.9], "grid.points": 10, "evaluate.num": 2, "preview.every": 100,
            "checkpoint.every": 2, "checkpoint.keep": 9}
    whole = distill(spec, out=tmp_path / "run", overrides=keys)
    convert(spec, tmp_path / "c")
    starts = [make_student(teacher), make_student(load_teacher(str(tmp_path / "c"))), make_student(teacher, "random"),
              make_student(teacher, str(tmp_path / "run")), make_student(teacher, str(tmp_path / "c"))]
    for student in (*starts, *map(copy.deepcopy, starts)):
        assert frozen(student.net) == {name}
    assert torch.equal(starts[3].net.net.time_proj.weight, before)
    cut(tmp_path / "run", tmp_path / "cut", 2)
    resume_distillation(tmp_path / "cut")
    resumed = load_student(tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))
    for student in (whole, resumed, load_student(tmp_path / "run", ema=0.9)):
        state = student.net.state_dict()
        assert torch.equal(state[name], before)
        assert not torch.equal(state["net.conv_in.weight"], network.conv_in.weight)
    checkpoint = load_file(tmp_path / "run" / "checkpoints" / "000002" / "student.safetensors")
    assert torch.equal(checkpoint[f"net.{name}"], before)


@pytest.mark.parametrize("net", [NET, MLP], ids=lambda net: net["name"])
def test_other_networks_are_trained_whole(net):
    assert not frozen(make_student(tiny_teacher(net)).net)


def test_all_of_a_unet_without_fourier_features_is_trained(tmp_path):
    assert not frozen(make_student(load_teacher(save(tmp_path / "p", ddim()))).net)


@pytest.mark.parametrize("scaling, shift, expected", [("left out", "left out", (0.18215, 0)), (0.5, None, (0.5, 0)),
                                                      (0.5, 0.25, (0.5, 0.25))])
def test_latents_are_scaled_as_the_autoencoder_says(tmp_path, scaling, shift, expected):
    """What its config.json leaves out is diffusers' default."""
    spec = save(tmp_path / "p", ddim(), dit(), vae(), "DiTPipeline")
    edit(tmp_path / "p" / "vae" / "config.json", scaling_factor=scaling, shift_factor=shift)
    config = diffusers.AutoencoderKL.from_pretrained(tmp_path / "p" / "vae").config
    assert (config.scaling_factor, config.shift_factor or 0) == expected
    convert(spec, tmp_path / "c")
    z = torch.randn(2, 4, SIZE, SIZE)
    with torch.no_grad():
        images = vae().decode(z / expected[0] + expected[1]).sample
    for teacher in (load_teacher(spec), load_teacher(str(tmp_path / "c"))):
        assert (teacher.decoder.scale, teacher.decoder.shift) == expected
        close(teacher.decoder(z), images)


def test_schedules_with_a_step_of_pure_noise_lose_it_and_say_so(tmp_path, capsys):
    teacher = load_teacher(save(tmp_path / "p", ddim(rescale_betas_zero_snr=True, prediction_type="v_prediction")))
    assert 990 < len(teacher.times) < 1000 and 1000 < teacher.t_max < 3200
    assert "zero terminal SNR" in capsys.readouterr().err


def test_half_precision_files_become_float32_and_the_file_is_named(tmp_path):
    teacher = load_teacher(save(tmp_path / "p", ddim(), unet().half()))
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    assert len(next(iter(teacher.origin["sha256"].values()))) == 64


def test_a_dry_run_needs_no_weights(tmp_path):
    spec = save(tmp_path / "p", ddim())
    (tmp_path / "p" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    teacher = load_teacher(spec, weights=False)
    assert {p.device.type for p in teacher.parameters()} == {"meta"}
    with pytest.raises(PidistillError, match="cannot read UNet2DModel"):
        load_teacher(spec)


def test_what_cannot_teach_is_one_line(tmp_path, monkeypatch):
    spec = save(tmp_path / "p", ddim())
    folder = tmp_path / "p"

    def refused(words, given=spec):
        with pytest.raises(PidistillError, match=words) as error:
            load_teacher(given)
        assert "\n" not in str(error.value)

    refused("no folder, and no repository", "diffusers:nowhere")
    refused("holds no pipeline", f"diffusers:{folder / 'unet'}")
    refused(f"is a file; a pipeline is the folder with model_index.json, diffusers:{folder}$", f"{spec}/model_index.json")
    refused("got no name", "diffusers:")
    refused("sigma_data stands twice", spec + ",sigma_data=1,sigma_data=2")
    refused(f"holds no teacher: .*; it holds a pipeline of diffusers: diffusers:{folder}$", str(folder))
    refused("guidance must be a positive number", spec + ",guidance=much")
    refused("diffusers:PATH_OR_REPO", spec + ",guide=3")
    refused("guidance=2", spec + ",guidance=2")
    index = json.loads((folder / "model_index.json").read_text())
    text = {"unet": ["diffusers", "UNet2DConditionModel"], "_class_name": "StableDiffusionPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index | text))
    refused("need text")
    (folder / "model_index.json").write_text(json.dumps({k: v for k, v in index.items() if k != "scheduler"}))
    refused("no scheduler")
    (folder / "model_index.json").write_text(json.dumps(index))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    refused("truncated or not a safetensors file")
    unet(classes=3).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "diffusion_pytorch_model.safetensors", weights)
    refused("do not fit UNet2DModel")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    refused("pip install", spec)


def test_repositories_are_downloaded_only_when_said(monkeypatch, capsys):
    """Offline the message says what to put where."""
    import huggingface_hub

    calls = []

    def download(name, **options):
        calls.append(options.get("local_files_only", False))
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    words = r"cannot download google/ddpm \(no network\).*beside model_index.json.*diffusers:FOLDER$"
    with pytest.raises(PidistillError, match=words):
        load_teacher("diffusers:google/ddpm")
    assert calls == [True, False] and "downloading google/ddpm" in capsys.readouterr().err


def test_a_folder_whose_name_has_commas_is_itself(tmp_path):
    for name in ("a,b", "a,sigma_data=3"):
        spec = save(tmp_path / name, ddim())
        assert load_teacher(spec).sigma_data == 0.5 and load_teacher(spec + ",sigma_data=0.4").sigma_data == 0.4
