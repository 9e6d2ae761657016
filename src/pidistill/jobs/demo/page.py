"""The page of `pidistill demo`, made with gradio: it asks `Demo` for pictures, and shows a line where a request is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pidistill.core.errors import PidistillError
from pidistill.core.processes import choose_device
from pidistill.core.profiles import Average
from pidistill.evaluation.pictures import check_drawable
from pidistill.files.folders import ASSETS
from pidistill.jobs.demo.draw import TIMES, Demo
from pidistill.models.load import load_model, load_pair, read_teacher_spec
from pidistill.models.student import Student
from pidistill.nets.base import Own

WAITING = 32  # requests in the queue, at most
BUNDLED = ASSETS / "digits" / "student"


def run_demo(spec: str | None = None, *, teacher: str | None = None, host: str = "127.0.0.1", port: int | None = None,
             ema: Average | None = None, net: Own | None = None, device: str = "auto", browser: bool = False) -> None:
    """Serve the page until Ctrl-C.

    spec: of the student, by default the bundled one.
    teacher: its spec, by default the one that the student says; `none` shows the student alone.
    host, port: where the page is; 127.0.0.1 is this machine alone. By default the first free port from 7860.
    ema, net: as `load_student` takes them. device: as `choose_device` takes it.
    browser: whether it is opened in a browser.

    Raises PidistillError without gradio, for a teacher in the student's place, and for a port that is taken.
    """
    page = build_page(load_demo(spec, teacher, ema, net, device))
    try:
        page.queue(max_size=WAITING, default_concurrency_limit=1)
        page.launch(server_name=host, server_port=port, inbrowser=browser, share=False, show_error=True, quiet=False,
                    theme=make_theme(), footer_links=[])
    except OSError as error:
        raise PidistillError(f"the page cannot be served at {host}:{port or '7860-7959'}: {error}") from None


def load_demo(spec: str | None, teacher: str | None, ema: Average | None = None, net: Own | None = None,
              device: str = "auto") -> Demo:
    """Load a student and its teacher for a page. Parameters: `run_demo`."""
    spec, target = spec or str(BUNDLED), choose_device(device)
    alone = teacher == "none" or (teacher is None and read_teacher_spec(spec) is None)
    if alone:
        student = load_model(spec, ema, net)
        if not isinstance(student, Student):
            raise PidistillError(f"{spec} is a teacher; a student was expected")
        check_drawable(student.image_shape)
        return Demo(student.to(target))
    student, denoiser = load_pair(spec, teacher, ema, net)
    check_drawable(student.image_shape)
    return Demo(student.to(target), denoiser.to(target))


def import_gradio() -> Any:
    """Import gradio. Raises PidistillError with what to install."""
    try:
        import gradio
    except ImportError:
        raise PidistillError("this needs gradio, which is not installed: pip install 'pidistill[demo]'") from None
    return gradio


def make_theme() -> Any:
    """Make a theme of this machine's own fonts: nothing is fetched."""
    gradio = import_gradio()
    return gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])


def guard(gradio: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a page show the line of what was wrong with a request."""
    def call(*values: Any) -> Any:
        try:
            return function(*values)
        except PidistillError as error:
            raise gradio.Error(str(error), title="That cannot be drawn") from None
    return call


def build_page(demo: Demo) -> Any:
    """Build the page, gradio's Blocks: samples, trajectory, one step against many, interpolation."""
    gradio = import_gradio()
    student, name = demo.student, demo.student.net_spec.get("name")
    size = " x ".join(map(str, student.image_shape))
    with gradio.Blocks(title="pidistill", analytics_enabled=False) as page:
        gradio.Markdown(f"# One-step student\n{size}, {student.num_classes or 'no'} classes, network {name}, form "
                        f"{student.form}. Same noise, same image: a seed gives the same image everywhere.")

        def choose_class() -> Any:
            return gradio.Dropdown(demo.classes or ["none"], value=(demo.classes or ["none"])[0], label="Class",
                                   interactive=bool(demo.classes), visible=bool(demo.classes))

        def bind(button: Any, function: Callable[..., Any], inputs: list[Any], outputs: list[Any], name: str) -> None:
            bare = lambda *values: function(*(None if value == "none" else value for value in values))
            button.click(guard(gradio, bare), inputs, outputs, api_name=name)

        with gradio.Tab("Samples"):
            with gradio.Row():
                seeds, label = gradio.Textbox("0-15", label="Seeds, such as 0-15,40"), choose_class()
            button = gradio.Button("Sample", variant="primary", elem_id="sample")
            gallery = gradio.Gallery(label="Images", columns=8, object_fit="contain", height="auto", format="png",
                                     elem_id="images", buttons=["download"])
            words = gradio.Markdown()
            bind(button, demo.sample, [seeds, label], [gallery, words], "sample")
        with gradio.Tab("From noise to image"):
            with gradio.Row():
                seed, label = gradio.Number(0, label="Seed", precision=0, minimum=0), choose_class()
            point = gradio.Slider(0, TIMES - 1, value=TIMES - 1, step=1, label="Along the trajectory, from noise to image",
                                  elem_id="time")
            with gradio.Row():
                ours = gradio.Image(label="Student, one call", format="png", elem_id="state", buttons=["download"])
                theirs = gradio.Image(label="Teacher", format="png", visible=demo.teacher is not None, buttons=["download"])
            words = gradio.Markdown()
            show = guard(gradio, lambda seed, label, point: demo.show_state(seed, None if label == "none" else label, point))
            for part in (point.change, seed.submit, label.change):
                part(show, [seed, label, point], [ours, theirs, words], api_name=False, show_progress="hidden")
            button = gradio.Button("Show", variant="primary")
            button.click(show, [seed, label, point], [ours, theirs, words], api_name="trajectory")
        if demo.teacher is not None:
            with gradio.Tab("One step against many"):
                with gradio.Row():
                    seed, label = gradio.Number(0, label="Seed", precision=0, minimum=0), choose_class()
                    sampler = gradio.Textbox("heun:18", label="Teacher's sampler")
                button = gradio.Button("Draw both", variant="primary")
                with gradio.Row():
                    with gradio.Column():
                        first, fast = gradio.Image(label="Student", format="png", buttons=["download"]), gradio.Markdown()
                    with gradio.Column():
                        second, slow = gradio.Image(label="Teacher", format="png", buttons=["download"]), gradio.Markdown()
                bind(button, demo.compare, [seed, label, sampler], [first, fast, second, slow], "compare")
        with gradio.Tab("Between two noises"):
            with gradio.Row():
                one, two = gradio.Number(0, label="From seed", precision=0), gradio.Number(1, label="To seed", precision=0)
                label = choose_class()
            button = gradio.Button("Interpolate", variant="primary")
            row, words = gradio.Image(label="Images", format="png", buttons=["download"]), gradio.Markdown()
            bind(button, demo.interpolate, [one, two, label], [row, words], "interpolate")
    return page
