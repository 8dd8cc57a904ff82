"""Self-contained HTML pages from the templates: inline CSS, pictures as data URIs, no network."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from stages.drawing.render import png_bytes

_TEMPLATES = Path(__file__).parent / "templates"


def page(template: str, values: dict[str, Any]) -> str:
    """Fill `templates/<template>`; every value is escaped unless it is `Markup`."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"mm": millimetres, "count": count, "share": share, "size": size}
    return environment.get_template(template).render(values)


def data_uri(picture: NDArray[np.uint8]) -> str:
    """A (H, W, 3) picture as `data:image/png;base64,...`."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(picture)).decode("ascii")


def millimetres(metres: float | None) -> str:
    """12.3 from 0.0123; a dash for nothing."""
    if metres is None or not np.isfinite(metres):
        return "–"
    return f"{metres * 1000:.1f}"


def count(value: int) -> str:
    """1,234,567."""
    return f"{value:,}"


def share(value: float | None) -> str:
    """12.3 % from 0.123; small ones are not rounded to nothing."""
    if value is None or not np.isfinite(value):
        return "–"
    if value == 0:
        return "0 %"
    if 0 < value < 0.0005:
        return "< 0.1 %"
    return f"{value * 100:.1f} %"


def size(value: int) -> str:
    """1.2 GB."""
    amount = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
