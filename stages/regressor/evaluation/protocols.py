"""Evaluation protocols as data: `protocol_files/*.yaml`, one file each, unknown keys refused.

A protocol says which label file, which body stands for the truth, which joints come out of which
regressor, what is subtracted and aligned, and what others published under it. Adding a dataset is
adding a file. Source of the shipped ones: docs/reference/evaluation.md#roots,
docs/reference/label-formats.md#eval-hmr2 and below.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.configuration import Catalogue, read_mapping, validated
from pipeline.errors import InputError
from pipeline.paths import InsideFolder, InsidePath
from stages.regressor.config import Strict
from stages.regressor.data.crops import CropRule
from stages.regressor.evaluation.metrics import PART_NAMES

PROTOCOLS = Catalogue(
    "protocol", Path("configs") / "protocols", "stages.regressor.evaluation", "protocol_files"
)

#: Points that a protocol can name -> how many there are. `posed_joints` are the model's own
#: kinematic joints, `labels_44` those of the label file, the others weights of the posed skin.
POINT_SETS = {
    "posed_joints": 24,
    "labels_44": 44,
    "keypoints_44": 44,
    "h36m_17": 17,
    "smpl_neutral_24": 24,
    "smpl_male_24": 24,
    "skel_mix_24": 24,
}
PointSet = Literal[
    "posed_joints", "labels_44", "keypoints_44", "h36m_17", "smpl_neutral_24", "smpl_male_24",
    "skel_mix_24",
]  # fmt: skip
Positions = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
_KEY = re.compile(r"[a-z0-9][a-z0-9-]*")


class Source(Strict):
    """Where the rows are.

    format: reader (`eval_readers`); files: accepted names of the label file, below the data root;
    images: folder of the images, below the data root; scale_unit: of the `scale` column, pixels or
    200 pixels; split: rows of shards to take; rows: published number of rows, for comparison.
    """

    format: Literal["hmr2", "camerahmr", "moyo", "shards"]
    files: tuple[InsidePath, ...] = ()
    images: InsideFolder = ""
    scale_unit: Literal["px", "200px"]
    split: str | None = None
    rows: int | None = None

    @model_validator(mode="after")
    def _named(self) -> Source:
        if (self.format == "shards") == bool(self.files):
            raise ValueError("files: expected for every format but shards")
        return self


class Truth(Strict):
    """What a prediction is compared with.

    body: posed `smpl` or `skel` parameters, or `keypoints` alone. gender: of the SMPL body, or
    `column`; unknown_gender: what an absent or unrecognised one means.
    """

    body: Literal["smpl", "skel", "keypoints"]
    gender: Literal["neutral", "male", "female", "column"] = "neutral"
    unknown_gender: Literal["neutral", "female"] = "neutral"


class Joints(Strict):
    """Compared points: a set for either side, and which of them (`pick`, all if absent)."""

    truth: PointSet
    prediction: PointSet
    pick: Positions | None = None


class Root(Strict):
    """What is subtracted from joints and vertices: the mean of `joints`, counted before `pick`."""

    key: str
    about: str
    joints: Positions


class Pck(Strict):
    """2D keypoints: strict thresholds in units of max(w, h) of the annotated box."""

    thresholds: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    min_confidence: Annotated[float, Field(ge=0, lt=1)]
    """A point counts if its confidence is above this."""


class JointLimits(Strict):
    """Share of predicted poses that bend elbows and knees beyond the limits by a tolerance."""

    tolerances: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]
    """Degrees."""


class Published(Strict):
    """Numbers of others, in mm and %, under this protocol as they state it."""

    method: str
    source: str
    """Paper and table."""
    values: dict[str, float]
    note: str = ""
    comparable: bool = True
    """False: the source copies it from another protocol; it gets no column beside results."""
    column: bool = False
    """A column beside results on licensed bodies; all others are on the page and in the JSON."""

    @model_validator(mode="after")
    def _columns_compare(self) -> Published:
        if self.column and not self.comparable:
            raise ValueError("column: a number that is not comparable gets none")
        return self


class EvaluationProtocol(Strict):
    """One file of `protocol_files`. See the classes above for its parts."""

    name: str
    dataset: str
    family: Literal["hmr2", "chmr", "moyo", "ours"]
    about: str
    notes: tuple[str, ...] = ()
    source: Source
    truth: Truth
    joints: Joints
    roots: tuple[Root, ...] = ()
    """The first one is the protocol's, others are reported beside it."""
    alignment: tuple[Literal["root", "similarity"], ...] = ()
    vertices: bool = False
    """Also the errors of the 6890 vertices."""
    pck: Pck | None = None
    joint_limits: JointLimits | None = None
    crop: CropRule
    focal: Literal["predicted", "patch", "labels"]
    """Focal length of the published runs, which `--focal protocol` takes: from the field-of-view
    network, 5000 on the 256-pixel patch, or the labels."""
    fov_channels: Literal["rgb", "bgr"] = "rgb"
    """Order in which the published runs gave the picture to that network
    (evaluation.md#colour-order)."""
    published: tuple[Published, ...] = ()

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not _KEY.fullmatch(name):
            raise ValueError("expected small letters, digits and dashes")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> EvaluationProtocol:
        compared = POINT_SETS[self.joints.truth]
        if compared != POINT_SETS[self.joints.prediction]:
            raise ValueError("joints: truth and prediction name sets of different size")
        if (self.truth.body == "keypoints") != (self.joints.truth == "labels_44"):
            raise ValueError("joints.truth: labels_44 goes with truth.body keypoints, and only so")
        if self.joints.prediction == "labels_44":
            raise ValueError("joints.prediction: labels_44 is no prediction")
        for name, positions in (
            ("joints.pick", self.joints.pick or ()),
            *((f"roots.{root.key}", root.joints) for root in self.roots),
        ):
            if any(position >= compared for position in positions):
                raise ValueError(f"{name}: a position is beyond the {compared} joints")
        if "root" in self.alignment and not self.roots:
            raise ValueError("alignment root needs roots")
        if self.vertices and self.truth.body == "keypoints":
            raise ValueError("vertices: keypoints have none")
        if not (self.alignment or self.pck or self.joint_limits):
            raise ValueError("nothing to measure: give alignment, pck or joint_limits")
        known = set(self.metrics)
        columns = [row.method for row in self.published if row.column]
        if len(set(columns)) < len(columns):
            raise ValueError(f"published: two columns of one method: {', '.join(columns)}")
        for row in self.published:
            if unknown := sorted(set(row.values) - known):
                raise ValueError(
                    f"published '{row.method}': {', '.join(unknown)} not among the metrics "
                    f"{', '.join(sorted(known))}"
                )
        return self

    @property
    def point_metrics(self) -> tuple[str, ...]:
        """Errors in millimetres: mpjpe, pve, pa_mpjpe, pa_pve; `mpjpe@key` for further roots."""
        kinds = ("mpjpe", "pve") if self.vertices else ("mpjpe",)
        names: list[str] = []
        if "root" in self.alignment:
            names += kinds
        if "similarity" in self.alignment:
            names += [f"pa_{kind}" for kind in kinds]
        if "root" in self.alignment:
            names += [f"{kind}@{root.key}" for root in self.roots[1:] for kind in kinds]
        return tuple(names)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Keys of all numbers: errors in mm; `pck@0.05` and `left_knee>10` in %; keypoint_l2."""
        names = list(self.point_metrics)
        if self.pck:
            names += [pck_name(threshold) for threshold in self.pck.thresholds]
            names.append("keypoint_l2")
        if self.joint_limits:
            names += [
                limit_name(part, tolerance)
                for tolerance in self.joint_limits.tolerances
                for part in PART_NAMES
            ]
        return tuple(names)

    def data(self) -> dict[str, Any]:
        """The definition without published numbers, as plain values: what a result records."""
        return self.model_dump(mode="json", exclude={"published"})


def pck_name(threshold: float) -> str:
    """Key of a PCK."""
    return f"pck@{threshold:g}"


def limit_name(part: str, tolerance: float) -> str:
    """Key of a violation rate; tolerance in degrees."""
    return f"{part}>{tolerance:g}"


def protocol_files() -> dict[str, Path]:
    """Name -> file; ./configs/protocols wins over the package."""
    return PROTOCOLS.files()


def load_protocol(name_or_path: str | Path) -> EvaluationProtocol:
    """A protocol by name, or from a YAML file.

    Raises:
        UsageError: no such name.
        InputError: the file is not a valid protocol; says which key and why.
    """
    path = PROTOCOLS.find(name_or_path)
    protocol = validated(EvaluationProtocol, read_mapping(path), path)
    if path != Path(name_or_path) and protocol.name != str(name_or_path):
        raise InputError(f"{path}: name '{protocol.name}', expected that of the file")
    return protocol
