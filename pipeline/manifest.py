"""The YAML a user writes: which labels, which bodies, which fit.

A manifest names files relative to a data root and never holds a machine's paths, so that it can be
committed and shared.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.configuration import Catalogue, read_mapping, validated
from pipeline.errors import InputError
from pipeline.paths import InsideFolder, InsidePath, check_inside
from skel_fit.recipe import FitRequest

MANIFESTS = Catalogue("manifest", Path("manifests"), "manifests")
DATA_ROOT_VARIABLE = "HMR_SKEL_DATA"
STAND_IN = "default-body"
"""The licence-free stand-in pair: `models` of a manifest, and `--models` instead of a folder."""
MODELS_VARIABLE = "HMR_SKEL_MODELS"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Strict):
    """The label file of a subset.

    `path` and `spellings` are tried in this order below the data root. `generator: demo` makes the
    file when it is absent, of `rows` rows from `seed` (None: those of `pipeline.demo`) and `takes`
    rows of other actors; a file that is there and was made with others is refused. `options` go to
    the reader of that format.
    """

    path: InsidePath
    spellings: tuple[InsidePath, ...] = ()
    format: str | None = None
    generator: Literal["demo"] | None = None
    rows: int | None = Field(default=None, ge=60, le=1_000_000, strict=True)
    seed: int | None = Field(default=None, ge=0, lt=2**32, strict=True)
    takes: int | None = Field(default=None, ge=60, le=1_000_000, strict=True)
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _only_generated(self) -> Self:
        if self.generator is None and self.generated:
            names = " and ".join(self.generated)
            raise ValueError(f"{names} given without a generator; real labels have none of them")
        return self

    @property
    def generated(self) -> dict[str, int]:
        """`rows`, `seed`, `takes` as far as they are given, for functions of `pipeline.demo`."""
        given = {"rows": self.rows, "seed": self.seed, "takes": self.takes}
        return {name: value for name, value in given.items() if value is not None}


class Genders(_Strict):
    """Body models of the labels and of the result; `column` takes them from the label file.
    `nearest`, for labels of other bodies than SMPL: as the label, else whichever SKEL is nearer."""

    smpl: Literal["neutral", "male", "female", "column"] = "neutral"
    skel: Literal["male", "female", "column", "nearest"] = "male"


class Resources(_Strict):
    """What one Ray actor reserves. `num_gpus` defaults to 1 on a CUDA device, else 0.

    These do not enter the plan: they cannot change a result.
    """

    num_gpus: float | None = Field(default=None, ge=0)
    num_cpus: float = Field(default=1, gt=0)


class Limits(_Strict):
    """Seconds after which something counts as hung. Not in the plan: they change no result.

    stall: for a worker without a finished step; None: 50 times what the rate of this run says, but
    a minute (ten while no rate is known). start: for a worker that is not ready. upload: for an
    upload without a byte.
    """

    stall: float | None = Field(default=None, gt=0)
    start: float = Field(default=900, gt=0)
    upload: float = Field(default=120, gt=0)


class Manifest(_Strict):
    """One subset. See docs/format.md."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    source: Source
    image_root: InsideFolder = ""
    genders: Genders = Genders()
    models: Literal["licensed", "default-body"] = "licensed"
    shard_rows: int = Field(default=8192, ge=1, le=1_000_000)
    compression: Literal["gzip", "none"] = "gzip"
    fit: FitRequest = FitRequest.model_validate({})
    ray: Resources = Resources()
    limits: Limits = Limits()


def load_manifest(name_or_path: str | Path) -> Manifest:
    """Read a manifest by name (`./manifests/NAME.yaml`, else ours) or by path.

    Raises:
        UsageError: no such manifest; the message lists the names that exist.
        InputError: not YAML, an unknown key, a value of the wrong kind.
    """
    path = MANIFESTS.find(name_or_path)
    return validated(Manifest, read_mapping(path), path)


def data_root(given: Path | None) -> Path:
    """Folder that holds label files and images: `--data-root`, else HMR_SKEL_DATA, else ./data."""
    return Path(given or os.environ.get(DATA_ROOT_VARIABLE) or "data").absolute()


def is_stand_in(given: Path | None) -> bool:
    """Whether `--models` is the name of the stand-in pair, not a folder of that name."""
    return given == Path(STAND_IN) and not Path(STAND_IN).is_dir()


def models_directory(kind: str, given: Path | None) -> Path:
    """Folder with the body-model files.

    Args:
        kind: `default-body` (the licence-free stand-in pair) or `licensed`.
        given: `--models`, a folder or `default-body`; without it, for `licensed`, HMR_SKEL_MODELS,
            then ./models. Never a fallback from licensed to the stand-in.

    Raises:
        InputError: licensed models are wanted and the folder does not exist.
    """
    if is_stand_in(given) or (kind == STAND_IN and given is None):
        from skel_fit.default_body import default_body_directory

        return Path(default_body_directory())
    path = Path(given or os.environ.get(MODELS_VARIABLE) or "models").absolute()
    if not path.is_dir():
        raise InputError(
            missing_models(path, "not a folder" if path.exists() else "no such folder")
        )
    return path


def missing_models(path: Path, what: str) -> str:
    """The one message about absent body models: what, where from, where to, and the demo."""
    return (
        f"{path}: {what}; the licensed body models are needed: download SKEL v1.1.1 "
        "(skel.is.tue.mpg.de: skel_male.pkl, skel_female.pkl) and SMPL v1.1.0 "
        "(smpl.is.tue.mpg.de: SMPL_NEUTRAL.pkl, SMPL_MALE.pkl, SMPL_FEMALE.pkl) into that folder, "
        f"or give --models DIR (or set {MODELS_VARIABLE}); "
        f"to try hmr-skel without them: --models {STAND_IN}, or hmr-skel convert demo"
    )


def find_source(manifest: Manifest, root: Path) -> Path:
    """The label file below `root`, by any accepted spelling; symbolic links may not leave `root`.

    Raises:
        InputError: absent; names the expected path and the accepted spellings.
    """
    names = (manifest.source.path, *manifest.source.spellings)
    for name in names:
        path = root / name
        if path.exists():
            check_inside(path, root)
            return path
    also = f" (or {', '.join(names[1:])})" if len(names) > 1 else ""
    made = manifest.source.generator is not None
    todo = f"make it with hmr-skel convert {manifest.name}" if made else "put it there"
    raise InputError(
        f"{root / names[0]}: label file of '{manifest.name}' not found{also}; "
        f"{todo} or give --data-root (or set {DATA_ROOT_VARIABLE})"
    )
