"""Averages of any width after a run, from the profiles that it has stored: RUN/profiles/STEP/NAME-WIDTH.safetensors."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from pidistill.core import processes
from pidistill.core.errors import PidistillError
from pidistill.core.profiles import NARROWEST, WIDEST, Profile, Width, combine_profiles, solve_gamma
from pidistill.files.manifest import verify
from pidistill.files.weights import explain_misfit, load_weights, read_tensors

PROFILES = "profiles"
# Errors of a fit, over the profile. LOOSE is 1 % of the variance that noise leaves in the average, or a width that is 14 %
# off, and is said; LIMIT is that of a profile of twice the width, and is refused.
LOOSE, LIMIT = 0.1, 6**-0.5


def find_profiles(run: Path) -> Path | None:
    """Find the folder of a run's profiles; of a run in stages that of the last stage. None if there is none."""
    stages = [place for place in run.glob("[1-9]*-*") if place.name.partition("-")[0].isdigit()]
    last = max(stages, key=lambda place: int(place.name.partition("-")[0]), default=run)
    return next((place / PROFILES for place in (run, last) if (place / PROFILES).is_dir()), None)


def list_snapshots(profiles: Path, name: str) -> dict[Path, Profile]:
    """List the stored averages of a network, by step and width: each file's profile."""
    found = {}
    for folder in sorted((path for path in profiles.glob("[0-9]*") if path.name.isdigit()), key=lambda path: int(path.name)):
        for path in sorted(folder.glob(f"{name}-*.safetensors")):
            if (match := re.fullmatch(r"0\.\d{1,25}", path.stem.removeprefix(f"{name}-"))) and int(folder.name) > 0 \
                    and NARROWEST <= float(match[0]) <= WIDEST:
                found[path] = Profile(solve_gamma(float(match[0])), int(folder.name))
    return found


def load_average(network: nn.Module, name: str, run: Path, width: Width) -> None:
    """Load a network's average of any width, out of the profiles that its run has stored. Raises PidistillError.

    Weights are added in float64 in the order of the files; buffers are those of the newest snapshot until then.

    network: of the run's kind. name: of the network in the run.
    run: the run's folder.
    width: the average's.
    """
    profiles = find_profiles(run)
    snapshots = list_snapshots(profiles, name) if profiles else {}
    if not snapshots:
        raise PidistillError(f"{run} has stored no profiles of {name}, so {width} cannot be had: train with "
                             "--set profiles.widths=[0.05,0.1]")
    paths, stored = list(snapshots), list(snapshots.values())
    step = stored[-1].t if width.step is None else width.step
    if not 0 < step <= stored[-1].t:
        raise PidistillError(f"{profiles} has no steps after {stored[-1].t}, got {width}")
    (weights,), (misfit,) = (values.T for values in combine_profiles(stored, [Profile(solve_gamma(width.value), step)]))
    if misfit > LIMIT:
        raise PidistillError(f"{width} cannot be had from {profiles}: the nearest profile is {misfit:.0%} off; "
                             f"{describe_range(stored, step)}")
    if misfit > LOOSE:
        processes.say(f"WARNING: the r.m.s. error of the profile of {width} is {misfit:.1%} of it: "
                      f"{describe_range(stored, step)}")
    buffers = {key for key, _ in network.named_buffers(remove_duplicate=False)}
    newest = max((p.t for p in stored if p.t <= step), default=stored[0].t)
    total: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    for path, p, weight in zip(paths, stored, weights.tolist(), strict=True):
        verify(path.parent, [path.name])
        tensors = read_tensors(path)
        if words := explain_misfit(total, tensors) if total else "":
            raise PidistillError(f"{path} does not fit {paths[0]}: {words}")
        kept = tensors if p.t == newest else kept
        for key, value in tensors.items():
            scaled = weight * value.double() if value.is_floating_point() else value
            total[key] = total[key] + scaled if key in total and value.is_floating_point() else scaled
    load_weights(network, {key: kept[key] if key in buffers or not value.is_floating_point() else value.to(kept[key].dtype)
                           for key, value in total.items()}, paths[-1])


def describe_range(stored: list[Profile], step: int) -> str:
    """Describe which widths stored profiles can express after a step, within `LOOSE`."""
    widths = np.arange(NARROWEST, WIDEST, 0.001)
    _, misfits = combine_profiles(stored, [Profile(solve_gamma(width), step) for width in widths])
    good = widths[misfits <= LOOSE]
    return (f"widths {good[0]:.3f} to {good[-1]:.3f} are within {LOOSE:.0%} after step {step}" if len(good) else
            f"width {widths[misfits.argmin()]:.3f} is the nearest after step {step}, {misfits.min():.0%} off")
