"""The two networks that find a person and 33 landmarks: their files, digests, and how they run.

BlazePose of MediaPipe 0.10.14, Apache-2.0 (NOTICE; docs/reference/blazepose.md#networks). The files
are in the package; `ai-edge-litert` of the extra `photo` runs them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.extras import require
from stages.terminal import unheard

EXTRA = "photo"
_FOLDER = Path(__file__).parent / "networks"
DIGESTS: Mapping[str, str] = {
    "pose_detection": "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
    "pose_landmark_full": "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
}
"""Name of each network -> SHA-256 of its file."""


class Network:
    """One network, one picture at a time. Not for several threads at once."""

    def __init__(self, name: str, folder: Path = _FOLDER) -> None:
        """Load one of `DIGESTS`.

        Raises:
            InputError: its file is missing or is not the one that everything was measured with.
            UsageError: the extra `photo` is not installed.
        """
        runtime = require("ai_edge_litert.interpreter", EXTRA)
        content = _checked(folder / f"{name}.tflite", DIGESTS[name])
        # One thread: a picture then gives the same bits on every number of cores.
        with unheard():
            self._interpreter = runtime.Interpreter(model_content=content, num_threads=1)
            self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        outputs = self._interpreter.get_output_details()
        self._outputs = {output["name"]: output["index"] for output in outputs}

    def __call__(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by their names for the input (1, H, W, 3) float32."""
        self._interpreter.set_tensor(self._input, values)
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(index) for name, index in self._outputs.items()}


def _checked(path: Path, digest: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); install hmr-skel again"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise InputError(
            f"{path}: is not the network that belongs here (SHA-256 {found[:12]}..., expected "
            f"{digest[:12]}...); install hmr-skel again"
        )
    return content
