"""The settings of a run: every key, its type, its default and its bounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from pidistill.core.precision import Precision
from pidistill.core.profiles import NARROWEST, WIDEST
from pidistill.core.seeds import MAX_SEED
from pidistill.models.grid import RHO, SIGMA_DATA, T_MAX, T_MIN


class StrictModel(BaseModel):
    """Settings that cannot change and refuse unknown keys, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _member(value: Any) -> Any:
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError("must be a name, or a mapping with `name` and that member's options")
    return value


# A member of an open family: `l2`, or `{name: pseudo_huber, c: 0.1}`. Its options are checked where it is built.
Member = Annotated[dict[str, Any], BeforeValidator(_member)]

Beta = Annotated[float, Field(ge=0, lt=1)]


def _rates(value: Any) -> Any:
    rates = list(value) if isinstance(value, (list, tuple)) else [value]
    if not rates or len(set(map(str, rates))) < len(rates):
        raise ValueError("must be a rate, or a list of different rates")
    return rates


# One averaging rate or several; the first is the one that is saved as the student.
Rates = Annotated[tuple[Beta, ...], BeforeValidator(_rates)]


def _different(widths: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(widths)) < len(widths):
        raise ValueError("must be different widths")
    return widths


class ProfilesConfig(StrictModel):
    """Relative widths of power-function averages beside `ema`, and after how many steps they are stored each time."""

    widths: Annotated[tuple[Annotated[float, Field(ge=NARROWEST, le=WIDEST)], ...], AfterValidator(_different)] = ()
    every: int = Field(1000, ge=1)


class GridConfig(StrictModel):
    """The grid of times that the student is trained on."""

    points: int = Field(250, ge=2)


class StudentConfig(StrictModel):
    """The student's network and the weights that it starts from; without `net` it is the teacher's, times `width`."""

    init: str = "teacher"  # or `random`, or the folder of a student or a teacher, or `previous` in a later stage
    net: Member | None = None
    width: float = Field(1.0, gt=0)


class OptimizerConfig(StrictModel):
    """The optimiser, its learning rate over the steps, and the norm that gradients are clipped to."""

    name: Literal["radam", "adam"] = "radam"
    lr: float = Field(2e-4, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    warmup: int = Field(0, ge=0)
    decay: Literal["constant", "cosine"] = "constant"
    clip: float | None = Field(None, gt=0)


class TrainConfig(StrictModel):
    """How long a run trains, on how many samples a step, and how many of them go through at a time."""

    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    microbatch: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    recompute: bool = False
    skip_limit: int = Field(20, ge=1)  # steps in a row whose loss or gradient is not finite; then the run stops
    seed: int = Field(0, ge=0, lt=MAX_SEED)


class LogConfig(StrictModel):
    """How often metrics are written, in steps, and which trackers get them beside the run's folder."""

    every: int = Field(20, ge=1)
    trackers: tuple[str, ...] = ()  # accelerate's names: wandb, trackio, mlflow, ...
    project: str = Field("pidistill", min_length=1)  # under which they keep the run


class PreviewConfig(StrictModel):
    """How often a picture is drawn, in steps, and of which seeds."""

    every: int = Field(500, ge=1)
    seeds: str = "0-15"


class CheckpointConfig(StrictModel):
    """How often checkpoints are written, in steps and minutes, and which of them are kept."""

    every: int = Field(1000, ge=1)
    minutes: float | None = Field(10.0, gt=0)  # also after so long, whatever a step takes
    keep: int = Field(2, ge=2)  # the newest may turn out to be damaged
    keep_every: int | None = Field(None, ge=1)


class EvaluateConfig(StrictModel):
    """How the student is measured at the end of a run, and every so many steps."""

    every: int | None = Field(None, ge=1)
    num: int = Field(default=5000, ge=2)
    batch: int = Field(default=250, ge=1)
    features: str | None = None
    reference: str | None = None
    keep_best: str | None = None  # a metric, such as fd: the student is the best of all that `every` has measured


class PairsConfig(StrictModel):
    """The pairs of noise and solution that a run draws of its teacher first, for objectives that need them."""

    num: int = Field(5000, ge=2)
    sampler: str = "heun:18"
    trajectory: int | None = Field(None, ge=2)  # times of the states that are kept; none: the solution alone
    half: bool = False  # solutions and states are stored in float16
    seed: int | None = Field(None, ge=0, lt=MAX_SEED)  # of noise and labels; none: train.seed


class RunConfig(StrictModel):
    """The settings that every training run has."""

    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Precision = "fp32"
    compile: Literal["auto", "never", "default", "reduce-overhead", "max-autotune"] = "auto"  # auto: on GPUs, `default`
    ema: Rates = (0.999,)
    profiles: ProfilesConfig = ProfilesConfig()
    train: TrainConfig
    log: LogConfig = LogConfig()
    preview: PreviewConfig = PreviewConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    out: str


class DistillConfig(RunConfig):
    """The settings of a distillation."""

    teacher: str = "bundled:digits"
    data: str | None = None  # images, for objectives that need them
    pairs: PairsConfig = PairsConfig()
    objective: Member = {"name": "pid"}
    grid: GridConfig = GridConfig()
    student: StudentConfig = StudentConfig()
    evaluate: EvaluateConfig = EvaluateConfig()


class TeacherConfig(RunConfig):
    """The settings of a teacher's training."""

    ema: Annotated[Rates, Field(max_length=1)] = (0.999,)
    data: str
    net: Member
    conditional: bool = True
    objective: Member = {"name": "edm"}
    t_min: float = Field(T_MIN, gt=0)
    t_max: float = Field(T_MAX, gt=0)
    sigma_data: float = Field(SIGMA_DATA, gt=0)
    rho: float = Field(RHO, gt=0)


def list_averages(config: RunConfig) -> list[float]:
    """List the averages that a run keeps of a network: rates, then widths."""
    return [*config.ema, *config.profiles.widths]
