"""A run's folder: who may have it, and what is refused. Interruptions of runs in it are in tests/system."""

from __future__ import annotations

import pytest

from pidistill.core.errors import PidistillError
from pidistill.files.folders import write_text
from pidistill.training.config import DistillConfig
from pidistill.training.config_file import dump_yaml, load_config
from pidistill.training.run_folder import (
    LOCK,
    check_run,
    claim,
    go_back,
    hold_lock,
    list_entries,
    refuse_changes,
    trains_teacher,
)
from tests.training.checkpoints import list_names, write_checkpoints


def configure(folder, **changes) -> DistillConfig:
    return load_config(DistillConfig, "default", {"out": str(folder), "train.steps": 6, "train.batch": 4, **changes})


def test_a_claimed_folder_holds_the_settings_and_a_lock_that_is_let_go_of(tmp_path):
    config = configure(tmp_path / "deep" / "run")
    with claim(config) as folder:
        assert folder == tmp_path / "deep" / "run" and load_config(DistillConfig, folder / "config.yaml") == config
        assert (folder / f"{LOCK}.json").exists() and list_entries(folder) == [folder / "config.yaml"]
    assert not (folder / f"{LOCK}.json").exists()
    with hold_lock(folder):
        pass


def test_what_a_crash_left_is_deleted_when_a_run_goes_on(tmp_path):
    config = configure(tmp_path)
    with claim(config):
        (tmp_path / ".student.77").mkdir()
    with claim(config, resume=True):
        assert not (tmp_path / ".student.77").exists()


def test_a_file_and_a_folder_of_something_else_are_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PidistillError, match="is a file; choose another folder"), claim(configure(tmp_path / "file")):
        pass
    with pytest.raises(PidistillError, match="is not empty and holds no run"), claim(configure(tmp_path)):
        pass
    assert list_names(tmp_path) == ["file"]


def test_entries_end_with_what_makes_the_folder_a_run(tmp_path):
    assert list_entries(tmp_path / "nowhere") == []
    for name in ("config.yaml", ".lock", "zzz", "a"):
        (tmp_path / name).touch()
    entries = [path.name for path in list_entries(tmp_path)]
    assert set(entries) == {"a", "zzz", "config.yaml"} and entries[-1] == "config.yaml"


def test_going_back_sets_later_checkpoints_aside(tmp_path):
    write_checkpoints(tmp_path, 2, 4, 6, keep=9)
    with pytest.raises(PidistillError, match="has no checkpoint 3; there are 2, 4, 6"):
        go_back(tmp_path, 3, configure(tmp_path))
    with pytest.raises(PidistillError, match=r"is at step 6 already, beyond train\.steps=5"):
        go_back(tmp_path, None, configure(tmp_path, **{"train.steps": 5}))
    go_back(tmp_path, None, configure(tmp_path))
    assert list_names(tmp_path) == ["000002", "000004", "000006"]
    go_back(tmp_path, 4, configure(tmp_path, **{"train.steps": 5}))
    assert list_names(tmp_path) == ["000002", "000004", "000006.later"]


def test_settings_may_differ_where_they_are_given(tmp_path, capsys):
    write_text(tmp_path / "config.yaml", dump_yaml(configure(tmp_path)))
    changed = configure(tmp_path, **{"optimizer.lr": 1.0, "grid.points": 9})
    refuse_changes(tmp_path, configure(tmp_path), [])
    assert capsys.readouterr().err == ""
    with pytest.raises(PidistillError, match=r"other settings \(grid\.points\)"):
        refuse_changes(tmp_path, changed, ["optimizer"])
    with pytest.raises(PidistillError, match=r"other settings \(grid\.points, optimizer\.lr\)"):
        refuse_changes(tmp_path, changed, ["grid.point", "optim"])  # a key stands for those below it, not beside it
    refuse_changes(tmp_path, changed, ["optimizer", "grid.points"])
    assert "goes on with other settings: grid.points, optimizer.lr" in " ".join(capsys.readouterr().err.split())


def test_what_a_run_trains_is_told_by_its_settings(tmp_path):
    with pytest.raises(PidistillError, match=r"holds no run: config\.yaml was expected"):
        check_run(tmp_path)
    with pytest.raises(PidistillError, match="holds no run"):
        trains_teacher(tmp_path)
    write_text(tmp_path / "config.yaml", dump_yaml(configure(tmp_path)))
    assert not trains_teacher(tmp_path)
    write_text(tmp_path / "config.yaml", "data: digits\n")
    assert trains_teacher(tmp_path)
