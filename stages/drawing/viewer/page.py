"""The page of `hmr-skel view`: one HTML file, no external address."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from stages.drawing.pages import page
from stages.drawing.pictures import ERROR_COLORS
from stages.drawing.render import SKIN_COLOR, TARGET_COLOR
from stages.drawing.viewer.encoding import Packed, Packer, Surface, pack

_HEIGHTS = 200_000
"""Heights of the skin that say where the ground is, at most (about)."""
_BONES = (0.97, 0.96, 0.94)
"""Whiter than on the pictures of reports: the lights of the page are warmer."""


@dataclass(frozen=True)
class Curves:
    """Angles through time.

    names: of the angles; degrees: (F, A), NaN where unknown; lower, upper: (A,) degrees, infinite
    where there is no limit; active: (F, A) the angle lies on a limit; sd: (F, A) degrees or None;
    opened: indices that are shown at first.
    """

    names: tuple[str, ...]
    degrees: NDArray[np.floating]
    lower: NDArray[np.floating]
    upper: NDArray[np.floating]
    active: NDArray[np.bool_]
    sd: NDArray[np.floating] | None
    opened: tuple[int, ...]


@dataclass(frozen=True)
class Scene:
    """What a page plays.

    title, about: heading and one line; labels: (F) text of each frame; times: (F,) x axis of the
    curves, in `unit`; rate: frames a second; surfaces: `skin`, `bones` and perhaps `target`;
    roots: (F, 3) what `follow` holds still; up, front: unit vectors, away from the ground and from
    the person's chest; independent: rows are unrelated people, so the view follows them;
    standin: made with the licence-free bodies.
    """

    title: str
    about: str
    labels: tuple[str, ...]
    times: NDArray[np.floating]
    unit: str
    rate: float
    surfaces: tuple[Surface, ...]
    roots: NDArray[np.floating]
    up: NDArray[np.floating]
    front: NDArray[np.floating]
    curves: Curves
    independent: bool
    standin: bool


@dataclass(frozen=True)
class Written:
    """A page and what its packing costs: (mean, largest) deviation of each surface, metres."""

    html: str
    deviations: dict[str, tuple[float, float]]


def scene_page(scene: Scene) -> Written:
    """Write a scene as HTML."""
    packer = Packer()
    packed = [pack(surface, packer) for surface in scene.surfaces]
    header = _header(scene, packed, packer)
    deviations = {item.description["name"]: (item.mean, item.largest) for item in packed}
    html = page(
        "view.html.j2",
        {
            "title": scene.title,
            "about": scene.about,
            "standin": scene.standin,
            "independent": scene.independent,
            "has_target": any(surface.name == "target" for surface in scene.surfaces),
            "has_sd": scene.curves.sd is not None,
            "unit": scene.unit,
            "deviations": [(name, *values) for name, values in deviations.items()],
            "legend": legend(),
            "header": Markup(_inline_json(header)),
            "data": Markup(base64.b64encode(gzip.compress(packer.bytes(), 9, mtime=0)).decode()),
            "script": Markup(bundle()),
        },
    )
    return Written(html, deviations)


def bundle() -> str:
    """The page's script; `tools/viewer` makes it."""
    return resources.files("stages.drawing.viewer").joinpath("bundle.js").read_text("utf-8")


def legend() -> list[tuple[str, str]]:
    """Residual colours for a page: (text, CSS colour)."""
    return [(f"{1000 * stop:.0f}", _css(color)) for stop, color in ERROR_COLORS]


def _header(scene: Scene, packed: list[Packed], packer: Packer) -> dict[str, Any]:
    curves = scene.curves
    arrays = {
        "angles": packer.add(curves.degrees, "f4"),
        "active": packer.add(curves.active, "u1"),
    }
    if curves.sd is not None:
        arrays["sd"] = packer.add(curves.sd, "f4")
    skin = next(surface for surface in scene.surfaces if surface.name == "skin")
    side = np.cross(scene.up, scene.front)
    return {
        "frames": len(scene.labels),
        "rate": scene.rate,
        "moving": not scene.independent,
        "labels": scene.labels,
        "times": _numbers(scene.times),
        "layers": [item.description for item in packed],
        "arrays": arrays,
        "angle_names": curves.names,
        "limits": list(zip(_numbers(curves.lower), _numbers(curves.upper), strict=True)),
        "opened": curves.opened,
        "roots": np.round(scene.roots, 5).tolist(),
        "up": scene.up.tolist(),
        "views": {
            "front": _unit(scene.front + 0.12 * scene.up),
            "side": _unit(side + 0.05 * scene.up),
            "top": _unit(scene.up + 0.02 * scene.front),
        },
        "ground": _ground(skin, scene.up),
        "colors": {"skin": SKIN_COLOR, "bones": _BONES, "target": TARGET_COLOR},
        "residual_colors": ERROR_COLORS,
    }


def _ground(skin: Surface, up: NDArray) -> dict[str, Any]:
    """A plane below all frames (robustly: the first per cent of heights may be lower)."""
    frames, count = skin.vertices.shape[:2]
    step = max(1, frames * count // _HEIGHTS)
    low, high, heights = np.full(3, np.inf), np.full(3, -np.inf), []
    for frame in range(frames):
        points = np.asarray(skin.vertices[frame], np.float64)
        low, high = np.minimum(low, points.min(axis=0)), np.maximum(high, points.max(axis=0))
        heights.append(points[-frame * count % step :: step] @ up)
    middle = (low + high) / 2
    spread = float(np.linalg.norm((high - low) * (1 - np.abs(up))))
    at = middle + (float(np.quantile(np.concatenate(heights), 0.001)) - float(middle @ up)) * up
    return {"at": np.round(at, 4).tolist(), "size": int(np.clip(np.ceil(spread + 1.0), 2, 40))}


def _numbers(values: NDArray) -> list[float | None]:
    return [round(float(v), 4) if np.isfinite(v) else None for v in np.asarray(values)]


def _unit(vector: NDArray) -> list[float]:
    return (vector / np.linalg.norm(vector)).tolist()


def _css(color: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * value):02x}" for value in color)


def _inline_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")
