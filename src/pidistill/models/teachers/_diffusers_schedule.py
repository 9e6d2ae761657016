"""diffusers' schedulers say what a network predicts, what it is told of time, and at which noise levels it was trained.

| family | x of the network | told | noise levels t |
|---|---|---|---|
| `table` | (x_0 + t eps)/sqrt(1 + t^2) | the step k | t_k = sqrt((1 - abar_k)/abar_k), of the class's own abar |
| `table`, continuous v | the same | ln(t)/4 | sigma_min to sigma_max, or the table's ends |
| `edm` | (x_0 + t eps)/sqrt(sigma_data^2 + t^2) | ln(t)/4 | sigma_min to sigma_max |
| `flow` | (1 - s) x_0 + s eps, s = t/(1 + t) | s num_train_timesteps | T = 80 to 0.002 |
| `score` | x_0 + t/2 eps, in [0, 1] | t/2 | 2 sigma_min to 2 sigma_max |

Everything else in a scheduler's configuration belongs to its sampler: which levels it visits, how it steps, where it clips.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from pidistill.core.console import console
from pidistill.core.errors import PidistillError
from pidistill.models.grid import RHO, T_MAX, T_MIN
from pidistill.models.preconditioning import MOST_TRAINING_STEPS
from pidistill.nets._diffusers_keys import Only, Rule, check_keys, read_defaults

# Their samplers draw from consistency models too, whose D would be the end of a trajectory.
OF_CONSISTENCY_MODELS = ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler")
FAMILIES = dict.fromkeys((
    "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler",
    "DDPMParallelScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler",
    "RePaintScheduler", "SASolverScheduler", "TCDScheduler", "UnCLIPScheduler", "UniPCMultistepScheduler"), "table")
FAMILIES |= dict.fromkeys(("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"), "edm")
FAMILIES |= dict.fromkeys(("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"),
                          "flow") | {"ScoreSdeVeScheduler": "score"}
SAME_KEYS = {"DPMSolverSDEScheduler": "KDPM2DiscreteScheduler"}  # the former needs the library torchsde to be imported
# They compare each step with all others when they are made; their abar is DDPM's.
SLOW = ("DPMSolverSDEScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler")

BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
         "snr_shift_scale")  # what abar is made of
RESPACED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
READ_KEYS = {"table": (*BETAS, *RESPACED, "prediction_type", "use_flow_sigmas", "timestep_type", "interpolation_type",
                       "sigma_min", "sigma_max"),
             "edm": ("sigma_min", "sigma_max", "sigma_data", "prediction_type", "rho"),
             "flow": ("num_train_timesteps",), "score": ("sigma_min", "sigma_max")}
# Not applied: D is what the network says, also outside [-1, 1].
CLIPPING = ("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value")
SAMPLER_KEYS = (*CLIPPING, "algorithm_type", "base_image_seq_len", "base_shift", "correct_steps", "corrector_order",
                "disable_corrector", "eta", "euler_at_final", "final_sigmas_type", "flow_shift", "lambda_min_clipped",
                "lower_order_final", "max_image_seq_len", "max_shift", "noise_sampler_seed", "original_inference_steps",
                "predict_x0", "predictor_order", "sampling_eps", "set_alpha_to_one", "set_alpha_to_zero", "shift",
                "shift_terminal", "sigma_schedule", "skip_prk_steps", "snr", "solver_order", "solver_p", "solver_type",
                "steps_offset", "stochastic_sampling", "tau_func", "time_shift_type", "timestep_scaling", "timestep_spacing",
                "upscale_mode", "use_dynamic_shifting", "use_lu_lambdas", "variance_type",
                "tensor_format", "timestep_values", "timesteps")  # the last three: of diffusers 0.1 and 0.2
REFUSED_KEYS: dict[str, Rule] = {
    "invert_sigmas": Only((False,), "its time runs backwards"),
    "scale_factors": Only((), "its images grow from step to step"),
    "predict_epsilon": Only((True,), "today's diffusers has prediction_type instead: say prediction_type=sample")}
# Keys that a class does not take, left by another one that its configuration was made of: the network may be of that one.
_LEFT = "this scheduler does not read it, and the network may be another scheduler's"
FOREIGN_KEYS: dict[str, Rule] = {
    "rescale_betas_zero_snr": Only((False,), _LEFT), "snr_shift_scale": Only((1.0, 1), _LEFT),
    "trained_betas": Only((), _LEFT), "use_flow_sigmas": Only((False,), _LEFT), "sigma_data": Only((), _LEFT),
    "timestep_type": Only(("discrete",), _LEFT), "prediction_type": Only(("epsilon",), _LEFT)}
FOREIGN_OF_FAMILY: dict[str, dict[str, Rule]] = {
    "table": {}, "edm": {"timestep_type": "harmless"}, "score": {"prediction_type": Only((), _LEFT)},
    "flow": {"use_flow_sigmas": "harmless", "prediction_type": Only(("flow_prediction",), _LEFT)}}


def read_schedule(library: Any, config: dict[str, Any], name: str, kind: str | None = None) -> dict[str, Any]:
    """Read preconditioning and noise range from a scheduler's configuration, as options of `Preconditioned`.

    What the configuration leaves out is the default of the scheduler's own class. Raises PidistillError for a class or a
    value that is not understood.

    library: diffusers.
    config: of the scheduler.
    name: of the pipeline, for errors and for what is left out of the schedule.
    kind: the scheduler's class by model_index.json; None: as the configuration says.
    """
    written = str(config.get("_class_name") or "")
    kind = kind or written
    if kind not in FAMILIES:
        raise PidistillError(f"{name}: the scheduler {kind[:60] or 'without a name'} is not known; docs/compatibility.md "
                             "lists those that are")
    if FAMILIES.get(written, FAMILIES[kind]) != FAMILIES[kind]:
        raise PidistillError(f"{name}: model_index.json names a {kind}, scheduler_config.json is of a {written}; make them "
                             "one")
    member = getattr(library, SAME_KEYS.get(kind, kind), None)
    if member is None:
        raise PidistillError(f"{name}: diffusers {library.__version__} has no {kind}; install a later one")
    parameters = inspect.signature(member.__init__).parameters
    refuse_unknown_keys(f"{name}: {kind}", config, FAMILIES[kind], parameters.keys())
    if kind in OF_CONSISTENCY_MODELS:
        console.print(f"{name}: a {kind} is made for consistency models; of one of those D would be the end of a trajectory "
                      "and no mean", soft_wrap=True)
    whole = read_defaults(member) | config
    return READERS[FAMILIES[kind]](library.DDPMScheduler if kind in SLOW else member, whole, f"{name}: {kind}")


def refuse_unknown_keys(what: str, config: dict[str, Any], family: str, taken: Any) -> None:
    """Refuse keys and values of a scheduler's configuration that are not understood.

    what: whose configuration, for the error. family: of the scheduler. taken: the keys that its class takes.
    """
    rules: dict[str, Rule] = dict.fromkeys((*SAMPLER_KEYS, *sum(READ_KEYS.values(), ())), "harmless")
    foreign = FOREIGN_KEYS | FOREIGN_OF_FAMILY[family]
    rules |= {key: rule for key, rule in foreign.items() if key not in taken} | REFUSED_KEYS
    unknown = check_keys(what, config, rules)
    if unknown:
        raise PidistillError(f"{what}: the key {unknown[0]}={str(config[unknown[0]])[:60]} is not known; delete it from "
                             "scheduler_config.json if it changes nothing")


def read_table(member: Any, config: dict[str, Any], what: str) -> dict[str, Any]:
    """Read a scheduler of the family `table`: its class, its whole configuration, and what it is called in messages."""
    prediction, flow = config.get("prediction_type", "epsilon"), config.get("use_flow_sigmas")
    clock, spacing = config.get("timestep_type") or "discrete", config.get("interpolation_type") or "linear"
    check_steps(config["num_train_timesteps"], what)
    if (prediction == "flow_prediction") != bool(flow):
        raise PidistillError(f"{what}: prediction_type={str(prediction)[:40]} and use_flow_sigmas={bool(flow)} do not go "
                             "together: flow_prediction and True do")
    if flow:  # these solvers round the clock down
        return read_flow(member, config, what, whole=True)
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise PidistillError(f"{what}: a network that predicts {str(prediction)[:40]!r} is not known")
    if clock not in ("discrete", "continuous"):
        raise PidistillError(f"{what}: timestep_type must be discrete or continuous, got {str(clock)[:40]}")
    sigmas, respaced = compute_levels(member, config, what), any(config.get(key) for key in RESPACED)
    if clock == "continuous" and prediction == "v_prediction":  # to other predictions it makes no difference in diffusers
        low, high = (config.get(key) if respaced else None for key in ("sigma_min", "sigma_max"))
        low, high = float(sigmas[0] if low is None else low), float(sigmas[-1] if high is None else high)
        return {"preconditioning": {"name": "edm_v", "sigma_data": 1.0}, "t_min": low, "t_max": high, "rho": RHO}
    if spacing != "linear" and not respaced:
        raise PidistillError(f"{what}: interpolation_type={str(spacing)[:40]} is not understood: it asks the network at "
                             "other steps than those of its noise levels; it must be linear")
    return {"preconditioning": {"name": prediction, "sigmas": sigmas}, "t_min": sigmas[0], "t_max": sigmas[-1], "rho": RHO}


def check_steps(steps: Any, what: str) -> None:
    """Refuse an impossible number of training steps, before a table of so many is made."""
    if type(steps) is not int or not 1 <= steps <= MOST_TRAINING_STEPS:
        raise PidistillError(f"{what}: num_train_timesteps must be from 1 to {MOST_TRAINING_STEPS}, got {str(steps)[:40]}")


def compute_levels(member: Any, config: dict[str, Any], what: str) -> list[float]:
    """Compute the noise levels sqrt((1 - abar)/abar) of the training steps 0, 1, ..., ascending, with the class's own abar.

    Steps of pure noise (zero terminal SNR) are left out, which is said.
    """
    betas = {key: config[key] for key in BETAS if key in config and key in inspect.signature(member.__init__).parameters}
    if betas.get("trained_betas") is not None:
        betas["trained_betas"] = np.asarray(betas["trained_betas"], dtype=np.float32)
        check_steps(len(betas["trained_betas"]), what)
    abar = member(**betas).alphas_cumprod.double()[:config["num_train_timesteps"]]  # no later step was trained
    if not abar.isfinite().all():
        raise PidistillError(f"{what}: its betas give noise levels that are no numbers")
    sigmas = ((1 - abar) / abar).sqrt()
    usable = sigmas.isfinite() & (abar > 1e-7)
    if not usable.all():
        console.print(f"{what}: {int((~usable).sum())} steps of its schedule are pure noise (zero terminal SNR): left out",
                      soft_wrap=True)
    if int(usable.sum()) < 2:
        raise PidistillError(f"{what}: its schedule has no two usable steps")
    return sigmas[usable].tolist()


def read_edm(member: Any, config: dict[str, Any], what: str) -> dict[str, Any]:
    """Read a scheduler of the family `edm`. Parameters: `read_table`."""
    names = {"epsilon": "edm", "v_prediction": "edm_v"}
    if config["prediction_type"] not in names:
        raise PidistillError(f"{what}: a network that predicts {str(config['prediction_type'])[:40]!r} is not known")
    numbers = {ours: float(config[key]) for ours, key in (("t_min", "sigma_min"), ("t_max", "sigma_max"),
                                                          ("sigma_data", "sigma_data"), ("rho", "rho"))}
    return {"preconditioning": names[config["prediction_type"]], **numbers}


def read_flow(member: Any, config: dict[str, Any], what: str, whole: bool = False) -> dict[str, Any]:
    """Read a scheduler of flow matching. Parameters: `read_table`; whole: the clock is rounded down.

    Any s in (0, 1) was trained. s = 1 is t = inf; EDM's T = 80 is s = 0.988, where the data is 1/80 of the noise.
    """
    check_steps(config["num_train_timesteps"], what)
    clock = {"scale": float(config["num_train_timesteps"]), **({"whole": True} if whole else {})}
    return {"preconditioning": {"name": "flow", **clock}, "t_min": T_MIN, "t_max": T_MAX}


def read_score(member: Any, config: dict[str, Any], what: str) -> dict[str, Any]:
    """Read a scheduler of the family `score`: its images are in [0, 1], ours in [-1, 1], so levels are twice as large."""
    return {"preconditioning": "score", "t_min": 2 * float(config["sigma_min"]), "t_max": 2 * float(config["sigma_max"])}


READERS: dict[str, Callable[[Any, dict[str, Any], str], dict[str, Any]]] = {
    "table": read_table, "edm": read_edm, "flow": read_flow, "score": read_score}
