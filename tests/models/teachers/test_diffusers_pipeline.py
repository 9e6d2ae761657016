"""model_index.json and the networks' configurations: what a pipeline is made of, and what is refused by name."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.models.student_init import make_student
from pidistill.models.teachers._diffusers_pipeline import (
    COMPONENTS,
    HARMLESS_COMPONENTS,
    PIPELINES,
    REFUSED_PIPELINES,
    check_clock,
    choose_parts,
)
from pidistill.models.teachers.base import load_teacher
from tests.helpers import shake
from tests.models.teachers.test_diffusers import SIZE, close, ddim, dit, edit, save, unet, vae

diffusers = pytest.importorskip("diffusers")


@functools.cache
def pipelines_of_diffusers() -> dict[str, dict[str, str]]:
    """Components of every pipeline in diffusers' source that can have an accepted network, with what they may be.

    The source is parsed, since importing all of them takes long, and needs what is not installed.
    """
    found = {}
    for path in (Path(diffusers.__file__).parent / "pipelines").rglob("pipeline_*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "UNet2DModel" in text or "DiTTransformer2DModel" in text else ():
            if isinstance(node, ast.ClassDef) and node.name.endswith("Pipeline"):
                init = next(part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__")
                found[node.name] = {a.arg: ast.unparse(a.annotation) if a.annotation else "" for a in init.args.args[1:]}
    return found


@pytest.mark.parametrize("name", PIPELINES)
def test_every_component_of_every_accepted_pipeline_is_known(name):
    """A new one of a later diffusers fails here, and not a user."""
    if name == "AudioDiffusionPipeline":  # it says UNet2DConditionModel, and takes the other too
        components = {"vqvae", "unet", "mel", "scheduler"}
    else:
        components = pipelines_of_diffusers()[name].keys()
    assert components <= {*COMPONENTS, *HARMLESS_COMPONENTS}


def test_every_pipeline_of_diffusers_with_an_accepted_network_is_known():
    """Accepted or refused, if it needs no text and no image."""
    found = {name for name, components in pipelines_of_diffusers().items()
             if any(kind in components.get(key, "") for key in ("unet", "transformer")
                    for kind in ("UNet2DModel", "DiTTransformer2DModel"))
             and not any(key.startswith(("text_encoder", "bert", "image_encoder", "prior")) for key in components)}
    assert found == {*PIPELINES, *REFUSED_PIPELINES} - {"AudioDiffusionPipeline"}


def refused(spec: str, words: str) -> None:
    with pytest.raises(PidistillError, match=words) as error:
        load_teacher(spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", REFUSED_PIPELINES)
def test_pipelines_whose_networks_mean_something_else_are_refused(tmp_path, name):
    refused(save(tmp_path / "p", ddim(), kind=name), f"a {name} cannot teach: {REFUSED_PIPELINES[name][:10]}")


@pytest.mark.parametrize("component, entry", [
    ("bert", ["transformers", "BertModel"]), ("movq", ["diffusers", "VQModel"]), ("unet_ema", ["diffusers", "UNet2DModel"]),
    ("image_encoder", ["transformers", "CLIPVisionModel"]), ("is_inverted", True),
    ("low_res_scheduler", ["diffusers", "DDPMScheduler"])])
def test_components_that_are_not_understood_are_refused_by_name(tmp_path, component, entry):
    spec = save(tmp_path / "p", ddim())
    edit(tmp_path / "p" / "model_index.json", **{component: entry})
    refused(spec, f"its {component}, .* is not understood")


def test_components_that_change_no_image_are_passed_over(tmp_path):
    spec = save(tmp_path / "p", ddim())
    edit(tmp_path / "p" / "model_index.json", mel=["audio_diffusion", "Mel"], safety_checker=[None, None],
         vqvae=[None, None], id2label={"0": "a cat"}, requires_safety_checker=False,
         feature_extractor=["transformers", "CLIPImageProcessor"],
         prior=[None, None], text_encoder=None, _diffusers_version="0.1.2")
    assert load_teacher(spec).shape == (1, SIZE, SIZE)


def test_two_networks_and_code_of_others_are_refused(tmp_path):
    spec, index = save(tmp_path / "p", ddim()), tmp_path / "p" / "model_index.json"
    edit(index, transformer=["diffusers", "DiTTransformer2DModel"])
    refused(spec, "has unet and transformer")
    edit(index, transformer="left out", unet=["my_unet", "UNet2DModel"])
    refused(spec, "the unet UNet2DModel is of my_unet, not of diffusers")
    edit(index, unet=["diffusers", "UNet2DModel"], scheduler=["pipeline", "DDIMScheduler"])
    refused(spec, "the scheduler DDIMScheduler is of pipeline")
    assert choose_parts({"unet": ["diffusers", "UNet2DModel"], "scheduler": [None, None]}, "p").scheduler is None


# channels -------------------------------------------------------------------------------------------------------------


def other(takes: int, gives: int):
    return diffusers.UNet2DModel(sample_size=SIZE, in_channels=takes, out_channels=gives, layers_per_block=1,
                                 norm_num_groups=4, block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2,
                                 up_block_types=("UpBlock2D",) * 2)


@pytest.mark.parametrize("takes, gives", [(2, 1), (6, 3), (4, 3), (1, 3), (3, 1), (2, 6)])
def test_a_network_that_gives_other_channels_than_it_takes_is_refused(tmp_path, cli, takes, gives):
    """An image beside the noise: its one channel was broadcast, and the run ended with 0."""
    spec = save(tmp_path / "p", ddim(), other(takes, gives))
    refused(spec, f"takes {takes} channels and gives {gives}")
    if (takes, gives) == (2, 1):
        for verb in (("distill", "--teacher", spec, "--out", tmp_path / "run"), ("inspect", spec),
                     ("sample", spec, "--out", tmp_path / "a.png")):
            assert "takes 2 channels and gives 1" in cli(*verb).error()
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("takes, gives", [(1, 1), (3, 6), (2, 2), (4, 8)])
def test_as_many_channels_or_twice_are_read(tmp_path, takes, gives):
    teacher = load_teacher(save(tmp_path / "p", ddim(), other(takes, gives)))
    assert teacher(torch.randn(2, takes, SIZE, SIZE), 1.0).shape == (2, takes, SIZE, SIZE)


def test_channels_that_a_file_leaves_out_are_its_class_s_default(tmp_path):
    """Three: of one that takes one, three would be given."""
    spec, config = save(tmp_path / "p", ddim()), tmp_path / "p" / "unet" / "config.json"
    edit(config, out_channels="left out")
    refused(spec, "takes 1 channels and gives 3")


# clocks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@torch.no_grad()
def test_a_learned_embedding_of_steps_is_given_whole_steps(tmp_path, prediction):
    network = unet(time_embedding_type="learned", num_train_timesteps=1000)
    teacher = load_teacher(save(tmp_path / "p", ddim(prediction_type=prediction), network))
    scheduler, x = ddim(prediction_type=prediction), torch.randn(2, 1, SIZE, SIZE)
    scheduler.set_timesteps(10)
    for t in scheduler.timesteps:
        D = scheduler.step(network(x, t).sample, int(t), x).pred_original_sample
        level = teacher.times[t]
        close(teacher(x * (1 + level**2).sqrt().float(), float(level)), D)
    student = make_student(teacher)
    assert student(x * teacher.t_max, 1.0).isfinite().all()  # between two steps it is told the nearer


def test_embeddings_that_cannot_take_the_clock_are_refused(tmp_path):
    learned = {"time_embedding_type": "learned", "num_train_timesteps": 1000}
    flow, edm = diffusers.FlowMatchEulerDiscreteScheduler(), diffusers.EDMEulerScheduler()
    for k, scheduler in enumerate((flow, edm, ddim(num_train_timesteps=2000))):
        refused(save(tmp_path / f"{k}", scheduler, unet(**learned)), "time_embedding_type=learned knows 1000 whole steps")
    refused(save(tmp_path / "e", edm, unet(time_embedding_type="fourier")), "fourier takes the logarithm of the clock")
    assert check_clock({"time_embedding_type": "fourier"}, "score", "p") == 0
    assert check_clock({"time_embedding_type": "fourier"}, {"name": "flow", "scale": 1000.0}, "p") == 0


@torch.no_grad()
def test_a_network_that_takes_the_logarithm_of_the_step_is_not_asked_at_step_0(tmp_path, capsys):
    """There diffusers' own gives no numbers."""
    network = unet(time_embedding_type="fourier")
    assert network(torch.randn(1, 1, SIZE, SIZE), torch.tensor(0)).sample.isnan().all()
    teacher = load_teacher(save(tmp_path / "p", ddim(), network))
    assert "is not asked at step 0" in capsys.readouterr().err and teacher.t_min == float(teacher.times[1])
    assert all(teacher(torch.randn(1, 1, SIZE, SIZE) * t, t).isfinite().all() for t in teacher.grid_times(18).tolist())


