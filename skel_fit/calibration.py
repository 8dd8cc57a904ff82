"""`Calibration`: residual fields of a model pair, and the file that holds those of a models folder.

A calibration belongs to the shapes and weights of its two bodies, whatever file they came from:
`body_digest` says whether it is theirs.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skel_fit.atomic import whole_file
from skel_fit.errors import ModelFileError
from skel_fit.npy_header import read_npy_header
from skel_fit.strict_npz import DAMAGE, plain_members

if TYPE_CHECKING:
    import torch
    from smplx import SMPL

    from skel_fit.skel import SKEL
    from skel_fit.solver.sandwich import Fields

CALIBRATION_FILE = "calibration.npz"
"""Its name in a models folder."""
OBSERVED = {"unknown": -1, "prior": 0, "data": 1, "limit": 2, "label": 3}
"""What an angle rests on: nothing known; prior or range; the surface; its limit; the SMPL root."""
_FORMAT = 1
_LARGEST = 32 << 20  # bytes, unpacked
_MOST_FIELDS = 1024
_DESCRIPTION = "description"


@dataclass(frozen=True)
class Calibration:
    """Residual fields of one model pair under one treatment of the root."""

    wrenches: np.ndarray  # (K,24,6) `sandwich.Fields`, float32
    pulls: np.ndarray  # (K,207) float32
    noise: float  # m^2, variance of an independent displacement of a vertex / number of vertices
    rows: int  # rows that it was measured on
    root_is_free: bool

    def fields(self, device: torch.device) -> Fields:
        """The fields as float64 tensors."""
        import torch

        from skel_fit.solver.sandwich import Fields

        return Fields(
            *(
                torch.as_tensor(part, dtype=torch.float64, device=device)
                for part in (self.wrenches, self.pulls)
            )
        )


@dataclass(frozen=True)
class CalibrationFile:
    """What `calibration.npz` holds: pairs are (SMPL gender, SKEL gender)."""

    pairs: Mapping[tuple[str, str], Calibration]
    bodies: Mapping[str, str]
    """`smpl male` and so on -> `body_digest`."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What it was measured on and with."""

    def of(self, smpl: SMPL, skel: SKEL) -> Calibration | None:
        """The calibration of these two bodies; None: none, or one of other bodies."""
        digests = {f"smpl {smpl.gender}".lower(): smpl, f"skel {skel.gender}".lower(): skel}
        found = self.pairs.get((str(smpl.gender).lower(), str(skel.gender).lower()))
        same = all(self.bodies.get(name) == body_digest(body) for name, body in digests.items())
        return found if same else None


def body_digest(body: SMPL | SKEL) -> str:
    """SHA-256 of a body's template and 10 shape directions (float32) and skin weights (0.001)."""
    if hasattr(body, "skin_weights"):
        template, weights = body.template, body.skin_weights
    else:
        template, weights = body.v_template, body.lbs_weights
    directions = body.shapedirs[:, :, :10]
    digest = hashlib.sha256()
    for part in (template, directions):
        digest.update(np.ascontiguousarray(part.detach().cpu().numpy(), "<f4").tobytes())
    # rounded: a last bit may depend on the machine that normalised them
    steps = np.rint(weights.detach().cpu().double().numpy() * 1e3)
    digest.update(steps.astype("<i2").tobytes())
    return digest.hexdigest()


def write_calibrations(path: Path, content: CalibrationFile) -> None:
    """Write `calibration.npz`, whole or not at all; same content, same bytes. Raises OSError."""
    arrays, pairs = {}, {}
    for (smpl, skel), made in sorted(content.pairs.items()):
        arrays[f"{smpl}_{skel}_wrenches"] = np.ascontiguousarray(made.wrenches, "<f4")
        arrays[f"{smpl}_{skel}_pulls"] = np.ascontiguousarray(made.pulls, "<f4")
        pairs[f"{smpl}:{skel}"] = {
            "fields": len(made.wrenches),
            "noise": made.noise,
            "root_is_free": made.root_is_free,
            "rows": made.rows,
        }
    described = {
        "bodies": dict(content.bodies),
        "format": _FORMAT,
        "pairs": pairs,
        "provenance": dict(content.provenance),
    }
    described["content_sha256"] = _digest(described, arrays)
    text = np.frombuffer(_canonical(described), np.uint8)
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **{_DESCRIPTION: text}, **arrays)
    with whole_file(path) as stream:
        stream.write(packed.getvalue())


def read_calibrations(path: Path) -> CalibrationFile:
    """Read `calibration.npz` of anybody: arrays of expected kinds, nothing is ever run.

    Raises ModelFileError: absent, damaged, or of another version.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in plain_members(archive)) > _LARGEST:
                raise ValueError(f"more than {_LARGEST >> 20} MB")
            return _parsed(archive)
    except DAMAGE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise ModelFileError(
            f"{path}: not a calibration of hmr-skel ({reason}); make it again with hmr-skel "
            "calibrate, or remove it"
        ) from error


def _parsed(archive: zipfile.ZipFile) -> CalibrationFile:
    described = json.loads(_array(archive, _DESCRIPTION, np.dtype(np.uint8)).tobytes())
    if described["format"] != _FORMAT:
        raise ValueError(f"format {described['format']!r}, this program reads {_FORMAT}")
    arrays, pairs = {}, {}
    for name, about in sorted(described["pairs"].items()):
        smpl, skel = name.split(":")
        count, noise, rows = about["fields"], about["noise"], about["rows"]
        if type(count) is not int or not 0 < count <= _MOST_FIELDS:
            raise ValueError(f"{name}: {count!r} fields")
        if type(noise) is not float or not (math.isfinite(noise) and noise >= 0.0):
            raise ValueError(f"{name}: noise {noise!r}")
        if type(rows) is not int or type(about["root_is_free"]) is not bool:
            raise ValueError(f"{name}: rows {rows!r}, root_is_free {about['root_is_free']!r}")
        for part, shape in (("wrenches", (count, 24, 6)), ("pulls", (count, 207))):
            arrays[f"{smpl}_{skel}_{part}"] = _array(
                archive, f"{smpl}_{skel}_{part}", np.dtype("<f4"), shape
            )
        wrenches, pulls = arrays[f"{smpl}_{skel}_wrenches"], arrays[f"{smpl}_{skel}_pulls"]
        pairs[smpl, skel] = Calibration(wrenches, pulls, noise, rows, about["root_is_free"])
    if described.pop("content_sha256") != _digest(described, arrays):
        raise ValueError("its content does not match its digest")
    return CalibrationFile(pairs, dict(described["bodies"]), dict(described["provenance"]))


def _array(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...] | None = None
) -> np.ndarray:
    with archive.open(f"{name}.npy") as stream:
        found, fortran, kind = read_npy_header(stream)
        if fortran or kind != dtype or (shape is not None and found != shape):
            raise ValueError(f"{name}: {kind} {found}, expected {dtype} {shape or '(any,)'}")
        data = stream.read(_LARGEST)
    values = np.frombuffer(data, dtype).reshape(found).copy()
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: values that are not finite")
    return values


def _digest(described: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(_canonical(described))
    for name in sorted(arrays):
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
