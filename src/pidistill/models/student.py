"""The student draws an image in one step; its form says how the image comes out of its network (`models/forms.py`)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pidistill.core.errors import PidistillError
from pidistill.core.foreign import call_foreign
from pidistill.core.profiles import Average, Width, parse_average
from pidistill.core.registry import suggest_choices
from pidistill.core.seeds import noise
from pidistill.core.tensors import cast_like, clip_images, expand_time, find_device, send, to_float64
from pidistill.files.folders import write_folder
from pidistill.files.hub import PREFIX, fetch_repository
from pidistill.files.reading import read_json
from pidistill.files.weights import count_allowed_elements, load_weights, read_tensors
from pidistill.models.decoder import Decoder, read_decoder
from pidistill.models.denoiser import FACTS, parse_facts
from pidistill.models.drawing import choose_labels, draw_batches, gather
from pidistill.models.forms import FORMS, Multistep, interpolate
from pidistill.models.grid import karras_times
from pidistill.models.labels import Null, number_labels, parse_null, read_labels
from pidistill.models.preconditioning import Coefficients, Preconditioning, c_in, call_preconditioned, cut_variance
from pidistill.models.snapshots import load_average
from pidistill.nets.base import Own, describe_net, rebuild_net


class Student(nn.Module):
    """A student maps noise z to an image with one call of its network, in the way that its form says.

    As a `trajectory`, x_theta(z, t) of Eq. (7) is the teacher's trajectory from every noise z: x(z, T) = z for all weights.
    As `consistency`, f(x, t) is the end of the trajectory that goes through x at t: f(x, eps) = x for all weights.

    net: the raw network. net_spec: how to build it again, {"name": ..., options}; None of one that has no name.
    facts: what the teacher says of itself (`Denoiser.facts`).
    preconditioning: what the network predicts, if it is not one of EDM's; `Preconditioning.for_student` then makes F_theta
        of it.
    decoder: of a teacher in a latent space; z and x are latents then.
    form: one of FORMS. Raises PidistillError for others.
    null_label: the network's label for no class, which is never drawn; None if it has none.
    drawing_time: t at which the student is called for the image: by default eps or T, as the form says. A `denoiser` may
        draw from less noise, drawing_time / T times z.
    times: descending, those of the states of an `operator`, or, with a last 0, those between which a `denoiser` was trained
        to go; None where the form knows all.
    teacher: the name of the teacher that it was made for, in messages.
    """

    teacher: str | None = None

    def __init__(self, net: nn.Module, net_spec: str | dict[str, Any] | None, facts: dict[str, Any],
                 preconditioning: str | dict[str, Any] = "edm", decoder: Decoder | None = None,
                 form: str = "trajectory", null_label: Null = None, drawing_time: float | None = None,
                 times: Sequence[float] | None = None):
        super().__init__()
        if form not in FORMS:
            raise suggest_choices("form of a student", form, list(FORMS))
        self._held = (decoder,)  # in a tuple, so as no submodule: it is neither trained nor averaged
        self.net, self.net_spec = net, describe_net(net_spec, net)
        self.shape: tuple[int, ...] = tuple(facts["shape"])
        self.num_classes: int = facts["num_classes"]
        self.t_min, self.t_max, self.sigma_data, self.rho = (float(facts[k]) for k in FACTS[2:])
        self.preconditioning = Preconditioning(preconditioning, self.sigma_data)
        self.null_label = parse_null(null_label)
        self.form, ending = form, self.t_min if FORMS[form].follows else self.t_max
        self.drawing_time = ending if drawing_time is None else float(drawing_time)
        self.times = None if times is None else tuple(map(float, times))
        if self.drawing_time != ending and not (form == "denoiser" and self.t_min <= self.drawing_time <= self.t_max):
            raise PidistillError(f"a student of the form {form} draws at t={ending:g}, not at {self.drawing_time:g}; a "
                                 f"denoiser may draw between {self.t_min:g} and {self.t_max:g}")
        if self.times is not None and not (len(self.times) > 1 and all(a > b for a, b in pairwise(self.times))
                                           and self.times[-1] >= 0):
            raise PidistillError(f"a student's times must descend, to 0 at most, got {str(self.times)[:80]}")

    @property
    def decoder(self) -> Decoder | None:
        return self._held[0]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of what `sample` gives: `shape`, or that of the decoded images."""
        return self.decoder.image_shape(self.shape) if self.decoder else self.shape

    def facts(self) -> dict[str, Any]:
        """Give the teacher's facts: shape, classes, noise range, data scale and spacing of the grid, by FACTS."""
        return {name: getattr(self, name) for name in FACTS}

    def F(self, z: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute F_theta of Eq. (7). z: (B, C, H, W) at T, t: (B,) -> (B, C, H, W)."""
        u = c_in(torch.tensor(self.t_max, dtype=torch.float64), self.sigma_data).item() * z
        c = self.preconditioning.for_student(t)
        if self.preconditioning.name == "edm":  # c_skip, c_out and c_in are 0, 1 and 1
            return self.call_network(u, cast_like(c.c_noise, z), labels).to(z.dtype)
        return call_preconditioned(self.call_network, c, u, labels)

    def jump(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute G(x, t, s) of Kim et al. (2024), Eq. 9: the state at s of the trajectory through x at t, (B, C, H, W).

        G = (s/t) x + (1 - s/t) g. x: (B, C, H, W). t, s: (B,), s <= t.
        """
        return interpolate(x, to_float64(s) / to_float64(t), self.g(x, t, s, labels), 1.0)

    def g(self, x: Tensor, t: Tensor, s: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute g(x, t, s) of a `jump`, (B, C, H, W): the teacher's denoiser of the network, which is told t and s.

        g(x, t, t) is the mean of clean images given x at t (Kim et al., 2024, Section 3). Parameters: `jump`.
        """
        c = self.preconditioning(t)
        both = torch.stack([c.c_noise, self.preconditioning(s).c_noise], dim=1)
        return call_preconditioned(self.call_network, Coefficients(c.c_skip, c.c_out, c.c_in, both), x, labels)

    def list_states(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute the states at all times of an `operator` in one call of its network: z (B, ...) at T -> (B, M, ...)."""
        if self.times is None:
            raise PidistillError("a student of the form operator needs the times of its states")
        M = len(self.times)
        z, t = z.repeat_interleave(M, dim=0), z.new_tensor(self.times).repeat(len(z))
        y = None if labels is None else labels.repeat_interleave(M)
        return interpolate(z, t, self.F(z, t, y), self.t_max).unflatten(0, (-1, M))

    def generate(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute the image of noise z (B, C, H, W) at T, (B, C, H, W), with one call of the network."""
        return self(self.place_noise(z), self.drawing_time, labels)

    def place_noise(self, z: Tensor) -> Tensor:
        """Scale noise z at T to what the student is called with when it draws."""
        return z if FORMS[self.form].follows or self.drawing_time == self.t_max else z * (self.drawing_time / self.t_max)

    def call_network(self, u: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """Call the network on c_in x (B, C, H, W) and c_noise (B,); a variance, which may follow the image, is cut off."""
        y = number_labels(labels, self.null_label)
        return cut_variance(call_foreign(self.net, self.name_network(), u, c_noise, y), u)

    def name_network(self) -> str:
        """Name the network in messages: it is the teacher's own, or one that the user chose."""
        return f"the network {self.net_spec.get('name')} of the student" + (f" of {self.teacher}" if self.teacher else "")

    def forward(self, z: Tensor, t: float | Tensor, labels: Tensor | None = None, s: float | Tensor | None = None) -> Tensor:
        """Compute what the form gives at time t, (B, C, H, W).

        z: (B, C, H, W), noise at T; of forms that do not follow it, such as `consistency`, a state at t.
        t: (B,) or a number.
        s: of the form `jump` alone, the time that it jumps to, as t; by default eps.
        """
        if s is not None:
            if self.form != "jump":
                raise PidistillError(f"a student of the form {self.form} cannot be asked for the state at a second time s")
            return self.jump(z, expand_time(t, z), expand_time(s, z), labels)
        return FORMS[self.form].compute(self, z, expand_time(t, z), labels)

    @torch.inference_mode()
    def sample(self, seeds: Sequence[int], labels: Tensor | Sequence[int] | int | None = None, *,
               batch_size: int = 250, clip: bool = True, decode: bool = True, steps: int = 1,
               gamma: float | None = None) -> Tensor:
        """Draw images with one network call each: (len(seeds), C, H, W) float32 in [-1, 1], on the CPU.

        Image k is a function of seeds[k] and labels[k] alone. Raises PidistillError for labels outside the classes.

        steps, gamma: as `draw` takes them.

        labels: as `choose_labels` takes them; without them a conditional model takes each from its seed.
        batch_size: images at a time.
        clip: to [-1, 1]; vectors are spared.
        decode: latents become images, where there is a decoder; otherwise they are returned as they are.
        """
        seeds = list(seeds)
        y = choose_labels(labels, self.num_classes, seeds)
        clip = clip and (decode or not self.decoder)
        batches = self.draw(seeds, y, batch_size=batch_size, decode=decode, steps=steps, gamma=gamma,
                            finish=lambda x: clip_images(x.float()) if clip else x.float())
        return gather(batches, len(seeds), self.image_shape if decode else self.shape)

    def draw(self, seeds: Sequence[int], labels: Tensor | None = None, *, batch_size: int = 250, decode: bool = True,
             finish: Callable[[Tensor], Tensor] = Tensor.float, call: Callable[..., Tensor] | None = None,
             steps: int = 1, gamma: float | None = None) -> Generator[Tensor, None, None]:
        """Yield images (B, C, H, W) batch by batch, on the CPU, unclipped, while the next are in work.

        Raises PidistillError for more steps than the form has.

        labels: (len(seeds),) int64, or None for an unconditional student.
        batch_size: B, images at a time. decode: latents become images, where there is a decoder.
        finish: changes each batch before it leaves the device, such as to uint8.
        call: (z, t, labels) -> x, which is called instead of this student, such as the student under autocast.
        steps: calls of the network for an image; more than one where the form has it (`consistency`, `denoiser`, `jump`).
        gamma: of `consistency` and `jump`, how much of the noise between two calls is new, 0 to 1; by default 1 and 0.
        """
        device, student = find_device(self), call or self
        decoder = self.decoder.to(device) if self.decoder and decode else None
        times = self.list_times(steps)
        share = self.choose_gamma(gamma, steps)

        def draw(z: Tensor, y: Tensor | None, batch: Sequence[int]) -> Tensor:
            z = z * self.t_max
            if steps == 1:
                x = student(self.place_noise(z), self.drawing_time, y)
            else:
                draw_noise = lambda k: send(noise(batch, self.shape, k + 1), device)  # 0 is z
                x = self.find_multistep()(self, student, self.place_noise(z), times, y, draw_noise, share)
            return finish(decoder(x) if decoder else x)

        return draw_batches(draw, seeds, labels, self.shape, device, batch_size=batch_size)

    def find_multistep(self) -> Multistep:
        """Find how the form draws in several calls. Raises PidistillError if it has one call alone."""
        found = FORMS[self.form].multistep
        if found is None:
            several = [name for name, form in FORMS.items() if form.multistep]
            raise PidistillError(f"a student of the form {self.form} draws in one step; more have {', '.join(several)}")
        return found

    def list_times(self, steps: int) -> list[float]:
        """List the times at which the network is called to draw in so many steps, descending.

        They are those of the teacher's Karras grid, or, of a student that was trained to go between `times`, evenly chosen
        ones of these. Raises PidistillError for steps that the student has not.
        """
        if steps < 1:
            raise PidistillError(f"steps must be at least 1, got {steps}")
        if steps == 1:
            return [self.drawing_time]
        self.find_multistep()
        if self.times is None:
            return karras_times(steps + 1, self.t_min, self.drawing_time, self.rho)[:-1].tolist()
        most = len(self.times) - 1
        if most % steps:
            known = [n for n in range(1, most + 1) if most % n == 0]
            raise PidistillError(f"this student was trained to draw in {most} step{'s' * (most > 1)}; it can draw in "
                                 f"{', '.join(map(str, known))}, not in {steps}")
        return list(self.times[:-1:most // steps])

    def choose_gamma(self, gamma: float | None, steps: int) -> float:
        """Choose gamma, of a `consistency` student 1 and of a `jump` 0, unless it is given. Raises PidistillError."""
        if gamma is None:
            return 1.0 if self.form == "consistency" else 0.0
        if not FORMS[self.form].random or steps == 1:
            raise PidistillError(f"gamma is of several steps of the forms consistency and jump, not of {steps} of "
                                 f"{self.form}")
        if not 0 <= gamma <= 1:
            raise PidistillError(f"gamma must be 0 to 1, got {gamma:g}")
        return gamma

    @torch.inference_mode()
    def trajectory(self, z: Tensor, ts: Sequence[float] | Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute the states at all times. z: (B, C, H, W) at T, ts: (N,) -> (N, B, C, H, W).

        Raises PidistillError for a student of a form without a trajectory, and times that the student does not know.
        """
        if not FORMS[self.form].states:
            raise PidistillError(f"a student of the form {self.form} has no trajectory from its noise; draw with sample")
        return torch.stack([self(z, float(t), labels) for t in ts])

    def save(self, path: str | Path, provenance: dict[str, Any] | None = None,
             averages: dict[float, Student] | None = None) -> Path:
        """Write a folder with config.json, model.safetensors and provenance.json, and give its path.

        provenance: what provenance.json holds.
        averages: the student at each EMA rate of its run, this one first; the others go to ema-RATE.safetensors.
        """
        tensors, config = self.collect(averages)
        write_folder(Path(path), tensors, {"config": config, "provenance": provenance or {}})
        return Path(path)

    def collect(self, averages: dict[float, Student] | None = None) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Collect what a folder of the student holds: tensors by the names of their files, and config.json."""
        rates = list(averages or {})
        config = {"format": "pidistill-student", "form": self.form, "preconditioning": self.preconditioning.spec,
                  "net": self.net_spec, **self.facts(),
                  **({} if self.null_label is None else {"null": self.null_label}),
                  **({"drawing_time": self.drawing_time} if self.drawing_time not in (self.t_min, self.t_max) else {}),
                  **({} if self.times is None else {"times": list(self.times)}),
                  **({"ema": rates} if rates else {}),
                  **({"decoder": self.decoder.spec} if self.decoder else {})}
        others = {f"ema-{rate}": student.net.state_dict() for rate, student in list((averages or {}).items())[1:]}
        if self.decoder:
            others["decoder"] = self.decoder.state_dict()
        return {"model": self.net.state_dict(), **others}, config


def load_student(path: str | Path, ema: Average | str | None = None, net: Own | None = None) -> Student:
    """Load a student from its folder, or from the run folder around it, in evaluation mode and without gradients.

    path: the folder, or `hf:OWNER/NAME` for one on the Hugging Face hub, of which configurations and weights are fetched.
    ema: the rate of one of the averages that its run kept; by default the one that is the student. Or `width:0.12`: the
        average of any width, also `width:0.12@3000` after so many steps, out of the profiles in the run's folder.
    net: its network, if that is of the user's own: a module, of which a copy is taken, a factory, or
        `python:MODULE:FACTORY`. Nothing is ever imported because the folder names it.
    Raises PidistillError in one line.
    """
    folder = fetch_repository(path) if isinstance(path, str) and path.startswith(PREFIX) else Path(path)
    ema = parse_average(ema) if isinstance(ema, str) else ema
    if not (folder / "config.json").exists() and (folder / "student").is_dir():
        folder = folder / "student"
    config = read_json(folder / "config.json")
    if config.get("format") != "pidistill-student":
        raise PidistillError(f"{folder} holds a {config.get('format', 'file of another kind')}, not a pidistill-student")
    try:
        facts, rates, path = parse_facts(config), list(config.get("ema", [])), folder / "model.safetensors"
        labels, null = read_labels(config)
        network = rebuild_net(config["net"], facts["shape"], labels, count_allowed_elements(path), folder, net,
                              "--net {0}, or in Python load_student(..., net={0!r})")
        student = Student(network, config["net"], facts, config.get("preconditioning", "edm"), read_decoder(config, folder),
                          config.get("form", "trajectory"), null, config.get("drawing_time"), config.get("times"))
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise PidistillError(f"{folder / 'config.json'} is incomplete: {error}") from None
    if isinstance(ema, Width):
        load_average(student, "student", folder.absolute().parent, ema)
        return student.eval().requires_grad_(False)
    if ema is not None and ema not in rates:
        listing = ", ".join(map(str, rates)) or "not recorded"
        raise PidistillError(f"{folder} has no average with rate {ema} (rates: {listing})")
    if ema is not None and ema != rates[0]:
        path = folder / f"ema-{float(ema)}.safetensors"
    load_weights(student.net, read_tensors(path), path)
    return student.eval().requires_grad_(False)
