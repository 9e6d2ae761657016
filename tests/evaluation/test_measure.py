"""Measuring models: constant memory, going on after an interruption, several processes, checkpoints, comparisons."""

from __future__ import annotations

import pytest
import torch

from pidistill.core import processes
from pidistill.core.errors import PidistillError
from pidistill.core.seeds import labels_of
from pidistill.evaluation.evaluate import evaluate
from pidistill.evaluation.measure import Measure, parse_metric_names
from pidistill.evaluation.side_by_side import measure_models
from pidistill.evaluation.subject import Subject
from pidistill.files.reading import read_json
from pidistill.jobs.compare import compare
from pidistill.models.denoiser import FunctionDenoiser
from pidistill.models.samplers.base import Sampler, sample_teacher
from pidistill.models.student_init import make_student
from pidistill.models.teachers.gaussian import gaussian
from tests.helpers import MLP

SHAPE = (1, 16, 16)
ALL = ["frechet", "inception_score", "kid", "precision_recall", "trajectory_rmse"]


@pytest.fixture
def teacher():
    return gaussian("1x16x16,mean=-0.5,std=0.4")


@pytest.fixture
def student(teacher):
    torch.manual_seed(0)
    return make_student(teacher, "random", MLP).eval()


def test_metric_names():
    assert parse_metric_names("fid,is,kid,pr") == ["frechet", "inception_score", "kid", "precision_recall"]
    assert parse_metric_names("fid, fd,frechet") == ["frechet"]
    with pytest.raises(PidistillError, match="unknown metric 'fidd'; did you mean 'fid'"):
        parse_metric_names("fidd")


def test_batches_as_one(teacher, student):
    """The numbers of all metrics are those of the images at once, whatever the batch."""
    results = [evaluate(teacher, student, num=40, batch=batch, features="digits", metrics=ALL, steps=3).record()
               for batch in (40, 7)]
    solutions, images = sample_teacher(teacher, range(40), steps=3), student.sample(range(40), clip=False)
    whole = Measure("digits", None, SHAPE, metrics=ALL)(images, solutions)
    assert {"fd", "is", "is_std", "kid", "kid_std", "precision", "recall", "trajectory_rmse"} == whole.keys()
    for result in results:
        assert {key: result["student"][key] for key in whole} == pytest.approx(whole, rel=1e-4)
        assert "trajectory_rmse" not in result["teacher"] and result["teacher"]["nfe"] == 5
    assert results[0]["student"]["seeds"] == "0-39" and len(results[0]["student"]["weights"]) == 64


def test_what_is_not_finite_names_its_seed():
    broken = FunctionDenoiser(lambda x, t, y: x * float("nan"), SHAPE)
    with pytest.raises(PidistillError, match="4 images are not finite; the first is that of seed 60"):
        evaluate(broken, None, num=4, first_seed=60, batch=4, features="digits", steps=2)


