"""Every scheduler that is read, with any setting: the teacher's D is diffusers' own, or the setting is refused by name.

The schedulers themselves compute what is compared with (`pred_original_sample`, `convert_model_output`), at the noise levels
and steps that they visit.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pidistill.core.errors import PidistillError
from pidistill.models.denoiser import Preconditioned
from pidistill.models.teachers._diffusers_schedule import (
    CLIPPING,
    FAMILIES,
    FOREIGN_KEYS,
    READ_KEYS,
    REFUSED_KEYS,
    SAME_KEYS,
    SAMPLER_KEYS,
    SLOW,
    read_schedule,
)

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*defaults to")
KNOWN = {*SAMPLER_KEYS, *REFUSED_KEYS, *(key for keys in READ_KEYS.values() for key in keys)}
COMPARED = sorted(FAMILIES.keys() - {"DPMSolverSDEScheduler"})  # its class needs torchsde
# Which of their own numbers is compared: of a step, of a part of one, or of none, so that only tables and formula are.
STEP = {"DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "CogVideoXDDIMScheduler",
        "UnCLIPScheduler"}
SCALED = {"EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler",
          "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "EDMEulerScheduler"}
CONVERTED = {"DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverSinglestepScheduler",
             "UniPCMultistepScheduler", "DEISMultistepScheduler", "SASolverScheduler"}


class Wave(nn.Module):
    """A raw network that listens to all of its input: a step more of its clock turns it by 0.3."""

    def __init__(self, unit_range: bool = False):
        super().__init__()
        self.unit_range = unit_range

    def forward(self, x, c_noise, labels=None):
        x = (x + 1) / 2 if self.unit_range else x
        return torch.sin(1.7 * x + 0.3 * c_noise[:, None])


class Asked(NamedTuple):
    """What a scheduler asked its network at a step, x = image + t noise, (B, 2), and the denoised sample that it got, D."""

    t: float
    x: Tensor
    D: Tensor
    step: float


def call(u, clock):
    return Wave()(u, torch.full((len(u),), float(clock), dtype=u.dtype))


def images(t: float, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    image, noise = torch.randn(2, 4, 2, dtype=torch.float64, generator=rng)
    return 0.5 * image + t * noise


def ask(kind: str, scheduler) -> Iterator[Asked]:
    """Everything that the scheduler asks in seven to twelve steps."""
    if kind == "ScoreSdeVeScheduler":  # images in [0, 1]; the sampler only ever uses the score
        for k, s in enumerate(scheduler.discrete_sigmas[::19].tolist()):
            x = images(2 * s, k)
            u = (x + 1) / 2
            yield Asked(2 * s, x, 2 * (u + s**2 * call(u, s)) - 1, s)
        return
    mu = {"mu": 0.7} if scheduler.config.get("use_dynamic_shifting") and kind in (
        "FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler", "UniPCMultistepScheduler") else {}
    if kind == "RePaintScheduler":  # which steps it visits is a path of its own
        scheduler.timesteps = torch.arange(scheduler.config.num_train_timesteps - 1, 0, -37)
    else:
        scheduler.set_timesteps(10, **mu)
        if hasattr(scheduler, "set_begin_index"):  # steps that stand twice would be taken for each other
            scheduler.set_begin_index(0)
    for k, clock in enumerate(scheduler.timesteps):
        asked = ask_step(kind, scheduler, k, clock)
        if asked is not None:
            yield asked


def ask_step(kind: str, scheduler, k: int, clock: Tensor) -> Asked | None:
    prediction, flow = scheduler.config.get("prediction_type", "epsilon"), scheduler.config.get("use_flow_sigmas", False)
    if FAMILIES[kind] == "flow" or flow:
        return ask_flow(kind, scheduler, k, clock)
    if kind in SCALED | {"EDMDPMSolverMultistepScheduler"}:
        middle = kind.startswith("KDPM2") and not scheduler.state_in_first_order
        t = float(scheduler.sigmas_interpol[k - ("Ancestral" in kind)] if middle else scheduler.sigmas[k])
        x = images(t, k)
        if kind.startswith("EDMDPM"):
            scheduler._step_index = k
        out = call(scheduler.scale_model_input(x, clock), clock)
        if kind.startswith("EDMDPM"):
            return Asked(t, x, scheduler.convert_model_output(out, sample=x), float(clock))
        D = scheduler.step(out, clock, x).pred_original_sample  # of every step: some have two halves
        return Asked(t, x, D, float(clock)) if 1e-4 < t < 1e4 else None
    abar = scheduler.alphas_cumprod[int(clock)].double()
    t = float(scheduler.sigmas[k]) if kind in CONVERTED else float(((1 - abar) / abar).sqrt())
    if not 1e-4 < t < 1e3:
        return None
    x, alpha = images(t, k), (1 + t**2) ** -0.5
    out = call(alpha * x, clock)
    if kind in CONVERTED:
        scheduler._step_index = k
        D = scheduler.convert_model_output(out, sample=alpha * x)
        noise = scheduler.config.get("algorithm_type") in ("deis", "dpmsolver", "sde-dpmsolver", "noise_prediction") \
            or scheduler.config.get("predict_x0") is False
        return Asked(t, x, x - t * D if noise else D, float(clock))
    if kind in STEP:
        return Asked(t, x, scheduler.step(out, int(clock), alpha * x).pred_original_sample, float(clock))
    D = {"epsilon": x - t * out, "v_prediction": alpha * (alpha * x) - t * alpha * out, "sample": out}[prediction]
    return Asked(t, x, D, float(clock))


def ask_flow(kind: str, scheduler, k: int, clock: Tensor) -> Asked | None:
    s = float(scheduler.sigmas[k])
    if not 1e-4 < s < 1 - 1e-4:
        return None
    x = images(s / (1 - s), k)
    x_s = (1 - s) * x
    out = call(x_s, clock)
    scheduler._step_index = k
    if kind in CONVERTED:
        D = scheduler.convert_model_output(out, sample=x_s)
        return Asked(s / (1 - s), x, (x_s - s * D) / (1 - s) if kind.startswith("DEIS") else D, float(clock))
    if kind == "FlowMatchEulerDiscreteScheduler" and not scheduler.config.stochastic_sampling:  # along the line to s = 0
        u = float(scheduler.sigmas[k + 1])
        return Asked(s / (1 - s), x, x_s + (scheduler.step(out, clock, x_s).prev_sample - x_s) * s / (s - u), float(clock))
    return Asked(s / (1 - s), x, x_s - s * out, float(clock))


RESPACED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
CHOICES = {
    "num_train_timesteps": [1000, 100], "betas": [(1e-4, 0.02), (0.00085, 0.012), (0.0015, 0.0195)],
    "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp"], "trained_betas": [None, True],
    "prediction_type": ["epsilon", "v_prediction", "sample", "flow_prediction"], "rescale_betas_zero_snr": [False, True],
    "snr_shift_scale": [3.0, 1.0], "timestep_spacing": ["linspace", "leading", "trailing"], "steps_offset": [0, 1],
    "spaced": [None, *RESPACED], "sigma_min": [None, 0.05], "sigma_max": [None, 60.0], "sigma_data": [0.5, 0.3, 1.0],
    "rho": [7.0, 5.0], "timestep_type": ["discrete", "continuous"], "interpolation_type": ["linear", "linear", "log_linear"],
    "final_sigmas_type": ["zero", "sigma_min"], "flow_shift": [1.0, 3.0], "shift": [1.0, 3.0], "shift_terminal": [None, 0.1],
    "use_dynamic_shifting": [False, True], "time_shift_type": ["exponential", "linear"], "base_shift": [0.5, 0.2],
    "max_shift": [1.15, 2.0], "base_image_seq_len": [256, 64], "max_image_seq_len": [4096, 512],
    "stochastic_sampling": [False, True], "clip_sample": [False, True], "clip_sample_range": [1e7],
    "sample_max_value": [1.0], "thresholding": [False], "dynamic_thresholding_ratio": [0.9],
    "set_alpha_to_one": [True, False],
    "skip_prk_steps": [False, True], "variance_type": ["fixed_small", "fixed_large"], "eta": [0.0, 0.5],
    "solver_order": [1, 2, 3], "solver_type": ["midpoint", "heun"], "algorithm_type": ["dpmsolver++", "dpmsolver"],
    "lower_order_final": [False, True], "euler_at_final": [False, True], "predict_x0": [True, False],
    "predictor_order": [1, 2], "corrector_order": [1, 2], "original_inference_steps": [50, 20],
    "timestep_scaling": [10.0, 1.0], "sigma_schedule": ["karras", "exponential"], "correct_steps": [1, 2],
    "snr": [0.15, 0.1], "lambda_min_clipped": [-float("inf"), -5.1], "upscale_mode": ["bicubic", "nearest"],
    "disable_corrector": [[], [0]]}
OF_CLASS = {  # where a class takes other values
    "UnCLIPScheduler": {"beta_schedule": ["squaredcos_cap_v2"], "prediction_type": ["epsilon", "sample"],
                        "variance_type": ["fixed_small_log"]},
    "DDIMInverseScheduler": {"timestep_spacing": ["leading", "trailing"]},
    "EDMEulerScheduler": {"sigma_min": [0.002, 0.05], "sigma_max": [80.0, 30.0],
                          "prediction_type": ["epsilon", "v_prediction"]},
    "ScoreSdeVeScheduler": {"sigma_min": [0.01, 0.05], "sigma_max": [1348.0, 50.0]},
    "SASolverScheduler": {"algorithm_type": ["data_prediction", "noise_prediction"]},
    "UniPCMultistepScheduler": {"solver_type": ["bh1", "bh2"]}, "DEISMultistepScheduler": {
        "algorithm_type": ["deis"], "solver_type": ["logrho"]}, "FlowMatchHeunDiscreteScheduler": {"shift": [1.0, 3.0]}}
OF_CLASS |= {kind: {"num_train_timesteps": [100]} for kind in SLOW}
OF_CLASS["EDMDPMSolverMultistepScheduler"] = OF_CLASS["EDMEulerScheduler"] | {"algorithm_type": ["dpmsolver++"]}
SCHEDULES = {"HeunDiscreteScheduler": {"exp"}, "DDPMScheduler": {"sigmoid"}, "DDPMParallelScheduler": {"sigmoid"},
             "RePaintScheduler": {"sigmoid"}}
NO_SAMPLE = ("EulerAncestral", "KDPM2", "PNDM")  # they raise NotImplementedError, or ValueError, for networks of images


def parameters_of(kind: str) -> list[str]:
    """The keys that the class takes; of one that cannot be imported from its source."""
    if kind not in SAME_KEYS:
        taken = inspect.signature(getattr(diffusers, kind).__init__).parameters
        return [key for key, p in taken.items() if key != "self" and p.kind is not p.VAR_KEYWORD]
    tree = ast.parse((Path(diffusers.__file__).parent / "schedulers" / "scheduling_dpmsolver_sde.py").read_text())
    own, = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind)
    init, = (node for node in own.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    return [argument.arg for argument in init.args.args[1:]]


def settings_of(kind: str) -> st.SearchStrategy[dict]:
    """Settings of a class that go together, as its constructor takes them."""
    taken = parameters_of(kind)
    choices = {key: values for key, values in (CHOICES | OF_CLASS.get(kind, {})).items()
               if key in taken or (key == "betas" and "beta_start" in taken) or (key == "spaced" and {*RESPACED} & {*taken})}
    return st.fixed_dictionaries({key: st.sampled_from(values) for key, values in choices.items()}).map(
        lambda drawn: consistent(kind, taken, dict(drawn)))


def consistent(kind: str, taken: list[str], drawn: dict) -> dict:
    """Make settings that were drawn one by one go together."""
    steps = drawn.get("num_train_timesteps", 1000)
    if "betas" in drawn:
        drawn["beta_start"], drawn["beta_end"] = drawn.pop("betas")
    if drawn.get("beta_schedule") in ("sigmoid", "exp") and drawn["beta_schedule"] not in SCHEDULES.get(kind, ()):
        drawn["beta_schedule"] = "linear"
    if drawn.get("trained_betas"):
        drawn["trained_betas"] = np.linspace(0.001, 0.03, steps).tolist()
    if kind == "RePaintScheduler":
        drawn["trained_betas"] = None  # its class takes an array, which no file can hold
    if "use_flow_sigmas" in taken:
        drawn["use_flow_sigmas"] = drawn["prediction_type"] == "flow_prediction"
    elif drawn.get("prediction_type") == "flow_prediction" or (drawn.get("prediction_type") == "sample"
                                                               and kind.startswith(NO_SAMPLE)):
        drawn["prediction_type"] = "v_prediction"
    spaced = drawn.pop("spaced", None)
    # With flow levels, and with a table's end at infinity, their own samplers give no numbers when they are respaced.
    if spaced in taken and not drawn.get("use_flow_sigmas") and not drawn.get("rescale_betas_zero_snr"):
        drawn[spaced] = True
    if drawn.get("algorithm_type") == "dpmsolver":
        drawn["final_sigmas_type"] = "sigma_min"
        drawn["algorithm_type"] = "dpmsolver++" if drawn.get("use_flow_sigmas") else "dpmsolver"
    if drawn.get("use_flow_sigmas"):
        drawn |= {key: value for key, value in (("predict_x0", True), ("algorithm_type", None)) if key in drawn and value}
        if kind == "SASolverScheduler":
            drawn["algorithm_type"] = "data_prediction"
        drawn["rescale_betas_zero_snr"] = False
    elif kind == "UniPCMultistepScheduler":
        drawn |= {"shift_terminal": None, "use_dynamic_shifting": False}
    if kind in CONVERTED and "time_shift_type" in drawn:
        drawn["time_shift_type"] = "exponential"
    if "variance_type" in drawn and kind in CONVERTED:
        drawn["variance_type"] = None
    return {key: value for key, value in drawn.items() if key in taken}


def read(scheduler, **changes) -> dict:
    """What the reader makes of the file that the scheduler writes."""
    config = json.loads(scheduler.to_json_string()) | changes
    return read_schedule(diffusers, {key: value for key, value in config.items() if value != "left out"}, "p")


def teacher_of(facts: dict, **options) -> Preconditioned:
    return Preconditioned(Wave(**options), (2,), **facts).double()


def is_rounded(teacher: Preconditioned, t: float, step: float, respaced: bool) -> bool:
    """Between two levels of the table some of their solvers round the step, each in its way; ours are asked at levels alone.

    respaced: whether the scheduler visits levels between those of the table. Flow levels that are a whole step, up to
    rounding, are left out too: on which side of it they fall is an accident.
    """
    clock = float(teacher.preconditioning(torch.tensor([t])).c_noise)
    if teacher.times is None:
        whole = teacher.preconditioning.constants.get("whole", False)
        return whole and abs(1000 * t / (1 + t) - round(1000 * t / (1 + t))) < 2e-3
    return respaced and step == int(step) and 1e-4 < abs(clock - step) < 1.001


@pytest.mark.parametrize("kind", COMPARED)
def test_with_any_setting_D_is_diffusers_own(kind):
    counts = {"compared": 0, "left out": 0, "refused": 0}

    @settings(max_examples=10, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(settings_of(kind))
    def compare(options):
        scheduler = getattr(diffusers, kind)(**options)
        try:
            teacher = teacher_of(read(scheduler), unit_range=kind == "ScoreSdeVeScheduler")
        except PidistillError as error:
            assert "interpolation_type=log_linear is not understood" in str(error), options
            counts["refused"] += 1
            return
        for t, x, D, step in ask(kind, scheduler):
            if is_rounded(teacher, t, step, any(options.get(key) for key in RESPACED)) \
                    or (teacher.times is not None and t > 1.001 * teacher.t_max):  # a step of pure noise
                counts["left out"] += 1
                continue
            ours = teacher(x, torch.full((len(x),), t, dtype=torch.float64))
            assert (ours - D).abs().max() < 3e-4 * (1 + t), (options, t, step)
            counts["compared"] += 1

    compare()
    assert counts["compared"] > 40 and counts["refused"] < 6, counts


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_every_key_of_every_class_is_in_the_table(kind):
    """A new key of a later diffusers fails here, and not a user."""
    assert {*parameters_of(kind)} <= KNOWN


def test_keys_are_named_once_and_belong_to_some_class():
    every = {key for kind in FAMILIES for key in parameters_of(kind)}
    old = {"tensor_format", "timestep_values", "timesteps", "predict_epsilon", "set_alpha_to_zero"}
    assert KNOWN - every == old and {*FOREIGN_KEYS} <= KNOWN
    assert not {*SAMPLER_KEYS} & {*REFUSED_KEYS} and len({*SAMPLER_KEYS}) == len(SAMPLER_KEYS)
    for family, keys in READ_KEYS.items():
        taken = {key for kind, other in FAMILIES.items() if other == family for key in parameters_of(kind)}
        assert {*keys} <= taken


def spec_of(facts: dict) -> dict:
    """The preconditioning without its table, for comparison."""
    spec = facts["preconditioning"]
    return {key: value for key, value in spec.items() if key != "sigmas"} if isinstance(spec, dict) else {"name": spec}


def test_eulers_continuous_v_is_edm_s_formula_of_unit_data_with_its_range():
    """T was the table's 14.6 instead of 80, and the clock 999 where diffusers asks for 0.92."""
    scheduler = diffusers.EulerDiscreteScheduler(
        timestep_type="continuous", prediction_type="v_prediction", use_karras_sigmas=True, sigma_min=0.002, sigma_max=80.0,
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    facts = read(scheduler)
    assert spec_of(facts) == {"name": "edm_v", "sigma_data": 1.0} and (facts["t_min"], facts["t_max"]) == (0.002, 80.0)
    teacher = teacher_of(facts)
    assert teacher.times is None and teacher.sigma_data == 0.5  # of its data, which the formula does not know
    assert float(teacher.preconditioning(torch.tensor([40.0])).c_noise) == pytest.approx(0.922, abs=1e-3)
    scheduler.set_timesteps(10)
    assert float(scheduler.sigmas[0]) == pytest.approx(teacher.t_max)
    for t, x, D, _ in ask("EulerDiscreteScheduler", scheduler):
        torch.testing.assert_close(teacher(x, t), D, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options, low, high", [
    ({"use_exponential_sigmas": True, "sigma_min": 0.01, "sigma_max": 700.0}, 0.01, 700.0),
    ({"use_karras_sigmas": True, "sigma_max": 40.0}, 0.0292, 40.0), ({"use_beta_sigmas": True}, 0.0292, 14.61),
    ({"sigma_min": 0.002, "sigma_max": 80.0}, 0.0292, 14.61)], ids=str)
