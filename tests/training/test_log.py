"""metrics.jsonl and TensorBoard's events: each line once, after an interruption and on a full disk too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pidistill.training.log import GrowingFile, Log, name_by_phase, read_losses, read_metrics


def read_events(folder) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def test_continuing_drops_the_lines_that_are_written_again(tmp_path):
    log = Log(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(step, {"loss": 1 / step})
    log.write(3, {})
    log = Log(tmp_path, 2)
    log.write(3, {"loss": 8.0})
    records = read_metrics(tmp_path)
    assert [(record["step"], record["loss"]) for record in records] == [(1, 1.0), (2, 0.5), (3, 8.0)]
    assert read_events(tmp_path) == [(1, 1.0), (2, 0.5), (3, 8.0)]
    seconds = [record["seconds"] for record in records]
    assert seconds == sorted(seconds)


def test_the_seconds_of_a_run_go_on_where_it_went_on(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "loss": 1, "seconds": 1000.0}\n')
    Log(tmp_path, 5).write(6, {"loss": 1.0})
    assert 1000 <= read_metrics(tmp_path)[-1]["seconds"] < 1010


@pytest.mark.parametrize("tail, steps", [('{"step": 3, "lo', [1, 2]), ("", [1, 2]), ("[1]\n", [1, 2]), ("\xff\n", [1, 2])])
def test_a_half_written_line_ends_the_records(tmp_path, tail, steps):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n' + tail, encoding="latin-1")
    assert [record["step"] for record in read_metrics(tmp_path)] == steps


def test_without_a_file_there_are_no_records(tmp_path):
    assert read_metrics(tmp_path) == []


def test_a_record_that_fits_in_part_is_taken_back(tmp_path, capsys, monkeypatch):
    """The file ends with a whole record whenever the run ends."""
    path = tmp_path / "log"
    file = GrowingFile(path)
    file.add(b"whole\n")
    plain = Path.open

    def open_short(self, mode="r", **options):
        opened = plain(self, mode, **options)
        if self == path:
            class Short:
                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    opened.close()

                def __getattr__(self, name):
                    return getattr(opened, name)

                def write(self, data):
                    return opened.write(data[:2])

            return Short()
        return opened

    monkeypatch.setattr(Path, "open", open_short)
    file.add(b"second\n")
    file.add(b"third\n")
    assert path.read_bytes() == b"whole\n"
    warning = " ".join(capsys.readouterr().err.split())
    assert warning.count("WARNING") == 1 and "No space left" in warning
    monkeypatch.setattr(Path, "open", plain)
    file.add(b"fourth\n")
    assert path.read_bytes() == b"whole\nsecond\nthird\nfourth\n"


def test_a_line_is_json(tmp_path):
    Log(tmp_path, 0).write(7, {"loss": 0.5, "lr": 1e-3})
    line, = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert list(json.loads(line)) == ["step", "loss", "lr", "seconds"]


def test_values_are_named_by_phase_where_there_are_several():
    """And read back by these names, among others of the same line."""
    assert name_by_phase("loss", {"pid": 0.5}, ["pid"]) == {"loss": 0.5}
    names = name_by_phase("loss", {"critic": 0.25}, ["student", "critic"])  # the student's was not taken
    assert names == {"loss/critic": 0.25}
    others = {"step": 3, "lr": 1e-3, "lr/critic": 1e-4, "losses": 9.0, "seconds": 1.5}
    assert read_losses(names | others) == names and read_losses({"loss": 0.5} | others) == {"loss": 0.5}
    assert read_losses(others) == {}


@pytest.mark.parametrize("bad", [
    "{step: 2}", '{"step": 2, "loss": 0.1, }', "[2]", '{"loss": 3}', '{"step": "2"}', "\0\0\0", "\xff"])
def test_a_damaged_line_in_the_middle_is_said_and_those_after_it_are_read(tmp_path, capsys, bad):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + bad + '\n\n{"step": 3}\n{"step": 4}\n', encoding="latin-1")
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 3, 4]
    said = " ".join(capsys.readouterr().err.split())
    assert "metrics.jsonl: 1 of 5 lines are no records, and left out, first line 2" in said
    Log(tmp_path, 3)  # a run that goes on drops it
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 3]
