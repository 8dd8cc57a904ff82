"""Small charts as inline SVG; colours come from the page's CSS variables (light and dark)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 760, 230, 46, 40, 22
_BARS = 60


def histogram(
    counts: NDArray[np.integer], edges: NDArray, marks: Mapping[str, float], label: str
) -> Markup:
    """Bars over `edges` (len(counts) + 1) with named vertical marks and an axis label."""
    low, high, top = float(edges[0]), float(edges[-1]), max(int(counts.max(initial=0)), 1)
    plot_width, plot_height = _WIDTH - _LEFT - 10, _HEIGHT - _BOTTOM - _TOP

    def x_of(value: float) -> float:
        return _LEFT + plot_width * (value - low) / (high - low)

    def y_of(count: float) -> float:
        return _TOP + plot_height * (1 - count / top)

    parts = []
    for value in ticks(0, top, 4):
        y = y_of(value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(_text(_LEFT - 6, y + 4, f"{value:,.0f}", "end"))
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            x, y = x_of(left), y_of(count)
            width = max(x_of(right) - x - 0.8, 0.4)
            parts.append(
                f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
                f'height="{_TOP + plot_height - y:.1f}"><title>{left:.1f} to {right:.1f}: '
                f"{count:,}</title></rect>"
            )
    for value in ticks(low, high, 8):
        parts.append(_text(x_of(value), _TOP + plot_height + 16, f"{value:g}", "middle"))
    parts.append(_text(_LEFT + plot_width / 2, _HEIGHT - 6, label, "middle"))
    for level, (name, value) in enumerate(sorted(marks.items(), key=lambda item: item[1])):
        x = x_of(min(value, high))
        parts.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 4}" '
            f'y2="{_TOP + plot_height}"/>'
        )
        parts.append(_text(x + 4, _TOP + 8 + 13 * level, f"{name} {value:.1f}", "start", "marked"))
    return _svg(_WIDTH, _HEIGHT, parts, f"Histogram, {label}")


def distribution(values: NDArray[np.float64], label: str, *, axis: float) -> Markup | None:
    """Histogram of finite values >= 0 with median and p95; None where nothing could be seen.

    axis: the share of the values up to which the axis goes; the last bar holds all beyond.
    """
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    top = max(float(np.quantile(values, axis)) * 1.05, 1e-3)
    edges = np.linspace(0.0, top, _BARS + 1)
    counts, _ = np.histogram(np.minimum(values, top), bins=edges)
    marks = {"median": float(np.median(values)), "p95": float(np.quantile(values, 0.95))}
    return histogram(counts, edges, marks, label)


def strip(
    counts: NDArray[np.integer], low: float, high: float, limits: tuple[float, float]
) -> Markup:
    """A density over [low, high] on one line, limits as ticks and the forbidden range shaded."""
    width, height = 300, 26
    total = max(int(counts.max(initial=0)), 1)
    step = width / len(counts)

    def x_of(value: float) -> float:
        return width * (min(max(value, low), high) - low) / (high - low)

    parts = []
    first, last = (x_of(value) for value in limits)
    if first > 0:
        parts.append(f'<rect class="outside" x="0" y="0" width="{first:.1f}" height="{height}"/>')
    if last < width:
        parts.append(
            f'<rect class="outside" x="{last:.1f}" y="0" width="{width - last:.1f}" '
            f'height="{height}"/>'
        )
    zero = x_of(0.0)
    parts.append(f'<line class="grid" x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="{height}"/>')
    # The square root keeps thin tails visible.
    heights = np.sqrt(counts / total) * (height - 2)
    path = "".join(
        f"M{index * step:.1f} {height}v{-value:.1f}h{step:.1f}V{height}z"
        for index, value in enumerate(heights)
        if value
    )
    parts.append(f'<path class="bar" d="{path}"/>')
    return _svg(width, height, parts, "Distribution of the angle", css="strip")


def curve(
    times: NDArray, values: NDArray, low: float, high: float, title: str, unit: str
) -> Markup:
    """A line over time with limits (dashed where they are near); gaps where values are not finite.

    times: (n,) seconds; values: (n,) in `unit`.
    """
    width, height, left, bottom, top = 380, 150, 44, 22, 22
    finite = np.isfinite(values)
    if not finite.any():
        return _svg(width, height, [_text(width / 2, height / 2, "no values", "middle")], title)
    floor, roof = float(values[finite].min()), float(values[finite].max())
    room = max(4.0, 0.35 * (roof - floor))
    marks = [edge for edge in (low, high) if floor - room < edge < roof + room]
    floor, roof = min([floor, *marks]) - room / 6, max([roof, *marks]) + room / 6
    first, last = float(times[0]), float(times[-1])

    def x_of(time: float) -> float:
        return left + (width - left - 8) * (time - first) / max(last - first, 1e-9)

    def y_of(value: float) -> float:
        return top + (height - top - bottom) * (roof - value) / (roof - floor)

    parts = [_text(left, 14, title, "start", "marked-title")]
    for value in ticks(floor, roof, 3):
        y = y_of(value)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - 8}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 5, y + 4, f"{value:g}{unit}", "end"))
    for value in ticks(first, last, 5):
        parts.append(_text(x_of(value), height - 6, f"{value:g} s", "middle"))
    for value in marks:
        y = y_of(value)
        parts.append(f'<line class="mark" x1="{left}" x2="{width - 8}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for part in np.split(np.arange(len(values)), np.flatnonzero(np.diff(finite)) + 1):
        if finite[part[0]]:
            points = " ".join(f"{x_of(times[i]):.1f},{y_of(values[i]):.1f}" for i in part)
            parts.append(f'<polyline class="line" points="{points}"/>')
    return _svg(width, height, parts, title, "curve")


def ticks(low: float, high: float, wanted: int) -> Sequence[float]:
    """About `wanted` round values within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    size = 10.0 ** np.floor(np.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.999)
    first = np.ceil(low / step - 1e-9) * step
    return [float(value) + 0.0 for value in np.arange(first, high + step * 1e-6, step)]  # no -0


def _text(x: float, y: float, text: str, anchor: str, css: str = "tick") -> str:
    return (
        f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _svg(width: int, height: int, parts: Sequence[str], title: str, css: str = "chart") -> Markup:
    return Markup(
        f'<svg class="{css}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}">' + "".join(parts) + "</svg>"
    )