def test_few_images_are_said(teacher, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    evaluate(teacher, None, num=10, features="digits", steps=2)
    said = capsys.readouterr().err
    assert "10 images" in said and "32 features" in said and said.count("\n") == 1
    evaluate(teacher, None, num=40, features="digits", steps=2)
    assert capsys.readouterr().err == ""


def test_metrics_that_lack_something_say_so(teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain_features.py").write_text("def make():\n    return lambda x: x.flatten(1)[:, :4]\n")
    with pytest.raises(PidistillError, match="needs a network with classes"):
        Measure("python:plain_features:make", None, SHAPE, metrics=["inception_score"])
    import numpy as np

    np.savez("ref.npz", mu=np.zeros(4), sigma=np.eye(4))
    with pytest.raises(PidistillError, match=r"kid needs features .* make a reference"):
        Measure("python:plain_features:make", "ref.npz", SHAPE, metrics=["kid"])
    assert Measure("python:plain_features:make", "ref.npz", SHAPE).hash is None


# the verbs -----------------------------------------------------------------------------------------------------------


def pidistill(*args: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
    launch = [] if processes == 1 else ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    return subprocess.run([sys.executable, "-m", *launch, "pidistill.cli", *map(str, args)], capture_output=True, text=True,
                          timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)


def test_two_processes_give_the_number_of_one(tmp_path):
    args = ["evaluate", "gaussian:1x16x16,modes=3,std=0.2", "--features", "digits", "--metrics", "fd,is,kid,pr",
            "--images", 50, "--batch", 8, "--sampler", "ddpm:3"]
    found = []
    for n in (1, 2):
        done = pidistill(*args, "--out", tmp_path / f"{n}.json", processes=n)
        assert done.returncode == 0, done.stderr[-1000:]
        found.append(read_json(tmp_path / f"{n}.json"))
        assert done.stdout.count("│ teacher") == 1
    for key in ("fd", "is", "is_std", "kid", "kid_std", "precision", "recall"):
        assert found[0]["teacher"][key] == pytest.approx(found[1]["teacher"][key], rel=1e-9), key
    assert found[0]["teacher"]["nfe"] == found[1]["teacher"]["nfe"] == 3
    assert found[0]["seeds"] == ["0-49"] and {"commit", "versions", "command"} <= found[0].keys()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A distillation of a teacher whose images the bundled features take, with three checkpoints and two EMA rates."""
    folder = tmp_path_factory.mktemp("run") / "run"
    done = pidistill("distill", "--teacher", "gaussian:1x16x16,mean=-0.5,std=0.4", "--out", folder,
                     "--set", "student={init: random, net: {name: mlp, width: 16, depth: 2}}", "--set", "evaluate.num=8",
                     "--set", "train={steps: 6, batch: 8}", "--set", "checkpoint={every: 2, keep: 5}",
                     "--set", "ema=[0.0,0.9]", "--set", "grid.points=10", "--set", "objective.distance=l1")
    assert done.returncode == 0, done.stderr[-1000:]
    return folder


def test_every_checkpoint_and_rate_of_a_run(run):
    args = ["evaluate", run, "--checkpoints", "--features", "digits", "--num", 40, "--repeats", 2, "--batch", 20]
    done = pidistill(*args)
    assert done.returncode == 0, done.stderr[-1000:]
    record = read_json(run / "evaluation.json")
    assert list(record["curves"]) == ["0.0", "0.9"] and record["seeds"] == ["0-39", "40-79"]
    for rate, curve in record["curves"].items():
        assert len(curve["runs"]) == 2 and [step for step, _ in curve["runs"][0]["fd"]] == [2, 4, 6], rate
    values = [value for curve in record["curves"].values() for line in curve["runs"] for _, value in line["fd"]]
    assert len(set(values)) == 12
    with Image.open(run / "evaluation.png") as picture:
        assert picture.width > 300
    kept = sorted((run / "evaluation").iterdir())
    assert len(kept) == 12 and all(path.suffix == ".json" for path in kept)
    times = [path.stat().st_mtime_ns for path in kept]
    assert pidistill(*args).returncode == 0 and [path.stat().st_mtime_ns for path in kept] == times  # not measured again
    last = pidistill("evaluate", run, "--features", "digits", "--num", 40, "--metrics", "fd", "--out", run / "last.json")
    assert last.returncode == 0, last.stderr
    # The student of the run is its last checkpoint's first average.
    assert read_json(run / "last.json")["student"]["fd"] == pytest.approx(record["curves"]["0.0"]["runs"][0]["fd"][-1][1])
    assert "teacher" not in read_json(run / "last.json")


def test_compare_writes_its_report(run, tmp_path):
    args = ["compare", "--teacher", "gaussian:1x16x16,mean=-0.5,std=0.4", "--students", run, "--samplers", "euler:2,4",
            "heun:3", "--features", "digits", "--num", 40, "--batch", 16, "--published", "cifar10", "--out", tmp_path / "c"]
    done = pidistill(*args)
    assert done.returncode == 0, done.stderr[-1000:]
    record = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert [row["method"] for row in record["rows"]] == ["teacher, euler:2", "teacher, euler:4", "teacher, heun:3",
                                                         "student run"]
    assert [row["nfe"] for row in record["rows"]] == [2, 4, 5, 1] and record["rows"][-1]["distance"] == "l1"
    assert all(row["fd"] > 0 and row["is"] >= 1 and row["images_per_s"] > 0 for row in record["rows"])
    pid = next(row for row in record["published"] if row["method"] == "PID")
    assert (pid["nfe"], pid["fid"], pid["is"]) == (1, 3.92, 9.13)  # Table 1
    text = (tmp_path / "c" / "compare.md").read_text()
    assert "published" in text and "| student run | l1 | 1 |" in text
    assert text.count("\n|") == 2 + 4 + 1 + len(record["published"])
    with (tmp_path / "c" / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["published"] for row in rows] == ["False"] * 4 + ["True"] * len(record["published"])
    for name in ("compare.png", "compare-samples.png"):
        with Image.open(tmp_path / "c" / name) as picture:
            assert picture.width > 300
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "c" / "measured").iterdir()}
    more = pidistill(*args[:-8], "--samplers", "euler:2,4,3", "--batch", 16, "--num", 40, "--out", tmp_path / "c")
    assert more.returncode == 0, more.stderr[-1000:]
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "c" / "measured").iterdir()}
    assert len(after) == len(kept) + 1 and all(after[path] == kept[path] for path in kept)  # only euler:3 was measured


def test_comparison_is_of_the_models(teacher, tmp_path):
    compare(teacher, [], ["ddim:3"], tmp_path, features="digits", num=40, batch=40)
    row, = read_json(tmp_path / "compare.json")["rows"]
    images = sample_teacher(teacher, range(40), labels_of(range(40), 0), sampler=Sampler("ddim", 3), batch_size=40)
    assert row["fd"] == pytest.approx(Measure("digits", None, SHAPE)(images)["fd"], rel=1e-6)


@pytest.mark.parametrize("args, words", [
    (["compare", "--teacher", "gaussian:2"], "nothing to compare"),
    (["compare", "--teacher", "gaussian:2", "--samplers", "eulr:2"], "did you mean 'euler'"),
    (["compare", "--teacher", "gaussian:2", "--samplers", "euler:2", "--published", "cifar"], "did you mean 'cifar10'"),
    (["compare", "--teacher", "gaussian:2", "--samplers", "euler:2", "--metrics", "fid"], "needs a feature network"),
    (["compare", "--teacher", "gaussian:2", "--students", "nowhere"], "does not exist"),
    (["compare", "--teacher", "gaussian:2", "--samplers", "euler:2", "eulr:2"], "did you mean 'euler'"),
    (["compare", "--teacher", "gaussian:2", "--students", "nowhere", "elsewhere"], "nowhere does not exist"),
    (["compare", "--samplers", "euler:2"], "--teacher"),
    (["evaluate", "gaussian:2", "--metrics", "fid"], "needs a feature network"),
    (["evaluate", "gaussian:2", "--metrics", "fidd"], "did you mean 'fid'"),
    (["evaluate", "gaussian:2", "--sampler", "euler:2,3"], "one number of steps"),
    (["evaluate", "nowhere", "--checkpoints"], "holds no run"), (["evaluate", "gaussian:2", "--device", "abacus"], "abacus"),
    (["reference", "nowhere", "--out", "r.npz"], "nowhere does not exist"),
    (["reference", "digits", "--out", "r.txt"], ".npz"),
    (["reference", "nowhere", "--features", "digits", "--out", "r.npz"], "nowhere")])
def test_bad_input_is_one_line(cli, args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("pidistill.files.downloads.download", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    assert words in cli(*args).error()


def test_reference_verb(cli, tmp_path):
    done = cli("reference", "digits", "--features", "digits", "--keep", 30, "--out", tmp_path / "ref.npz")
    assert done.code == 0 and "5000 images in 32 features" in done.out and "features of 30 kept" in done.out
    assert "exists" in cli("reference", "digits", "--features", "digits", "--out", tmp_path / "ref.npz").error()
    assert cli("evaluate", "gaussian:1x16x16", "--features", "digits", "--reference", tmp_path / "ref.npz", "--num", 40,
               "--metrics", "fd,kid", "--steps", 2).code == 0


def test_alone_there_is_one_process():
    assert (processes.get_rank(), processes.get_world_size()) == (0, 1)
    total = torch.ones(2)
    processes.add_up([total])
    assert total.tolist() == [1, 1]
    assert processes.choose_device("cpu").type == "cpu"


@pytest.mark.gpu
def test_one_host_synchronisation_a_batch(teacher):
    """On a GPU: moving the images to the CPU is the only wait of a batch, for every kind of sampler."""
    model = teacher.to("cuda")
    for name in ("heun:3", "ddpm:3", "deis3:5", "unipc:5", "dpm_solver_fast:7"):
        from pidistill.models.samplers.base import parse_sampler

        sampler, = parse_sampler(name)
        sample_teacher(model, range(4), sampler=sampler)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with pytest.warns(UserWarning) as caught:
                sample_teacher(model, range(8), sampler=sampler, batch_size=4)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert len([w for w in caught if "synchroniz" in str(w.message)]) <= 2
    assert measure_models({"t": Subject.of(model)}, Measure("digits", None, SHAPE, "cuda"), range(40))["t"].metrics["fd"] > 0
