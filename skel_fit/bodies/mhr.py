"""MHR from the TorchScript file of its users: parameters → meshes.

Source: docs/reference/label-formats.md#sam-3d-labels. TorchScript is code that runs: only a file
that the user names is loaded.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skel_fit.crew import each, rows_over_threads
from skel_fit.errors import ModelFileError

VERTICES = 18_439
PARAMETERS, SHAPES, EXPRESSIONS = 204, 45, 72
_CAMERA = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
_CENTIMETRES = 100.0


def mhr_meshes(path: Path, parameters: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Meshes (n, 18439, 3), metres, float64: x right, y down, z forward.

    path: of the TorchScript file. parameters: (n, 204) MHR's model parameters, translation first;
    shapes: (n, 45). Rows are evaluated one by one, each as if it were alone. Raises ModelFileError:
    no such file, or not MHR.
    """
    model = _loaded(str(path))
    if not len(parameters):
        return np.empty((0, VERTICES, 3))
    numbers = [torch.as_tensor(np.ascontiguousarray(v, np.float32)) for v in (parameters, shapes)]
    rows = list(zip(*(values.split(1) for values in numbers), strict=True))
    with torch.no_grad(), rows_over_threads():
        found = list(each(lambda row: _mesh(path, model, *row), rows, torch.device("cpu")))
    return torch.stack(found).numpy()


def _mesh(path: Path, model: Any, parameters: torch.Tensor, shapes: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        try:
            made = model(shapes, parameters, torch.zeros(1, EXPRESSIONS))
            vertices = made[0] if isinstance(made, tuple | list) else made
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise _not_mhr(path, " ".join(str(error).split())[:120]) from error
    if not isinstance(vertices, torch.Tensor) or vertices.shape != (1, VERTICES, 3):
        raise _not_mhr(path, f"made {getattr(vertices, 'shape', type(vertices).__name__)}")
    return vertices[0].double() / _CENTIMETRES * _CAMERA


@cache
def _loaded(path: str) -> Any:
    try:
        return torch.jit.load(path, map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise _not_mhr(Path(path), " ".join(str(error).split())[:120]) from error


def _not_mhr(path: Path, reason: str) -> ModelFileError:
    return ModelFileError(
        f"{path}: not MHR's TorchScript model ({reason}); expected one that makes ({VERTICES}, 3) "
        f"vertices of {SHAPES} shape, {PARAMETERS} model and {EXPRESSIONS} expression parameters "
        "(mhr_model.pt of MHR's assets)"
    )