def test_a_continuous_range_is_what_diffusers_visits(options, low, high):
    """Without respaced levels diffusers reads neither end, and visits the table's."""
    scheduler = diffusers.EulerDiscreteScheduler(
        timestep_type="continuous", prediction_type="v_prediction", beta_schedule="scaled_linear", beta_start=0.00085,
        beta_end=0.012, **options)
    facts = read(scheduler)
    scheduler.set_timesteps(1000)
    assert (facts["t_min"], facts["t_max"]) == pytest.approx((low, high), rel=2e-3)
    assert (scheduler.sigmas[-2].item(), scheduler.sigmas[0].item()) == pytest.approx((low, high), rel=2e-3)


@pytest.mark.parametrize("kind", [kind for kind in COMPARED if FAMILIES[kind] == "table"])
def test_what_a_configuration_leaves_out_is_its_own_class_s_default(kind):
    """Not DDPM's: Heun's betas are others, UnCLIP's are a cosine's, CogVideoX shifts its noise."""
    own = getattr(diffusers, kind)()
    facts = read_schedule(diffusers, {"_class_name": kind}, "p")
    abar = own.alphas_cumprod.double()
    levels = ((1 - abar) / abar).sqrt()
    known = facts["preconditioning"]["sigmas"]
    torch.testing.assert_close(torch.tensor(known, dtype=torch.float64), levels[:len(known)], rtol=1e-6, atol=0)
    assert len(known) >= len(abar) - 1 and facts["preconditioning"]["name"] == "epsilon"


