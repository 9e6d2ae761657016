"""`pidistill inspect`: describe what a teacher, a student or a run is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from pidistill.core.errors import PidistillError, to_line
from pidistill.core.processes import choose_device
from pidistill.core.seeds import noise
from pidistill.files.entries import list_states, name_values
from pidistill.files.folders import quote_path
from pidistill.files.reading import read_json, sha256
from pidistill.files.weights import describe_nothing, read_contents
from pidistill.jobs.inspect_files import describe_stored
from pidistill.jobs.stages import is_stage
from pidistill.models.denoiser import Denoiser, Preconditioned
from pidistill.models.labels import Null
from pidistill.models.load import find_student_folder, load_model, read_own_net
from pidistill.models.student import Student
from pidistill.training.checkpoint import describe_contents, latest
from pidistill.training.log import read_losses, read_metrics


def describe(spec: str) -> dict[str, Any]:
    """Describe the model or run that a spec names, as facts in the order to print them.

    They are kind, network, parameters, shape, classes, noise range and provenance, of a run its progress before them. A
    model is called once; where that fails, the facts have its error as `failure`.
    """
    path = Path(spec)
    if path.is_file() and path.suffix == ".onnx":
        return describe(f"onnx:{spec}") | {"model": spec}
    if path.is_file() and path.suffix in (".pt", ".pth", ".ckpt"):
        return describe_state(path)
    facts: dict[str, Any] = {"model": spec}
    run = (path / "config.yaml").exists()
    if run:
        stages = sorted((place for place in path.glob("[1-9]*-*") if is_stage(place)),
                        key=lambda place: int(place.name.partition("-")[0]))
        facts |= {"run": "training run", **({} if stages else describe_progress(path))}
        if stages:
            facts["stages"] = {place.name: describe_progress(place) for place in stages}
        if (path / "results.json").exists():
            results = read_json(path / "results.json")
            facts["results"] = {key: results[key] for key in ("teacher", "student", "seconds") if key in results}
        if find_student_folder(path) is None and not (path / "teacher").is_dir():
            return facts | {"state": f"unfinished; continue with `pidistill resume {quote_path(spec)}`"}
    folder = find_student_folder(path)
    if folder and read_own_net(folder):  # which is not made to be looked at
        return facts | {key: value for key, value in (describe_stored(str(folder)) or {}).items() if key != "model"}
    model = load_model(spec)
    spec_of_net = model.net_spec if isinstance(model, (Student, Preconditioned)) else None
    net = model.net if isinstance(model, Student) else model
    kind = "student: 1 evaluation an image" if isinstance(model, Student) else f"teacher ({type(model).__name__})"
    facts |= {"kind": kind, **({"form": model.form} if isinstance(model, Student) else {}),
              "network": spec_of_net or type(net).__name__,
              "parameters": sum(p.numel() for p in net.parameters()),
              "shape": "x".join(map(str, model.shape)), "classes": model.num_classes or "none (unconditional)",
              **describe_guide(model.guide.null if isinstance(model, Denoiser) else model.null_label,
                               model.guide.guidance if isinstance(model, Denoiser) else 1.0),
              "noise range": f"{model.t_min:g} to {model.t_max:g}",
              "sigma_data": round(model.sigma_data, 4), "rho": model.rho}
    folder = folder if isinstance(model, Student) else model.source
    if folder and (folder / "provenance.json").exists():
        facts["provenance"] = read_json(folder / "provenance.json")
    if isinstance(model, Denoiser) and model.origin:
        facts["source"] = model.origin
    return facts | try_call(model)


def describe_guide(null: Null, guidance: float) -> dict[str, Any]:
    """Describe null label and guidance, where there are any."""
    return {**({} if null is None else {"null label": null}), **({} if guidance == 1 else {"guidance": guidance})}


@torch.inference_mode()
def try_call(model: Student | Denoiser) -> dict[str, Any]:
    """Call a model once, for two images at T, on the device where it would draw; gives its error, if any, as `failure`."""
    device = choose_device()
    labels = torch.zeros(2, dtype=torch.int64, device=device) if model.num_classes else None
    try:
        D = model.to(device)(noise(range(2), model.shape).to(device) * model.t_max, model.t_max, labels)
        if model.decoder:
            model.decoder.to(device)(D)
        return {"called": f"for two images at t = {model.t_max:g}, on {device}: it works"}
    except PidistillError as error:
        return {"failure": error}


def describe_progress(run: Path) -> dict[str, Any]:
    """Describe how far a run is, and what its newest checkpoint holds: networks, phases, followers."""
    records = [record for record in read_metrics(run) if read_losses(record)]
    losses = {key: value for record in records for key, value in read_losses(record).items()}  # the last of each phase
    newest = latest(run / "checkpoints")
    last = {"last loss": losses.get("loss")} if losses.keys() <= {"loss"} else {
        f"last {key}": value for key, value in losses.items()}
    return {"steps done": records[-1]["step"] if records else 0, **last,
            "newest checkpoint": newest.name if newest else None, **(describe_contents(newest) if newest else {})}


def describe_state(path: Path) -> dict[str, Any]:
    """Describe a file with a state dictionary; of one with several, or with lists, what each of them holds."""
    contents = read_contents(path)
    states = list_states(name_values(contents, path))
    if not states:
        raise PidistillError(f"{path} {describe_nothing(contents)}")
    sizes = {label: sum(value.numel() for value in state.values()) for label, state in states.items()}
    if len(states) > 1:
        entries = {to_line(label) or ".": f"{len(states[label])} tensors, {sizes[label]:,} numbers"
                   for label in sorted(states)}
        return {"model": str(path), "kind": "weights in several entries; a network is given those that fit, an average "
                "first", "entries": entries, "sha256": sha256(path)}
    ((label, state),) = states.items()
    types = Counter(str(value.dtype).removeprefix("torch.") for value in state.values())
    return {"model": str(path), "kind": "weights", "parameters": sizes[label], "tensors": len(state),
            "types": ", ".join(f"{count} {name}" for name, count in types.items()), "first": next(iter(state)),
            "sha256": sha256(path)}