# decoders -------------------------------------------------------------------------------------------------------------


def latent(tmp_path, **changes) -> str:
    spec = save(tmp_path / "p", ddim(), dit(), vae(), "DiTPipeline")
    edit(tmp_path / "p" / "vae" / "config.json", **changes)
    return spec


@pytest.mark.parametrize("component", ["vae", "vqvae"])
@pytest.mark.parametrize("kind", ["VQModel", "AutoencoderTiny", "AsymmetricAutoencoderKL", "ConsistencyDecoderVAE"])
def test_other_decoders_are_refused_by_name(tmp_path, component, kind):
    spec = latent(tmp_path)
    (tmp_path / "p" / "vae").rename(tmp_path / "p" / component)
    edit(tmp_path / "p" / "model_index.json", **{"vae": "left out", component: ["diffusers", kind]})
    refused(spec, f"decodes with a {kind}; only AutoencoderKL can")


@pytest.mark.parametrize("changes, words", [
    ({"latents_mean": [0.1] * 4}, "latents_mean=.* is not understood"),
    ({"latents_std": [2.0] * 4}, "latents_std=.* is not understood"),
    ({"latent_channels": 3}, "works on 4 channels, its AutoencoderKL on 3")])
def test_latents_that_are_not_the_network_s_are_refused(tmp_path, changes, words):
    refused(latent(tmp_path, **changes), words)