def scheduler_of(kind: str, **changes) -> dict:
    return {"_class_name": kind, **changes}


REFUSED = {  # kind, changes, words of the error
    "levels beside steps": ("EulerDiscrete", {"interpolation_type": "log_linear"}, "interpolation_type=log_linear"),
    "a clock unknown": ("EulerDiscrete", {"timestep_type": "hourly"}, "timestep_type must be discrete or continuous"),
    "a continuous clock of a class without": ("DDIM", {"timestep_type": "continuous"}, "timestep_type=continuous"),
    "zero SNR of a class without": ("PNDM", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True"),
    "shifted SNR of a class without": ("DDIM", {"snr_shift_scale": 3.0}, "snr_shift_scale=3.0"),
    "betas of a class without": ("UnCLIP", {"trained_betas": [0.1, 0.2]}, "trained_betas="),
    "EDM's data in a class without": ("DDPM", {"sigma_data": 0.5}, "sigma_data=0.5"),
    "flow levels, noise predicted": ("UniPCMultistep", {"use_flow_sigmas": True}, "do not go together"),
    "velocity, no flow levels": ("DEISMultistep", {"prediction_type": "flow_prediction"}, "do not go together"),
    "velocity of a class without": ("DDIM", {"prediction_type": "flow_prediction"}, "do not go together"),
    "flow levels of a class without": ("DDIM", {"use_flow_sigmas": True}, "use_flow_sigmas=True"),
    "another prediction than flow": ("FlowMatchEulerDiscrete", {"prediction_type": "epsilon"}, "prediction_type=epsilon"),
    "a prediction of a class without": ("RePaint", {"prediction_type": "sample"}, "prediction_type=sample"),
    "time backwards": ("FlowMatchEulerDiscrete", {"invert_sigmas": True}, "invert_sigmas=True"),
    "images that grow": ("FlowMatchLCM", {"scale_factors": [0.5, 1.0]}, r"scale_factors=\[0.5, 1.0\]"),
    "EDM of the image": ("EDMEuler", {"prediction_type": "sample"}, "predicts 'sample' is not known"),
    "before prediction types": ("DDPM", {"predict_epsilon": False}, "predict_epsilon=False"),
    "a key of tomorrow": ("DDIM", {"time_warp": 2.0}, "time_warp=2.0 is not known"),
    "no such schedule": ("DDIM", {"beta_schedule": "sigmoid"}, "is not implemented"),
    "too many betas": ("DDIM", {"trained_betas": [1e-6] * 100_001}, "from 1 to 100000"),
    "betas that are no numbers": ("DDIM", {"trained_betas": [float("nan")] * 1000}, "are no numbers"),
    "another family in the index": ("EDMEuler", {}, "model_index.json names a DDIMScheduler"),
} | {f"class {kind}": (kind, {"beta_schedule": "linear", "trained_betas": None}, "is not known")
     for kind in ("IPNDM", "KarrasVe", "VQDiffusion", "CMStochasticIterative", "ConsistencyDecoder", "SCM", "DDPMWuerstchen",
                  "CosineDPMSolverMultistep", "Helios", "FlowMapEulerDiscrete", "EDMOfTomorrow", "FlowMatchOfTomorrow")}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused_by_name(case):
    kind, changes, words = REFUSED[case]
    config = scheduler_of(f"{kind}Scheduler", **changes)
    with pytest.raises((PidistillError, NotImplementedError), match=words) as error:  # the latter is wrapped by the caller
        read_schedule(diffusers, config, "p", "DDIMScheduler" if "index" in case else None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", [
    {"_class_name": "DDIMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.0195, "beta_schedule": "scaled_linear",
     "beta_start": 0.0015, "clip_sample": False, "num_train_timesteps": 1000, "timestep_values": None, "timesteps": 1000,
     "trained_betas": None},
    {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False,
     "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "tensor_format": "pt"},
    {"_class_name": "DDPMScheduler", "predict_epsilon": True, "variance_type": "fixed_large", "sigma_data": None},
    {"_class_name": "ScoreSdeVeScheduler", "snr": 0.15, "sigma_min": 0.01, "sigma_max": 1348, "tensor_format": "pt"},
    {"_class_name": "EDMEulerScheduler", "timestep_type": "continuous", "beta_start": 1e-4},
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_flow_sigmas": True,
     "prediction_type": "flow_prediction", "flow_shift": 3.0, "beta_schedule": "linear"},
    {"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear", "use_karras_sigmas": True}],
    ids=lambda config: config["_class_name"])
