"""How to fit, as data: stages in YAML (`recipes/`), and the options of a fit."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from skel_fit.anatomy import NUM_PARAMETERS, PARAMETER_GROUPS, POSE_NAMES
from skel_fit.strict_yaml import parse_yaml

RECIPES = Path(__file__).parent / "recipes"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VertexMask(_Frozen):
    """Vertices by the SMPL model's own skinning weights: any listed joint above the threshold."""

    smpl_joints: tuple[Annotated[int, Field(ge=0, lt=24)], ...]
    above: float = 0.5
    invert: bool = False

    def select(self, smpl_weights: np.ndarray) -> np.ndarray:
        """(V,) bool from the SMPL skinning weights (V, 24)."""
        inside: np.ndarray = np.any(smpl_weights[:, list(self.smpl_joints)] > self.above, axis=1)
        return inside != self.invert


class Stage(_Frozen):
    """One stage: which parameters move, what they look at, how long.

    The objective of a stage is, in m^2: mean over its vertices of the squared distance, plus
    joint_weight / 72 times the sum over `joints` of the squared distance to the anatomical joints
    regressed from the target, plus the priors of `FitConfig`. (That of
    docs/reference/fitting.md#published-objective divided by its vertex weight.)
    """

    name: str
    parameters: tuple[str, ...] = Field(min_length=1)
    frozen: tuple[str, ...] = ()
    vertices: VertexMask | None = None
    stride: int = Field(default=1, ge=1)
    represents: bool = False
    """A vertex of the stride counts for all that are nearest to it, so that the optimum of the few
    is nearly that of all."""
    joints: tuple[Annotated[int, Field(ge=0, lt=24)], ...] = ()
    joint_weight: float = Field(default=0.0, ge=0.0)
    rounds: int = Field(ge=1, le=200)
    """At most so many evaluations of the stage's vertices; the last stage goes in pairs of steps,
    and judging what it ends with comes on top."""
    steps: int = Field(default=4, ge=1, le=100)
    """At most so many Levenberg-Marquardt steps between two evaluations."""
    tolerance: float = Field(default=1e-2, gt=0.0)
    """Largest parameter change (rad) of a round after which a row is settled."""

    @field_validator("parameters", "frozen")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in PARAMETER_GROUPS and name not in POSE_NAMES:
                raise ValueError(
                    f"unknown parameter {name!r}: give a group {sorted(PARAMETER_GROUPS)} or one "
                    "of the 46 pose names"
                )
        return names

    def free_parameters(self) -> np.ndarray:
        """(49,) bool."""
        free = np.zeros(NUM_PARAMETERS, bool)
        for names, value in ((self.parameters, True), (self.frozen, False)):
            for name in names:
                if name in PARAMETER_GROUPS:
                    free[list(PARAMETER_GROUPS[name])] = value
                else:
                    free[POSE_NAMES.index(name)] = value
        return free


class RootTrust(_Frozen):
    """How far a free root may leave the one that follows from SMPL's in closed form: a limit on
    each of its three angles and each component of its translation, in the body's own frame."""

    rotation: float = Field(gt=0.0, lt=1.5)
    """rad: each angle of the pelvis, seen from the exact root."""
    translation: float = Field(gt=0.0)
    """m: each component, along the axes of the exact root."""


class Recipe(_Frozen):
    """Stages in order. The last one must see every vertex: it decides what is reported."""

    stages: tuple[Stage, ...] = Field(min_length=1)
    root_trust: RootTrust | None = None
    """None: a root that is free goes anywhere."""

    @model_validator(mode="after")
    def _ends_exactly(self) -> Recipe:
        last = self.stages[-1]
        if last.stride != 1 or last.vertices is not None:
            raise ValueError(f"the last stage ({last.name}) must look at every vertex")
        if self.root_trust is not None and not self.root_is_free:
            raise ValueError("root_trust bounds a root that moves, but no stage frees it")
        return self

    @property
    def root_is_free(self) -> bool:
        """Whether any stage moves the root rotation or the translation."""
        return any(s.free_parameters()[[0, 1, 2, 46, 47, 48]].any() for s in self.stages)


