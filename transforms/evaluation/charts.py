"""Charts as small SVG texts. Colours are those of the page (CSS variables), so that they fit the light and the dark theme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 460, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 14, 46
COLOURS = 8

Points = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Axis:
    """One axis: its title and range."""

    title: str
    low: float = 0.0
    high: float = 1.0

    def ticks(self) -> list[float]:
        """Round numbers, four to seven of them."""
        span = self.high - self.low
        raw = span / 5
        power = 10.0 ** floor(log10(raw))
        step = next(each * power for each in (1, 2, 2.5, 5, 10) if each * power >= raw * 0.999)
        first = ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, floor(self.high / step + 1e-9) + 1)]


def covering(title: str, values: Sequence[float], *, zero: bool = False) -> Axis:
    """An axis that shows all `values`, with a margin; from zero if asked for."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if zero:
        low = min(low, 0.0)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return Axis(title, low if zero and low == 0 else low - room, high + room)


def lines(
    series: dict[str, Points],
    x: Axis,
    y: Axis,
    *,
    diagonal: bool = False,
    level: float | None = None,
    dots: bool = False,
) -> str:
    """Curves, each with a colour and its name below where there are several; `level` is a dashed horizontal line."""
    parts = [_frame(x, y)]
    if diagonal:
        parts.append(
            _line(
                _x(x, max(x.low, y.low)),
                _y(y, max(x.low, y.low)),
                _x(x, min(x.high, y.high)),
                _y(y, min(x.high, y.high)),
                "ref",
            )
        )
    if level is not None:
        parts.append(_line(_LEFT, _y(y, level), WIDTH - _RIGHT, _y(y, level), "ref"))
    for index, points in enumerate(series.values()):
        path = " ".join(f"{_x(x, a):.1f},{_y(y, b):.1f}" for a, b, *_ in points)
        parts.append(f'<polyline class="s{index % COLOURS}" points="{path}"/>')
        if dots:
            parts += [
                f'<circle class="f{index % COLOURS}" cx="{_x(x, a):.1f}" cy="{_y(y, b):.1f}" r="3.5"/>'
                for a, b, *_ in points
            ]
    return _svg("".join(parts), f"{y.title} by {x.title}") + (_legend(list(series)) if len(series) > 1 else "")


def dots(points: Points, x: Axis, y: Axis) -> str:
    """A scatter of points, with the diagonal."""
    low, high = max(x.low, y.low), min(x.high, y.high)
    parts = [_frame(x, y), _line(_x(x, low), _y(y, low), _x(x, high), _y(y, high), "ref")]
    parts += [f'<circle class="f0 faint" cx="{_x(x, a):.1f}" cy="{_y(y, b):.1f}" r="2.5"/>' for a, b in points]
    return _svg("".join(parts), f"{y.title} by {x.title}")


def histogram(edges: Sequence[float], rows: Sequence[float], title: str) -> str:
    """Bars between edges."""
    x, y = Axis(title, edges[0], edges[-1]), Axis("rows", 0, max(max(rows), 1) * 1.05)
    parts = [_frame(x, y)]
    for low, high, count in zip(edges, edges[1:], rows, strict=False):
        left, right, top = _x(x, low), _x(x, high), _y(y, count)
        width, height = max(right - left - 1, 0.5), _y(y, 0) - top
        parts.append(f'<rect class="f0" x="{left + 0.5:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"/>')
    if edges[0] < 0 < edges[-1]:
        parts.append(_line(_x(x, 0), _TOP, _x(x, 0), HEIGHT - _BOTTOM, "ref"))
    return _svg("".join(parts), f"rows by {title}")


def slices(rows: Sequence[tuple[str, float, Sequence[float] | None, int]], title: str, overall: float | None) -> str:
    """A dot with its interval for each slice (name, value, interval, rows); `overall` is a dashed vertical line."""
    height = 26 * len(rows) + 54
    left = 130
    values = [value for _, value, _, _ in rows] + [end for _, _, limits, _ in rows if limits for end in limits]
    x = covering(title, [*values, *([overall] if overall is not None else [])])
    if all(0 <= value <= 1 for value in values):
        x = Axis(title, max(x.low, 0.0), min(x.high, 1.0))

    def at(value: float) -> float:
        return left + (value - x.low) / (x.high - x.low) * (WIDTH - left - 70)

    parts = []
    for tick in x.ticks():
        parts.append(_line(at(tick), 8, at(tick), height - 44, "grid"))
        parts.append(_text(at(tick), height - 28, _number(tick), "middle"))
    parts.append(_text(left + (WIDTH - left - 70) / 2, height - 8, title, "middle", "axis"))
    if overall is not None:
        parts.append(_line(at(overall), 8, at(overall), height - 44, "ref"))
    for index, (name, value, limits, count) in enumerate(rows):
        y = 8 + 26 * index + 13
        shown = name if len(name) <= 18 else name[:17] + "…"
        parts.append(_text(left - 8, y + 4, shown, "end"))
        if limits:
            parts.append(_line(at(max(limits[0], x.low)), y, at(min(limits[1], x.high)), y, "s0"))
        parts.append(f'<circle class="f0" cx="{at(value):.1f}" cy="{y}" r="4.5"/>')
        parts.append(_text(WIDTH - 4, y + 4, f"{count:,}", "end", "faint"))
    return _svg("".join(parts), f"{title} by slice", height)


def _x(axis: Axis, value: float) -> float:
    return _LEFT + (value - axis.low) / (axis.high - axis.low) * (WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - _BOTTOM - (value - axis.low) / (axis.high - axis.low) * (HEIGHT - _TOP - _BOTTOM)


def _frame(x: Axis, y: Axis) -> str:
    parts = []
    for tick in x.ticks():
        parts.append(_line(_x(x, tick), _TOP, _x(x, tick), HEIGHT - _BOTTOM, "grid"))
        parts.append(_text(_x(x, tick), HEIGHT - _BOTTOM + 17, _number(tick), "middle"))
    for tick in y.ticks():
        parts.append(_line(_LEFT, _y(y, tick), WIDTH - _RIGHT, _y(y, tick), "grid"))
        parts.append(_text(_LEFT - 7, _y(y, tick) + 4, _number(tick), "end"))
    parts.append(_text(_LEFT + (WIDTH - _LEFT - _RIGHT) / 2, HEIGHT - 8, x.title, "middle", "axis"))
    middle = _TOP + (HEIGHT - _TOP - _BOTTOM) / 2
    parts.append(
        f'<text class="axis" text-anchor="middle" transform="translate(13 {middle}) rotate(-90)">{escape(y.title)}</text>'
    )
    return "".join(parts)


def _number(value: float) -> str:
    if abs(value) >= 1e6 or 0 < abs(value) < 1e-3:
        mantissa, _, power = f"{value:.2g}".partition("e")
        return f"{mantissa}e{int(power)}" if power else mantissa
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{round(value, 6):g}"


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(content: str, label: str, height: float = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}">{content}</svg>'


def _legend(names: Sequence[str]) -> str:
    shown = "".join(
        f'<span><i class="b{index % COLOURS}"></i>{escape(name)}</span>' for index, name in enumerate(names)
    )
    return f'<p class="legend">{shown}</p>'
