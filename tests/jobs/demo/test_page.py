"""The page in a real browser: a click shows images, a slider changes them, ten clicks are answered, bad seeds are a line."""

from __future__ import annotations

import time

import pytest

from pidistill.core.errors import PidistillError
from pidistill.core.seeds import labels_of
from pidistill.jobs.demo.draw import Demo
from pidistill.jobs.demo.page import build_page, load_demo, make_theme, run_demo
from pidistill.models.samplers.base import sample_teacher
from pidistill.models.student_init import make_student
from pidistill.models.teachers.base import load_teacher
from tests.helpers import tiny_teacher

pytest.importorskip("gradio")


def test_a_student_brings_its_teacher(tmp_path):
    teacher = load_teacher("bundled:digits")
    make_student(teacher).save(tmp_path / "s", {"teacher": "bundled:digits"})
    assert load_demo(str(tmp_path / "s"), None).teacher is not None
    assert load_demo(str(tmp_path / "s"), "none").teacher is None
    make_student(teacher).save(tmp_path / "alone", {})
    assert load_demo(str(tmp_path / "alone"), None).teacher is None
    with pytest.raises(PidistillError, match="is a teacher"):
        load_demo("bundled:digits", None)


def test_a_student_is_bundled():
    demo = load_demo(None, None)
    assert demo.teacher is not None and demo.classes[-1] == "9"
    ours, theirs = demo.student.sample(range(32)), sample_teacher(demo.teacher, range(32), labels_of(range(32), 10))
    assert (ours - theirs).square().mean().sqrt() < 0.25  # half of the images' own deviation


def test_gradio_is_an_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(PidistillError, match=r"pip install 'pidistill\[demo\]'"):
        build_page(Demo(make_student(tiny_teacher())))


def test_a_port_that_is_taken_is_one_line(tmp_path):
    import socket

    make_student(tiny_teacher()).save(tmp_path / "s")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PidistillError, match=r"cannot be served at 127\.0\.0\.1"):
            run_demo(str(tmp_path / "s"), port=taken.getsockname()[1])


@pytest.fixture(scope="module")
def address():
    page = build_page(Demo(make_student(tiny_teacher()), tiny_teacher()))
    page.queue(max_size=32, default_concurrency_limit=1)
    _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, share=False, theme=make_theme(),
                            show_error=True)
    yield url
    page.close()


def wait(what, seconds: float = 30):
    """Ask until it is so; what was asked for, or an error."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come")


@pytest.mark.slow
def test_in_a_browser(browser, address):
    browser.get(address)
    run = browser.execute_script
    button = lambda words: wait(lambda: run(
        "return [...document.querySelectorAll('button')].find(b => b.textContent.trim() === arguments[0])", words))
    click = lambda words: run("arguments[0].click()", button(words))
    images = lambda: run("return [...document.querySelectorAll('#images img')].map(i => i.src)")
    click("Sample")
    assert len(wait(lambda: len(images()) >= 16 and images())) >= 16
    for _ in range(10):
        click("Sample")
    wait(lambda: "16 images in" in run("return document.body.innerText"))
    boxes = browser.find_elements("css selector", "textarea, input")
    box = next(box for box in boxes if box.get_attribute("value") == "0-15")
    box.send_keys("x")
    click("Sample")
    wait(lambda: "seeds must be numbers and ranges" in run("return document.body.innerText"))
    tab = wait(lambda: run("return [...document.querySelectorAll('[role=tab]')].find(b => b.textContent.trim() === "
                           "'From noise to image' && b.offsetParent)"))
    tab.click()
    click("Show")
    state = lambda: run("const i = document.querySelector('#state img'); return i && i.src")
    before = wait(state)
    slider = run("return document.querySelector('#time input[type=range]')")
    run("arguments[0].value = 3; arguments[0].dispatchEvent(new Event('input', {bubbles: true}));"
        "arguments[0].dispatchEvent(new Event('change', {bubbles: true}));"
        "arguments[0].dispatchEvent(new Event('pointerup', {bubbles: true}))", slider)
    wait(lambda: state() not in (None, before))
