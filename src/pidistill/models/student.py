"""The student draws an image in one step; its form says how the image comes out of its network.

    trajectory    x_theta(z, t) = (t/T) z + (1 - t/T) F_theta(z, t)   image x_theta(z, eps)   Eq. (7)
    consistency   f(x, t) = c_skip(t) x + c_out(t) F(x, t)            image f(z, T)           Song et al. (2023), Eq. 5
    denoiser      D(x, t), the teacher's of the student's network     image D(z, T)           Karras et al. (2022), Eq. 7
    direct        F_theta(z, t)                                       image F_theta(z, T)

F_theta(z, t) is the network's output for c_in(T) z and ln(t)/4, F(x, t) that for c_in(t) x and ln(t)/4.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pidistill.core.errors import PidistillError
from pidistill.core.foreign import call_foreign
from pidistill.core.profiles import Average, Width, parse_average
from pidistill.core.registry import suggest_choices
from pidistill.core.tensors import cast_like, clip_images, expand_time, find_device, like
from pidistill.files.folders import write_folder
from pidistill.files.reading import read_json
from pidistill.files.weights import count_allowed_elements, load_weights, read_tensors
from pidistill.models.decoder import Decoder, read_decoder
from pidistill.models.denoiser import FACTS, parse_facts
from pidistill.models.drawing import choose_labels, draw_batches, gather
from pidistill.models.labels import Null, number_labels, parse_null, read_labels
from pidistill.models.preconditioning import Preconditioning, c_in, call_preconditioned, cut_variance
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

    drawing_time: t at which student(z, t) is the image.
    teacher: the name of the teacher that it was made for, in messages.
    """

    teacher: str | None = None

    def __init__(self, net: nn.Module, net_spec: str | dict[str, Any] | None, facts: dict[str, Any],
                 preconditioning: str | dict[str, Any] = "edm", decoder: Decoder | None = None,
                 form: str = "trajectory", null_label: Null = None):
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
        self.form, self.drawing_time = form, self.t_min if form == "trajectory" else self.t_max

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

    def call_network(self, u: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """Call the network on c_in x (B, C, H, W) and c_noise (B,); a variance, which may follow the image, is cut off."""
        y = number_labels(labels, self.null_label)
        return cut_variance(call_foreign(self.net, self.name_network(), u, c_noise, y), u)

    def name_network(self) -> str:
        """Name the network in messages: it is the teacher's own, or one that the user chose."""
        return f"the network {self.net_spec.get('name')} of the student" + (f" of {self.teacher}" if self.teacher else "")

    def forward(self, z: Tensor, t: float | Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute what the form gives at time t, (B, C, H, W).

        z: (B, C, H, W), noise at T; as `consistency` and `denoiser`, a state at t.
        t: (B,) or a number.
        """
        return FORMS[self.form](self, z, expand_time(t, z), labels)

    @torch.inference_mode()
    def sample(self, seeds: Sequence[int], labels: Tensor | Sequence[int] | int | None = None, *,
               batch_size: int = 250, clip: bool = True, decode: bool = True) -> Tensor:
        """Draw images with one network call each: (len(seeds), C, H, W) float32 in [-1, 1], on the CPU.

        Image k is a function of seeds[k] and labels[k] alone. Raises PidistillError for labels outside the classes.

        labels: as `choose_labels` takes them; without them a conditional model takes each from its seed.
        batch_size: images at a time.
        clip: to [-1, 1]; vectors are spared.
        decode: latents become images, where there is a decoder; otherwise they are returned as they are.
        """
        seeds = list(seeds)
        y = choose_labels(labels, self.num_classes, seeds)
        clip = clip and (decode or not self.decoder)
        batches = self.draw(seeds, y, batch_size=batch_size, decode=decode,
                            finish=lambda x: clip_images(x.float()) if clip else x.float())
        return gather(batches, len(seeds), self.image_shape if decode else self.shape)

    def draw(self, seeds: Sequence[int], labels: Tensor | None = None, *, batch_size: int = 250, decode: bool = True,
             finish: Callable[[Tensor], Tensor] = Tensor.float,
             call: Callable[..., Tensor] | None = None) -> Generator[Tensor, None, None]:
        """Yield images (B, C, H, W) batch by batch, on the CPU, unclipped, while the next are in work.

        labels: (len(seeds),) int64, or None for an unconditional student.
        batch_size: B, images at a time. decode: latents become images, where there is a decoder.
        finish: changes each batch before it leaves the device, such as to uint8.
        call: (z, t, labels) -> x, which is called instead of this student, such as the student under autocast.
        """
        device, student = find_device(self), call or self
        decoder = self.decoder.to(device) if self.decoder and decode else None

        def draw(z: Tensor, y: Tensor | None, _: Sequence[int]) -> Tensor:
            x = student(z * self.t_max, self.drawing_time, y)
            return finish(decoder(x) if decoder else x)

        return draw_batches(draw, seeds, labels, self.shape, device, batch_size=batch_size)

    @torch.inference_mode()
    def trajectory(self, z: Tensor, ts: Sequence[float] | Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute the states at all times. z: (B, C, H, W) at T, ts: (N,) -> (N, B, C, H, W).

        Raises PidistillError for a student of another form than `trajectory`.
        """
        if self.form != "trajectory":
            raise PidistillError(f"a student of the form {self.form} has no trajectory from its noise; draw with sample")
        return torch.stack([self(z, float(t), labels) for t in ts])

    def save(self, path: str | Path, provenance: dict[str, Any] | None = None,
             averages: dict[float, Student] | None = None) -> Path:
        """Write a folder with config.json, model.safetensors and provenance.json, and give its path.

        provenance: what provenance.json holds.
        averages: the student at each EMA rate of its run, this one first; the others go to ema-RATE.safetensors.
        """
        rates = list(averages or {})
        config = {"format": "pidistill-student", "form": self.form, "preconditioning": self.preconditioning.spec,
                  "net": self.net_spec, **self.facts(),
                  **({} if self.null_label is None else {"null": self.null_label}),
                  **({"ema": rates} if rates else {}),
                  **({"decoder": self.decoder.spec} if self.decoder else {})}
        others = {f"ema-{rate}": student.net.state_dict() for rate, student in list((averages or {}).items())[1:]}
        if self.decoder:
            others["decoder"] = self.decoder.state_dict()
        write_folder(Path(path), {"model": self.net.state_dict(), **others},
                     {"config": config, "provenance": provenance or {}})
        return Path(path)


def load_student(path: str | Path, ema: Average | str | None = None, net: Own | None = None) -> Student:
    """Load a student from its folder, or from the run folder around it, in evaluation mode and without gradients.

    ema: the rate of one of the averages that its run kept; by default the one that is the student. Or `width:0.12`: the
        average of any width, also `width:0.12@3000` after so many steps, out of the profiles in the run's folder.
    net: its network, if that is of the user's own: a module, of which a copy is taken, a factory, or
        `python:MODULE:FACTORY`. Nothing is ever imported because the folder names it.
    Raises PidistillError in one line.
    """
    folder, ema = Path(path), parse_average(ema) if isinstance(ema, str) else ema
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
                          config.get("form", "trajectory"), null)
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


def state(z: Tensor, t: Tensor, F: Tensor, t_max: float) -> Tensor:
    """Eq. (7): x = (t/T) z + (1 - t/T) F, (B, C, H, W), from the network's output F at t (B,)."""
    s = like(t / t_max, z)
    return s * z + (1 - s) * F


# Forms: (student, z or x (B, C, H, W), t (B,), labels) -> (B, C, H, W) ----------------------------------------------------


def trajectory(student: Student, z: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """Eq. (7): the state at t of the trajectory that begins at z."""
    return state(z, t, student.F(z, t, labels), student.t_max)


def consistency(student: Student, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """Song et al. (2023), Eq. 5: the end, at eps, of the trajectory that goes through x at t."""
    c = student.preconditioning.for_consistency(t, student.t_min)
    return call_preconditioned(student.call_network, c, x, labels)


def denoiser(student: Student, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """Karras et al. (2022), Eq. 7: the mean of clean images given x at t, which a network of the teacher begins as."""
    return call_preconditioned(student.call_network, student.preconditioning(t), x, labels)


def direct(student: Student, z: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """The network's output alone, F_theta(z, t) of Eq. (7), without a part of z."""
    return student.F(z, t, labels)


FORMS: dict[str, Callable[..., Tensor]] = {f.__name__: f for f in (trajectory, consistency, denoiser, direct)}