def test_latents_of_an_ldm_pipeline_are_decoded(tmp_path):
    """Its autoencoder's component is called vqvae."""
    network = shake(other(4, 4)).eval()
    spec = save(tmp_path / "p", ddim(), network, vae(), "LDMPipeline")
    (tmp_path / "p" / "vae").rename(tmp_path / "p" / "vqvae")
    edit(tmp_path / "p" / "model_index.json", vae="left out", vqvae=["diffusers", "AutoencoderKL"])
    teacher, z = load_teacher(spec), torch.randn(2, 4, SIZE, SIZE)
    assert teacher.sigma_data == 1 and teacher.image_shape == (3, 16, 16)
    with torch.no_grad():
        close(teacher.decoder(z), vae().decode(z / 0.3).sample)


def test_a_missing_decoder_is_named(tmp_path):
    spec = latent(tmp_path)
    (tmp_path / "p" / "vae" / "config.json").unlink()
    refused(spec, "need the AutoencoderKL that is not in vae/")


# keys of the network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["timestep", "identity", "projection"])
def test_labels_that_are_no_classes_are_refused(tmp_path, kind):
    spec = save(tmp_path / "p", ddim())
    edit(tmp_path / "p" / "unet" / "config.json", class_embed_type=kind)
    refused(spec, f"class_embed_type={kind} is not understood")


def test_what_the_installed_diffusers_does_not_know_is_said_and_left_out(tmp_path, capsys):
    spec = save(tmp_path / "p", ddim())
    edit(tmp_path / "p" / "unet" / "config.json", an_option_of_tomorrow=3, decay=0.999)
    assert load_teacher(spec).shape == (1, SIZE, SIZE)
    said = capsys.readouterr().err
    assert "an_option_of_tomorrow in its config.json is no key of UNet2DModel" in said and "decay" not in said
    latent(tmp_path / "latent", another=True)
    load_teacher(f"diffusers:{tmp_path / 'latent' / 'p'}", weights=False)
    assert "another in its config.json is no key of AutoencoderKL" in capsys.readouterr().err
