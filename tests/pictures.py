"""Small pictures for tests."""

from __future__ import annotations

import cv2
import numpy as np


def tiny_jpeg(seed: int) -> bytes:
    """A JPEG of 640 x 480 in one colour, another for each seed."""
    picture = np.full((480, 640, 3), (seed * 12, 255 - seed * 12, 40), np.uint8)
    done, data = cv2.imencode(".jpg", picture)
    assert done
    return data.tobytes()