class FitConfig(_Frozen):
    """Options of a fit. Everything here changes results, and is hashed into provenance."""

    recipe: (
        Literal["hierarchical", "hierarchical_near_root", "full", "released", "surface"] | Recipe
    ) = "hierarchical"
    limits: Literal["default", "published", "none"] = "default"
    betas: Literal["auto", "copy", "transfer", "fit"] = "auto"
    """Shape: copy the SMPL betas, transfer them in closed form, or fit them. auto: copy where both
    models have one gender, which then share template and shape space; transfer elsewhere."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the vertex passes; the inner solver is float64 always."""
    kernels: Literal["auto", "numba", "triton", "torch"] = "auto"
    block_size: int | None = Field(default=None, ge=1, le=65536)
    """Rows computed together; None: 64 on a CPU, 2048 on a GPU. Part of the result's identity:
    rows are bit-equal at one size."""
    tolerance: float | None = Field(default=None, gt=0.0)
    """Overrides the tolerance of every stage."""
    steps: int | None = Field(default=None, ge=1)
    """Overrides the inner steps of every stage."""
    prior_spine: float = Field(default=3e-6, ge=0.0)
    """m^2/rad^2 on the nine spine and head angles."""
    prior_scapula: float = Field(default=3e-6, ge=0.0)
    """m^2/rad^2 on the six scapula angles."""
    restarts: bool = True
    """Try further starts on rows that look stuck and keep the best."""
    limited_above: float = Field(default=0.015, gt=0.0)
    """Mean vertex error (m) above which a row with active limits is fitted again without limits."""
    limited_gain: float = Field(default=0.002, ge=0.0)
    """Such a row is `limited` where that lowers its mean vertex error by more than this (m)."""

    def rows_of_block(self, device: str) -> int:
        """Rows computed together on this kind of device."""
        return self.block_size or (64 if device == "cpu" else 2048)

    def resolved_recipe(self) -> Recipe:
        """The recipe itself, read from `recipes/` if it is named."""
        if isinstance(self.recipe, Recipe):
            return self.recipe
        return _named_recipe(self.recipe)


class SequenceConfig(_Frozen):
    """Options of a sequence. They change results, and are hashed into provenance."""

    smoothing: float = Field(default=0.0, ge=0.0, le=1e4)
    """Weight of the squared error of the vertices' displacement from frame to frame, beside the
    squared error of their position. It draws the skin to the target's velocity, not to rest. Steps
    in which a joint of the target turns by more than 0.3 rad have less of it."""
    jump: float = Field(default=0.5, gt=0.0)
    """A joint angle that changes by more between two frames (rad) makes the solver look whether the
    neighbour's branch fits as well."""
    rounds: int = Field(default=30, ge=1, le=1000)
    """At most so many Gauss-Newton steps of the smoothing."""


def check_sequence(config: FitConfig) -> None:
    """Raises ValueError for a fit whose frames cannot be those of one moving SMPL body."""
    if config.resolved_recipe().root_is_free:
        raise ValueError(
            f"recipe {config.recipe!r} frees the root; a sequence needs a recipe that freezes it, "
            "as 'hierarchical' and 'full' do"
        )


class FitRequest(FitConfig):
    """What a subset asks for: frames on their own, or with `sequence` those of moving bodies."""

    sequence: SequenceConfig | None = None

    @field_validator("sequence", mode="before")
    @classmethod
    def _given(cls, value: object) -> object:
        if value is None:
            raise ValueError("expected options such as {smoothing: 1.0}, or {} for their defaults")
        return value

    @property
    def frame(self) -> FitConfig:
        """The options of each frame's fit."""
        return FitConfig.model_validate(self.model_dump(exclude={"sequence"}))

    def to_json(self) -> dict[str, Any]:
        """Every option with its value; `sequence` only where it is asked for."""
        left_out = {"sequence"} if self.sequence is None else None
        return self.model_dump(mode="json", exclude=left_out)


@cache
def _named_recipe(name: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml")


def load_recipe(path: Path) -> Recipe:
    """Recipe from a YAML file; unknown keys are refused."""
    return Recipe.model_validate(parse_yaml(path.read_text(encoding="utf-8")))
