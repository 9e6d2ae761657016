"""Exports are measured against the student before they are kept; what is wrong is said in one line, and nothing is left."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import labels_of
from pidistill.core.tensors import quantise
from pidistill.files.reading import read_json
from pidistill.jobs.export import safetensors as safetensors_format
from pidistill.jobs.export.base import BATCHES, BOUNDS, FEW, check_parity, export, measure_parity
from pidistill.models.student import load_student
from tests.exported_students import CUSTOM, STOCK, make
from tests.helpers import MLP, NET, tiny_teacher

SEEDS = range(6)


@pytest.fixture
def folder(tmp_path):
    student = make(NET, classes=3)
    student.save(tmp_path / "run" / "student", {"teacher": "bundled:digits", "seed": 4, "steps": 7,
                                                "teacher_licence": "CC BY-SA 3.0"})
    (tmp_path / "run" / "results.json").write_text(json.dumps({
        "teacher": {"nfe": 35, "fd": 0.11}, "student": {"nfe": 1, "fd": 0.25, "seeds": "0-4999", "features": "digits"}}))
    return tmp_path / "run"


@pytest.mark.parametrize("form", ["safetensors", "hub"])
def test_own_folders_come_back(folder, tmp_path, form):
    line = export(str(folder), form, tmp_path / "out", command="pidistill export")
    assert "68 images differ from the student's by at most 0, 0.00%" in line
    student, again = load_student(folder), load_student(tmp_path / "out")
    assert torch.equal(student.sample(SEEDS), again.sample(SEEDS))
    parity = read_json(tmp_path / "out" / "parity.json")
    assert parity["images"] == sum(BATCHES) and parity["largest_difference"] == 0 and parity["precision"] == "fp32"
    provenance = read_json(tmp_path / "out" / "provenance.json")
    assert provenance["seed"] == 4 and provenance["export"]["command"] == "pidistill export"


def test_the_card_says_metrics_seeds_and_licence(folder, tmp_path):
    export(str(folder), "hub", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for words in ("CC BY-SA 3.0", "| student | 1 | 0.250 |", "0-4999", "in 3 classes", 'license: "other"', "7 steps, seed 4",
                  'load_student("out")'):
        assert words in card, words


@pytest.mark.parametrize("precision, most", [("fp16", 2**-10), ("bf16", 2**-7)])
def test_smaller_types_state_their_error(folder, tmp_path, precision, most):
    whole = sum(path.stat().st_size for path in (folder / "student").glob("*.safetensors"))
    export(str(folder), "safetensors", tmp_path / "out", options={"precision": precision})
    assert (tmp_path / "out" / "model.safetensors").stat().st_size < 0.7 * whole  # the header is large beside tiny weights
    parity = read_json(tmp_path / "out" / "parity.json")
    assert 0 < parity["rms"] < 20 * most and parity["precision"] == precision


def test_an_export_that_differs_is_not_kept(folder, tmp_path, monkeypatch):
    def wrong(source, target, **_):
        (target / "half").write_text("a file")
        written = safetensors_format.safetensors(source, target)
        return written._replace(run=lambda noise, labels: written.run(noise, labels) + 3e-4)

    monkeypatch.setattr("pidistill.jobs.export.hub.safetensors", wrong)
    with pytest.raises(PidistillError, match=r"the hub export is not the student: .* by up to 0.0003 .* nothing was kept"):
        export(str(folder), "hub", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("change, refused", [
    (lambda x: x + 0.5e-5, False), (lambda x: x + 2e-4, True), (lambda x: x * torch.nan, True),
    (lambda x: torch.where(torch.arange(64).reshape(8, 8) == 5, x + 0.02, x), True)])
def test_bounds(change, refused):
    student = make(NET)
    same = lambda noise, labels: student.generate(noise * student.t_max).clip(-1, 1)
    parity = measure_parity(student, lambda noise, labels: change(same(noise, labels))) | {"precision": "fp32"}
    if refused:
        with pytest.raises(PidistillError, match="is not the student"):
            check_parity(parity, "onnx")
    else:
        check_parity(parity, "onnx")


def test_parity_is_what_it_says():
    student = make(NET, classes=3)
    x = student.sample(range(68), labels_of(range(68), 3))
    shift = 0.003 * torch.randn(68, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    done = iter(x.add(shift).split(BATCHES))
    parity = measure_parity(student, lambda *_: next(done))
    pixels = quantise(x).int() - quantise(x + shift).int()
    assert parity["largest_difference"] == pytest.approx(shift.abs().max().item(), rel=1e-4)
    assert parity["rms"] == pytest.approx(shift.square().mean().sqrt().item(), rel=1e-4)
    assert parity["pixels_that_differ"] == pytest.approx((pixels != 0).float().mean().item())
    assert parity["largest_pixel_difference"] == pixels.abs().max()


def test_large_images_are_compared_in_fewer_batches():
    student = make(MLP, shape=(1, 160, 160))
    assert measure_parity(student, lambda z, y: student.generate(z * student.t_max).clip(-1, 1))["images"] == sum(FEW)


@pytest.mark.parametrize("spec, form, options, words", [
    ("bundled:digits", "onnx", {}, "is a teacher; a student is exported"),
    ("RUN", "onix", {}, "unknown format 'onix'; did you mean 'onnx'"),
    ("RUN", "hub", {"pixels": True}, "unknown option of formats/hub 'pixels'"),
    ("RUN", "safetensors", {"precision": "int8"}, "precision: input should be 'fp32', 'fp16' or 'bf16'"),
    ("nowhere", "onnx", {}, "nowhere does not exist")])
def test_bad_input(folder, tmp_path, spec, form, options, words):
    with pytest.raises(PidistillError) as error:
        export(str(folder) if spec == "RUN" else spec, form, tmp_path / "out", options=options)
    assert words in str(error.value) and not (tmp_path / "out").exists()


def test_what_is_there_is_not_replaced_unasked(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(PidistillError, match="exists"):
        export(str(folder), "hub", tmp_path / "out")
    export(str(folder), "hub", tmp_path / "out", force=True)
    assert not (tmp_path / "out" / "mine").exists()


def test_push_uploads_only_when_asked(folder, tmp_path, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, name, **options):
            calls.append(("create", name, options))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            calls.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir())))
            return "https://hub/me/digits"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    export(str(folder), "hub", tmp_path / "a")
    assert not calls
    line = export(str(folder), "hub", tmp_path / "b", push="me/digits")
    assert line.endswith("https://hub/me/digits")
    assert calls[0] == ("create", "me/digits", {"private": True, "exist_ok": True})
    assert calls[1][2] == ["README.md", "config.json", "model.safetensors", "parity.json", "provenance.json"]
    assert 'load_student("hf:me/digits")' in (tmp_path / "b" / "README.md").read_text()
    with pytest.raises(PidistillError, match="--push must name a repository"):
        export(str(folder), "hub", tmp_path / "c", push="not a name")
    assert not (tmp_path / "c").exists()


def test_an_average_of_choice_is_exported(tmp_path):
    first, second = make(NET), make(NET, scale=0.2)
    first.save(tmp_path / "s", {}, {0.9: first, 0.99: second})
    export(str(tmp_path / "s"), "safetensors", tmp_path / "out", ema=0.99)
    assert torch.equal(load_student(tmp_path / "out").sample(SEEDS), second.sample(SEEDS))


def test_every_precision_has_a_bound_and_students_a_kind():
    assert set(BOUNDS) == {"fp32", "fp16", "bf16", "int8"} and not set(STOCK) & set(CUSTOM)
    assert tiny_teacher().num_classes


def test_the_command(folder, tmp_path, cli):
    done = cli("export", folder, "--format", "safetensors", "--precision", "fp16", "--out", tmp_path / "out")
    assert done.code == 0 and "safetensors in" in done.out
    refused = cli("export", folder, "--format", "hub", "--precision", "fp16", "--out", tmp_path / "x")
    assert "unknown option of formats/hub 'precision'" in refused.error()


@pytest.mark.parametrize("form", ["safetensors", "diffusers", pytest.param("onnx", marks=pytest.mark.slow),
                                  pytest.param("torch-export", marks=pytest.mark.slow)])
def test_the_example_of_the_card_works(folder, tmp_path, form):
    export(str(folder), form, tmp_path / "out")
    code = re.search(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)[1]
    place = tmp_path / "out" if form in ("onnx", "torch-export") else tmp_path
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code + "\nprint(len(images))"], capture_output=True,
                          text=True, timeout=200, cwd=place, check=False)
    assert done.returncode == 0 and done.stdout.endswith("16\n"), done.stderr[-2000:]
