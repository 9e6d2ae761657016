"""Which files are data, and which folders are classes."""

from __future__ import annotations

import pytest

from pidistill.files.image_names import are_shards, describe_left_out, find_root, is_hidden, is_image, name_classes


@pytest.mark.parametrize("name, hidden", [
    ("__MACOSX/._a.png", True), ("__MACOSX/a.png", True), ("a/__MACOSX/b.png", True), ("._a.png", True), (".DS_Store", True),
    ("Thumbs.db", True), ("a/THUMBS.DB", True), ("desktop.ini", True), (".ipynb_checkpoints/a-checkpoint.png", True),
    (".git/x/y.png", True), ("@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", True), ("$RECYCLE.BIN/a.png", True),
    ("System Volume Information/a.png", True), ("lost+found/a.png", True), ("__pycache__/a.png", True),
    ("a.png", False), ("a.b/c.d.png", False), ("MACOSX/a.png", False), ("...png", False), ("a..png", False),
    ("_a.png", False), ("a/~b.png", False), ("macosx__/thumbs.db.png", False)])
def test_hidden_files_and_those_of_systems(name, hidden):
    assert is_hidden(name) == hidden


def test_images_are_known_by_their_endings():
    assert all(map(is_image, ["a.png", "b/a.PNG", "a.Jpg", "a.jpeg", "a.webp", "a.bmp"]))
    assert not any(map(is_image, ["a.gif", "png", ".png", "a.png/b", "a.png~", "a.png.part", "a.tif", "dataset.json"]))


@pytest.mark.parametrize("names, root", [
    (["a.png"], ""), (["x/a.png"], "x/"), (["x/y/a.png", "x/y/b.png"], "x/y/"), (["x/y/a.png", "x/z/b.png"], "x/"),
    (["x/a.png", "b.png"], ""), (["x/a.png", "y/b.png"], ""), (["x/a.png", "xy/b.png"], ""), ([], ""),
    (["x/a.png", "x/y/b.png"], "x/")])
def test_a_folder_around_everything_is_looked_into(names, root):
    assert find_root(names, {*names, "LICENSE"}) == root
    assert find_root(names, {*names, "dataset.json"}) == ""  # which says where names begin
    if root == "x/y/":
        assert find_root(names, {*names, "x/dataset.json"}) == "x/"


@pytest.mark.parametrize("names, classes", [
    (["cat/1.png", "dog/1.png"], ["cat", "dog"]), (["b/1.png", "a/x/2.png", "C/3.png"], ["C", "a", "b"]),
    (["0/1.png", "10/2.png", "9/3.png"], ["0", "9", "10"]), (["n0144/n0144_18.png", "n1/x.png"], ["n0144", "n1"]),
    (["00000/00000_00000.png", "00001/00000_00000.png"], ["00000", "00001"]),  # GTSRB's: each class from 0
    (["é \xa0/1.png", "日本/2.png"], ["é \xa0", "日本"]), (["train/1.png", "cat/2.png"], ["cat", "train"]),
    (["a.png", "b.png"], []), (["cat/1.png", "cat/2.png"], []), (["cat/1.png"], []), ([], [])])
def test_folders_are_classes_in_the_order_of_their_names(names, classes):
    assert name_classes(names) == (classes, "")


@pytest.mark.parametrize("names, words", [
    (["cat/1.png", "dog/2.png", "3.png"], "1 of 3 images lie beside"), (["cat/1.png", "2.png"], "1 of 2"),
    (["train/cat/1.png", "val/cat/2.png"], "the folders train, val"), (["Test/1.png", "Train/2.png"], "Test, Train"),
    (["00000/img00000000.png", "00001/img00001000.png"], "00000 to 00001"),
    (["01000/01000.png", "00000/00000.png", "00000/00999.png"], "00000 to 01000"),
    (["00000/000000000.jpg", "00001/000010000.jpg"], "the numbered folders")])
def test_folders_that_are_no_classes_are_said(names, words):
    classes, reason = name_classes(names)
    assert classes == [] and words in reason


def test_shards_are_numbered_on():
    assert are_shards(["0000/a1.png", "0000/a2.png", "0001/a3.png"])
    for names in (["0000/a1.png", "0001/a1.png"], ["0000/a2.png", "0001/a1.png"], ["0000/a.png", "0001/b.png"],
                  ["000/a1.png", "001/a2.png"], ["0000/a1.png", "00001/a2.png"],
                  ["0000/" + "9" * 5000 + ".png", "0001/1.png"],
                  ["\u0660\u0660\u0660\u0660/a1.png", "\u0660\u0660\u0660\u0661/a2.png"]):
        assert not are_shards(names)


def test_what_is_left_out_is_counted_by_kind():
    images = {"a.png", "b.png"}
    assert describe_left_out(images, images) == ""
    names = {*images, "._a.png", ".DS_Store", "x.gif", "y.GIF", "README", "dataset.json"}
    assert describe_left_out(names, images, 2) == (
        "left out: 2 hidden or the system's (.DS_Store, ...); 4 of other kinds (2 .gif, 1 no ending, 1 .json); "
        "2 linked folders")
    assert describe_left_out({"a.tif"}, set()) == "left out: 1 of other kinds (1 .tif)"
    assert describe_left_out(set(), set(), 1) == "left out: 1 linked folder"
