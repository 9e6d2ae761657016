"""Published files: fetched whole or not at all, continued where they stopped, checked before they get their name."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from pidistill.core.errors import PidistillError
from pidistill.files import downloads
from pidistill.files.downloads import fetch_published

CONTENT = np.random.default_rng(0).bytes(50_000)
NAME = f"net-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


@pytest.fixture(autouse=True)
def content(server, monkeypatch):
    server.content = CONTENT
    monkeypatch.setattr(downloads, "CHUNK", 1000)


@pytest.fixture
def get(server, tmp_path):
    return lambda name=NAME: fetch_published(f"{server.url}/dir/{name}", "a network", "x=FILE", tmp_path)


def list_files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def expect_refusal(get, words: str, name: str = NAME) -> str:
    with pytest.raises(PidistillError, match=words) as caught:
        get(name)
    line = str(caught.value)
    assert line.isprintable() and len(line) < 600
    return line


def test_a_file_is_fetched_once(server, get, tmp_path):
    assert get().read_bytes() == CONTENT and get().read_bytes() == CONTENT
    assert len(server.requests) == 1 and "Range" not in server.requests[0] and list_files(tmp_path) == {NAME}


@pytest.mark.parametrize("cuts", [[100], [20_000], [20_000, 7000, 1]])
def test_a_broken_connection_is_continued(server, get, tmp_path, cuts):
    server.script = [{"cut": cut} for cut in cuts]
    assert get().read_bytes() == CONTENT and list_files(tmp_path) == {NAME}
    assert [headers.get("Range") for headers in server.requests] == [
        None, *(f"bytes={sum(cuts[:k])}-" for k in range(1, len(cuts) + 1))]
    assert all(headers["If-Range"] == '"1"' for headers in server.requests[1:])


def test_tries_are_bounded_and_the_next_program_goes_on(server, get, tmp_path):
    server.script = [{"cut": 1000}] * downloads.TRIES
    expect_refusal(get, "ended after 4000 of 50000 bytes.*x=FILE")
    assert list_files(tmp_path) == {f"{NAME}.part", f"{NAME}.part.mark"} and len(server.requests) == downloads.TRIES
    assert get().read_bytes() == CONTENT and server.requests[-1]["Range"] == "bytes=4000-" and list_files(tmp_path) == {NAME}


@pytest.mark.parametrize("odd", [{}, {"ranges": False}], ids=["changed", "no ranges"])
def test_parts_of_two_files_are_never_joined(server, get, tmp_path, odd):
    server.script = [{"cut": 1000}] * downloads.TRIES
    expect_refusal(get, "ended after", "net.pth")
    server.script, server.content, server.tag = [odd], CONTENT[::-1], '"2"'
    assert get("net.pth").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("headers", [
    {"ETag": '"2"'}, {"Content-Range": "bytes 7-49999/50000"}, {"Content-Range": None}, {"Content-Range": "bytes x"}])
def test_a_part_that_was_not_asked_for_is_thrown_away(server, get, headers):
    server.script = [{"cut": 1000}, {"headers": headers}]
    assert get("net.pth").read_bytes() == CONTENT and "Range" not in server.requests[2]


@pytest.mark.parametrize("headers", [{"ETag": None}, {"ETag": 'W/"1"'}])
def test_a_server_that_names_no_version_is_asked_for_all(server, get, headers):
    server.script = [{"cut": 1000, "headers": headers}]
    assert get("net.pth").read_bytes() == CONTENT and "Range" not in server.requests[1]


def test_the_date_names_a_version_too(server, get):
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    server.script = [{"cut": 1000, "headers": {"ETag": None, "Last-Modified": date}}, {"ranges": False}]
    get()
    assert server.requests[1]["If-Range"] == date


def test_a_part_that_is_whole_is_taken(server, get, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    (tmp_path / f"{NAME}.part.mark").write_text(server.tag)
    assert get().read_bytes() == CONTENT and len(server.requests) == 1 and list_files(tmp_path) == {NAME}


def test_a_part_longer_than_the_file_is_thrown_away(server, get, tmp_path):
    (tmp_path / "net.pth.part").write_bytes(CONTENT + b"more")
    (tmp_path / "net.pth.part.mark").write_text(server.tag)
    assert get("net.pth").read_bytes() == CONTENT and len(server.requests) == 2


def test_a_damaged_part_is_fetched_again(server, get, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(b"x" * 1000)
    (tmp_path / f"{NAME}.part.mark").write_text(server.tag)
    assert get().read_bytes() == CONTENT and len(server.requests) == 2


def test_the_hash_is_checked_before_the_file_has_its_name(server, get, tmp_path, monkeypatch):
    server.content = CONTENT[:-1] + b"?"
    checks = []
    monkeypatch.setattr(downloads, "sha256", lambda path: checks.append((path.name, list_files(tmp_path))) or "0" * 64)
    expect_refusal(get, f"SHA-256 starts with 00000000, its name says {NAME[4:12]}")
    assert checks == [(f"{NAME}.part", {f"{NAME}.part", f"{NAME}.part.mark"})] and list_files(tmp_path) == set()


def test_without_a_hash_it_is_said(server, get, capsys, monkeypatch):
    monkeypatch.setattr(downloads.console, "_width", 300)
    get("net.pth")
    message = capsys.readouterr().err
    assert "unchecked" in message and hashlib.sha256(CONTENT).hexdigest() in message
    get()
    assert "unchecked" not in capsys.readouterr().err


def test_a_server_in_trouble_is_asked_again_and_a_missing_file_is_not(server, get):
    server.script = [{"status": 503}, {"status": 429}]
    assert get().read_bytes() == CONTENT
    server.script, server.requests = [{"status": 404}], []
    expect_refusal(get, "HTTP Error 404", "other.pth")
    assert len(server.requests) == 1


def test_a_silent_connection_is_given_up(server, get, monkeypatch):
    monkeypatch.setattr(downloads, "SILENCE", 0.05)
    server.script = [{"hang": True}] * downloads.TRIES
    expect_refusal(get, "timed out")
    assert len(server.requests) == downloads.TRIES


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a.pth", "file:///etc/passwd", "ftp://127.0.0.1/a.pth", "//a/b.pth"])
def test_only_https_is_fetched(url, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "SCHEMES", ("https",))
    with pytest.raises(PidistillError, match="only https: is fetched"):
        fetch_published(url, "a network", "x=FILE", tmp_path)
    assert list_files(tmp_path) == set()


def test_redirects_stay_on_https(server, get, monkeypatch, tmp_path):
    server.script = [{"to": "/elsewhere"}]
    assert get().read_bytes() == CONTENT
    for to in ("file:///etc/passwd", "ftp://127.0.0.1/a", "gopher://x/a"):
        server.script = [{"to": to}]
        expect_refusal(get, "only https: is fetched|is not allowed", "other.pth")
    monkeypatch.setattr(downloads, "SCHEMES", ("http",))  # as if the first address were secure and the next were not
    server.script = [{"to": "https://127.0.0.1:1/x"}]
    expect_refusal(get, "only https: is fetched, not https", "other.pth")
    assert list_files(tmp_path) == {NAME}


def test_size_is_bounded_whatever_the_server_says(server, get, monkeypatch, tmp_path):
    monkeypatch.setattr(downloads, "DOWNLOAD_LIMIT", 40_000)
    expect_refusal(get, "50000 bytes, more than 40000")
    server.script = [{"headers": {"Content-Length": None}}]
    expect_refusal(get, "more than 40000 bytes")
    assert os.path.getsize(tmp_path / f"{NAME}.part") <= 40_000


def test_a_full_disk_is_found_before_and_during(server, get, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**5, 10**5 - 49_999, 49_999))
    expect_refusal(get, "No space left on device")
    assert list_files(tmp_path) == set() and len(server.requests) == 1


def test_no_network_is_one_line_at_once(server, tmp_path, monkeypatch):
    def sleep(seconds):
        raise AssertionError("it tried again")

    monkeypatch.setattr(downloads.time, "sleep", sleep)
    with pytest.raises(PidistillError, match=r"cannot download a network .*refused.*put the file from http.* to .*x=FILE"):
        fetch_published(f"http://127.0.0.1:1/{NAME}", "a network", "x=FILE", tmp_path)  # where nobody listens


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a\0b", "a?b", "a%2e", "-x", "a b"])
def test_names_that_are_no_file_names(get, name):
    expect_refusal(get, "no name of a published file", name)
