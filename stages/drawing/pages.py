"""Self-contained HTML pages from the templates: inline CSS, pictures as data URIs, no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from stages import wording
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
    environment.filters |= {
        "mm": wording.millimetres,
        "count": wording.count,
        "share": wording.share,
        "size": wording.size,
    }
    return environment.get_template(template).render(values)


def data_uri(picture: NDArray[np.uint8]) -> str:
    """A (H, W, 3) picture as `data:image/png;base64,...`."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(picture)).decode("ascii")


def data_uris(pictures: Sequence[tuple[str, NDArray[np.uint8]]]) -> list[tuple[str, str]]:
    """Captioned pictures for a page."""
    return [(caption, data_uri(picture)) for caption, picture in pictures]