def test_files_of_earlier_versions_and_of_converted_schedulers_are_read(config):
    assert read_schedule(diffusers, config, "p")["t_max"] > 10


def test_where_a_sampler_clips_is_not_applied():
    """docs/teachers.md says so: D is what the network says, also outside [-1, 1]."""
    plain = read_schedule(diffusers, scheduler_of("DDIMScheduler"), "p")
    for key, value in zip(CLIPPING, (True, 0.1, True, 0.5, 2.0), strict=True):
        assert read_schedule(diffusers, scheduler_of("DDIMScheduler", **{key: value}), "p") == plain
    x = torch.full((1, 2), 9.0, dtype=torch.float64)
    assert teacher_of(plain)(x, 0.02).abs().max() > 8


def test_steps_after_the_last_that_was_trained_are_left_out():
    betas = np.linspace(0.001, 0.03, 150).tolist()
    facts = read_schedule(diffusers, scheduler_of("DDPMScheduler", trained_betas=betas, num_train_timesteps=100), "p")
    every = read_schedule(diffusers, scheduler_of("DDPMScheduler", trained_betas=betas), "p")  # 150 of at most 1000
    assert facts["preconditioning"]["sigmas"] == every["preconditioning"]["sigmas"][:100]
    assert len(every["preconditioning"]["sigmas"]) == 150


@pytest.mark.parametrize("kind", ["LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler"])
def test_a_scheduler_of_consistency_models_says_what_D_may_be(kind, capsys):
    read_schedule(diffusers, scheduler_of(kind), "p")
    assert "made for consistency models" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [kind for kind in sorted(FAMILIES) if FAMILIES[kind] == "table" and "CogVideo" not in kind])
def test_large_tables_take_no_time(kind):
    """KDPM2's own class would need hours for this many steps: it interpolates each among all."""
    config = scheduler_of(kind, num_train_timesteps=20_000, beta_start=1e-7, beta_end=1e-4, beta_schedule="linear")
    if kind == "UnCLIPScheduler":
        config["beta_schedule"] = "squaredcos_cap_v2"
    facts = read_schedule(diffusers, config, "p")
    assert len(facts["preconditioning"]["sigmas"]) > 19_000
