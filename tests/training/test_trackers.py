"""Trackers get the lines of a run, go on with their own run, and can neither end nor stall it."""

from __future__ import annotations

import threading

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from pidistill.core.errors import PidistillError
from pidistill.files.reading import read_json
from pidistill.training import trackers
from pidistill.training.trackers import check_trackers
from tests.runs import metrics, start_run

NAME = "json"  # a module that is installed, under which the tests' own tracker goes


class Recorder(GeneralTracker):
    """Keeps what it is told; `trouble` is called first, by the name of the method."""

    name, requires_logging_directory, main_process_only = NAME, True, True

    def __init__(self, project, **arguments):
        super().__init__()
        self.seen, self.trouble = type(self).seen, type(self).trouble
        self.told("init", project, arguments)

    def told(self, what, *values):
        self.trouble(what)
        self.seen.append((what, threading.current_thread().name, *values))

    @property
    def tracker(self):
        return self

    def start(self):
        self.told("start")

    def store_init_configuration(self, values):
        self.told("settings", values)

    def log(self, values, step=None, **_):
        self.told("log", step, values)

    def finish(self):
        self.told("finish")


@pytest.fixture
def recorder(monkeypatch):
    """The class of a tracker that keeps what it is told, known as `json`."""
    kind = type("Kind", (Recorder,), {"seen": [], "trouble": staticmethod(lambda what: None)})
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, NAME, kind)
    return kind


SETTINGS = {"log.trackers": [NAME], "log.project": "mine"}


def test_a_tracker_gets_every_line_and_the_settings(tmp_path, recorder):
    start_run(tmp_path / "run", SETTINGS)
    kinds = [what for what, *_ in recorder.seen]
    assert kinds == ["init", "start", "settings", "log", "log", "log", "finish"]
    assert {thread for _, thread, *_ in recorder.seen} == {f"tracker {NAME}"}
    assert recorder.seen[0][2:] == ("mine", {"logging_dir": str(tmp_path / "run" / NAME)})
    settings = recorder.seen[2][2]
    assert settings["train.steps"] == 6 and settings["log.project"] == "mine"
    lines = [{"step": step, **values} for what, _, *rest in recorder.seen if what == "log" for step, values in [rest]]
    volatile = [{key: value for key, value in line.items() if key != "images_per_s"} for line in lines]
    assert volatile == metrics(tmp_path / "run")


@pytest.mark.parametrize("where, lines", [("init", 0), ("start", 0), ("settings", 0), ("log", 0), ("finish", 3)])
@pytest.mark.parametrize("error", [OSError("no route to host"), SystemExit(1)], ids=["error", "exit"])
def test_a_tracker_that_fails_ends_nothing(tmp_path, recorder, capsys, where, lines, error):
    def fail(what):
        if what == where:
            raise error

    recorder.trouble = staticmethod(fail)
    start_run(tmp_path / "run", SETTINGS)
    assert [record["step"] for record in metrics(tmp_path / "run")] == [2, 4, 6]
    assert len([what for what, *_ in recorder.seen if what == "log"]) == lines
    told = capsys.readouterr().err
    assert f"WARNING: the tracker {NAME} failed ({type(error).__name__}: " in told and told.count("WARNING") == 1


def test_a_tracker_that_hangs_is_left(tmp_path, recorder, capsys, monkeypatch):
    """A service that does not answer keeps its thread waiting, and neither the run's steps nor its end."""
    monkeypatch.setattr(trackers, "GRACE", 0.01)
    answer = threading.Event()
    recorder.trouble = staticmethod(lambda what: answer.wait(60) if what == "log" else None)
    start_run(tmp_path / "run", SETTINGS)
    assert not answer.is_set() and [record["step"] for record in metrics(tmp_path / "run")] == [2, 4, 6]
    assert f"the tracker {NAME} has not answered yet, and is left" in capsys.readouterr().err
    answer.set()


def test_a_tracker_that_is_far_behind_is_left(tmp_path, recorder, capsys, monkeypatch):
    monkeypatch.setattr(trackers, "MOST_WAITING", 1)
    monkeypatch.setattr(trackers, "GRACE", 0.01)
    answer = threading.Event()
    recorder.trouble = staticmethod(lambda what: answer.wait(60) if what == "start" else None)
    start_run(tmp_path / "run", SETTINGS)
    assert f"the tracker {NAME} is 1 lines behind" in capsys.readouterr().err
    answer.set()


def test_a_run_that_goes_on_goes_on_in_its_tracker(tmp_path, recorder, monkeypatch):
    monkeypatch.setitem(trackers.BEGIN, NAME, lambda project, name, folder, run: {"run_name": name, "run_id": run})
    monkeypatch.setitem(trackers.IDENTIFY, NAME, lambda tracker: "number-7")
    start_run(tmp_path / "run", SETTINGS | {"train.steps": 3})
    start_run(tmp_path / "run", SETTINGS)
    begun = [values[1] for what, _, *values in recorder.seen if what == "init"]
    assert [(each["run_name"], each.get("run_id")) for each in begun] == [("run", None), ("run", "number-7")]
    assert read_json(tmp_path / "run" / "trackers.json") == {NAME: "number-7"}
    assert [values[0] for what, _, *values in recorder.seen if what == "log"] == [2, 3, 4, 6]
    assert [what for what, *_ in recorder.seen].count("settings") == 1  # MLflow refuses others than at first


def test_a_stage_is_named_with_its_distillation(tmp_path, recorder, monkeypatch):
    monkeypatch.setitem(trackers.BEGIN, NAME, lambda project, name, folder, run: {"run_name": name})
    (tmp_path / "config.yaml").write_text("")
    start_run(tmp_path / "1-pid", SETTINGS | {"train.steps": 1})
    assert recorder.seen[0][3]["run_name"] == f"{tmp_path.name}/1-pid"


@pytest.mark.parametrize("name, words", [("wandbb", "did you mean 'wandb'"), ("tensorboard", "every run has"),
                                         ("dvclive", "pip install dvclive"), ("comet_ml", "pip install comet-ml")])
def test_a_tracker_that_cannot_be_had_is_refused(name, words, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(PidistillError, match=words):
        check_trackers([name])


def test_wandb_itself_offline(tmp_path, monkeypatch):
    """The package as it is; a run that goes on is the same run there."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings = {"log.trackers": ["wandb"]}
    start_run(tmp_path / "run", settings | {"train.steps": 3})
    run = read_json(tmp_path / "run" / "trackers.json")["wandb"]
    start_run(tmp_path / "run", settings)
    kept = sorted(path.name for path in (tmp_path / "run" / "wandb").glob(f"offline-run-*-{run}"))
    assert len(kept) in (1, 2)  # two that begin in one second have one folder
    assert read_json(tmp_path / "run" / "trackers.json") == {"wandb": run}
    written = b"".join(path.read_bytes() for path in (tmp_path / "run" / "wandb").rglob("*.wandb"))
    assert b"grad_norm" in written and b"train.steps" in written
