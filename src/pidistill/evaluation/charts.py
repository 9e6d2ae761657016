"""Charts as SVG, for pages: lines over training steps, which a browser draws sharp at any size, with no library.

matplotlib (`evaluation/plots.py`) writes PNGs for documents; in a page a chart must fit a telephone, follow its dark mode
and be read aloud, so text stays text here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 300, 58, 12, 12, 34  # of the picture, and of its margins
COLOURS = ("#3b6fd4", "#d9622b", "#2f9e62", "#9b59b6", "#b8860b", "#16859c", "#c0392b", "#5d6d7e")
MOST_POINTS = 400  # points of a line; of more, as many are shown, evenly


def draw_chart(lines: Mapping[str, Points], title: str, unit: str = "", *, logarithmic: bool | None = None) -> str:
    """Draw lines of (step, value) by their names as an <svg>; an empty text where no line has two points.

    title: read aloud in place of the picture. unit: of the values.
    logarithmic: whether the values' axis is; by default where all are positive and span a factor of 20.
    """
    finite = {name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for name, points in lines.items()}
    shown = {name: thin(points) for name, points in finite.items() if len(points) > 1}
    if not shown:
        return ""
    xs, ys = ([point[k] for points in shown.values() for point in points] for k in (0, 1))
    low, high = min(ys), max(ys)
    log = low > 0 and high > 20 * low if logarithmic is None else logarithmic and low > 0
    ticks = list_ticks(low, high, log)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = min(xs), max(xs)
    scale = (lambda y: math.log10(y)) if log else (lambda y: y)
    bottom, top = scale(low), scale(high)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / ((last - first) or 1)
        up = (scale(y) - bottom) / ((top - bottom) or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks:
        _, y = place(first, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{format_tick(tick)}</text>')
    for tick in list_ticks(first, last, False):
        if first <= tick <= last:
            x, _ = place(tick, low)
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 12}" text-anchor="middle">{format_tick(tick)}</text>')
    for k, (name, points) in enumerate(shown.items()):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[k % len(COLOURS)]}" stroke-width="2">'
                     f"<title>{escape(name)}</title></polyline>")
    said = "; ".join(f"{name} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for name, points in shown.items())
    legend = "".join(f'<span><i style="background:{COLOURS[k % len(COLOURS)]}"></i>{escape(name)}</span>'
                     for k, name in enumerate(shown))
    caption = f"{escape(title)}{f', {escape(unit)}' if unit else ''} over steps"
    names = f"<div class=legend>{legend}</div>" if len(shown) > 1 else ""
    svg = f'<svg role="img" viewBox="0 0 {WIDTH} {HEIGHT}" aria-label="{escape(f"{title}: {said}")}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{caption}{names}</figcaption>{svg}</figure>"


def thin(points: Points) -> list[tuple[float, float]]:
    """Take at most MOST_POINTS points of a line, evenly, the last among them."""
    if len(points) <= MOST_POINTS:
        return list(points)
    return [points[round(k * (len(points) - 1) / (MOST_POINTS - 1))] for k in range(MOST_POINTS)]


def list_ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """List about five round numbers from about `low` to about `high`, ascending."""
    if logarithmic:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        step = max(1, len(powers) // 5)
        return [10.0**power for power in powers][::step]
    span = (high - low) or abs(high) or 1.0
    rough = span / 4
    size = 10.0 ** math.floor(math.log10(rough))
    width = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough * 0.999)
    first = math.floor(low / width + 1e-9)
    return [k * width for k in range(first, first + 7) if k * width <= high + 0.5 * width]


def format_tick(value: float) -> str:
    """Write a round number briefly: 12000 as 12k, 0.0001 as 1e-4."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    if value and abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.6g}"
