"""The frozen, hashed work list. Everything that can change a byte of the result is in it.

`plan_id` is the SHA-256 of the plan's canonical JSON. A run directory belongs to one plan for ever.
Source: docs/reference/pipeline.md#resume.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from pipeline.configuration import validated
from pipeline.errors import InputError, PlanMismatch
from pipeline.output_files import canonical_json, pretty_json, read_json
from pipeline.paths import stays_inside
from pipeline.provenance import FileRecord, sha256_json
from skel_fit.recipe import FitRequest

SCHEMA_VERSION = 3
_READABLE = (1, 2, SCHEMA_VERSION)
"""1: shards without a seal, receipts without a digest; every open reads their whole bytes. 2: no
calibration, no standard deviations."""
CARRIED_KINDS = "biufSUc"
"""numpy kinds of the original columns that shards hold."""


@dataclass(frozen=True)
class ModelRecord:
    """A body-model file that a run uses. `kind` is `smpl` or `skel`."""

    kind: str
    gender: str
    name: str
    size: int
    sha256: str
    standin: bool


@dataclass(frozen=True)
class CalibrationRecord:
    """The file of residual fields that standard deviations rest on.

    pairs: `smpl:skel` genders of this plan whose bodies it was measured on.
    """

    name: str
    size: int
    sha256: str
    pairs: tuple[str, ...]
    root_is_free: bool


@dataclass(frozen=True)
class BodyRecord:
    """The body of the labels, where it is not SMPL, and the map from its surface to SKEL's.

    vertices: of bare meshes; None: labels are parameters. map_name: file of the map, empty where
    the body has SKEL's own triangles. map_sha256: of the map's content.
    """

    name: str
    vertices: int | None
    map_name: str
    map_sha256: str
    licence: str


@dataclass(frozen=True)
class IdentityRecord:
    """Shapes of the people in the labels: how many; SHA-256 of the content of `identities.npz`."""

    count: int
    sha256: str


@dataclass(frozen=True)
class StoredField:
    """An original column: the name it has in the shards, its source name, dtype and row shape."""

    stored: str
    source: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What to convert, with what, cut into which shards."""

    name: str
    rows: int
    shard_rows: int
    compression: str
    source_format: str
    source_options: dict[str, Any]
    source_files: tuple[FileRecord, ...]
    smpl_gender: str
    skel_gender: str
    image_root: str
    fields: tuple[StoredField, ...]
    models_kind: str
    models: tuple[ModelRecord, ...]
    fitter: str
    fit: dict[str, Any]
    code: dict[str, str]
    software: dict[str, str]
    calibration: CalibrationRecord | None = None
    body: BodyRecord | None = None
    identities: IdentityRecord | None = None
    """None: labels of SMPL, or shapes that are not found yet."""
    schema_version: int = field(default=SCHEMA_VERSION)

    def to_json(self) -> dict[str, Any]:
        content = asdict(self)
        if self.schema_version < 3:
            del content["calibration"]
        if self.body is None:
            del content["body"], content["identities"]
        return content

    @cached_property
    def plan_id(self) -> str:
        return sha256_json(self.to_json())

    @cached_property
    def request(self) -> FitRequest:
        """The fit, typed.

        Raises:
            InputError: options that this version does not know.
        """
        return validated(FitRequest, self.fit, f"plan of '{self.name}', fit")

    @property
    def sealed(self) -> bool:
        """Whether shards and receipts of this plan carry digests of their own."""
        return self.schema_version >= 2

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    def rows_of(self, shard: int) -> tuple[int, int]:
        """Half-open source row range of a shard."""
        if not 0 <= shard < self.shards:
            raise InputError(f"shard {shard} does not exist; the plan has {self.shards}")
        start = shard * self.shard_rows
        return start, min(start + self.shard_rows, self.rows)

    def to_bytes(self) -> bytes:
        """The content of `plan.json`."""
        return pretty_json({"plan_id": self.plan_id, "plan": self.to_json()})


_PLAN = TypeAdapter(Plan)


def read_plan(path: Path) -> Plan:
    """Read `plan.json` and check that it still hashes to its own id.

    Raises:
        InputError: damaged, edited, or of another schema version.
    """
    content = read_json(path)
    try:
        body = content["plan"]
        version = body["schema_version"]
        if type(version) is not int or version not in _READABLE:
            raise InputError(
                f"{path}: schema version {version}, this program reads 1 to {SCHEMA_VERSION}; "
                "use the version of hmr-skel that wrote it"
            )
        plan = _PLAN.validate_json(canonical_json(body), strict=True)
        intact = plan.plan_id == content["plan_id"]
    except (KeyError, TypeError, AttributeError, ValueError):  # pydantic's are ValueErrors
        intact = False
    if not intact:
        raise InputError(
            f"{path}: damaged or edited (its content does not hash to its plan id); "
            "restore it, or convert into another directory"
        )
    _check_names(path, plan)
    return plan


def _check_names(path: Path, plan: Plan) -> None:
    """Names in a plan are single path components or lie inside their root, and counts are counts.

    A plan hashes to its own id whoever wrote it.
    """
    files = [file.name for file in plan.source_files] + [model.name for model in plan.models]
    wrong = [name for name in files if "/" in name or name in (".", "..") or not stays_inside(name)]
    if plan.calibration is not None and "/" in plan.calibration.name:
        wrong.append(plan.calibration.name)
    if plan.body is not None and "/" in plan.body.map_name:
        wrong.append(plan.body.map_name)
    if plan.image_root and not stays_inside(plan.image_root):
        wrong.append(plan.image_root)
    for stored in plan.fields:
        if "/" in stored.stored or stored.stored in ("", ".", ".."):
            wrong.append(stored.stored)
        if _dtype(stored.dtype).kind not in CARRIED_KINDS or min(stored.shape, default=0) < 0:
            wrong.append(f"{stored.source}: {stored.dtype} {stored.shape}")
    if plan.rows < 0 or plan.shard_rows < 1 or not plan.source_files:
        wrong.append(f"{plan.rows} rows, {plan.shard_rows} a shard")
    if wrong:
        raise InputError(f"{path}: not a plan of hmr-skel: {wrong[0]!r}; do not use this folder")


def _dtype(text: str) -> np.dtype:
    try:
        return np.dtype(text)
    except TypeError:
        return np.dtype(object)  # a kind that no shard carries


def check_same_plan(old: Plan, new: Plan, directory: Path) -> None:
    """Refuse to mix two plans in one directory.

    Raises:
        PlanMismatch: names every differing field and spells out the choice.
    """
    if old.plan_id == new.plan_id:
        return
    fields = tuple(differences(old.to_json(), new.to_json()))
    raise PlanMismatch(
        f"{directory} was made with another plan; differing: {', '.join(fields)}. "
        "Either restore what changed and rerun, or convert into another directory (--out), "
        f"or remove {directory} to start again",
        fields,
    )


def differences(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """Dotted names of the leaves that differ between two JSON values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            inner = f"{place}.{key}" if place else str(key)
            if key in old and key in new:
                yield from differences(old[key], new[key], inner)
            else:
                yield inner
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple):
        if len(old) != len(new):
            yield place
            return
        for index, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from differences(left, right, f"{place}.{index}")
    elif type(old) is not type(new) or old != new:
        yield place
