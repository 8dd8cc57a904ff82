"""The format `opensim`: models, motions, markers and tables in one folder.

One model for each person: each row of an image data set, else each sequence (more where shape or
gender change within one). `index.json` says what belongs together; the folder appears complete or
not at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from pipeline.dataset import Dataset
from pipeline.dataset_rows import (
    DEFAULT_RATE,
    RowRange,
    chosen_rows,
    recorded_ground,
    recorded_rate,
)
from pipeline.errors import InputError, UsageError
from pipeline.exporters.base import Exported, ExportOptions, Selection
from pipeline.output_files import pretty_json, whole_folder
from pipeline.readers.base import SEQUENCE
from pipeline.task import conversion_models
from skel_fit.anatomy import JOINT_NAMES
from skel_fit.model_files import load_skel
from skel_fit.opensim import angles as coordinate_angles
from skel_fit.opensim import osim_reader, osim_writer, tables, transfer
from skel_fit.opensim.subject import GROUNDS, Subject, body_frames, skin_points, subjects
from skel_fit.skel import SKEL

INDEX = "index.json"
INDEX_VERSION = 1
MOST_MODELS = 1000
"""More models than this need an explicit choice of rows."""
_ANGLES = ("opensim", "skel", "into")


class OpenSimOptions(ExportOptions):
    """rows: `A:B`, of the data set. sequence: name of one. angles: convention of the coordinates.

    into: another .osim file that gets the motion; no model is written then. ground: from the axes
    of the data to OpenSim's. rate: frames a second, for data that does not say.
    """

    rows: RowRange | None = None
    sequence: str | None = None
    angles: Literal["opensim", "skel"] = "opensim"
    into: Path | None = None
    ground: Literal["auto", "camera", "y-up", "z-up", "none"] = "auto"
    rate: float | None = Field(None, gt=0, allow_inf_nan=False)


@dataclass(frozen=True)
class OpenSim:
    """The format `opensim`. `progress` is told the number of people done and of all."""

    progress: Callable[[int, int], None] | None = None
    name: ClassVar[str] = "opensim"
    options: ClassVar[type[ExportOptions]] = OpenSimOptions

    def write(
        self, dataset: Dataset, path: Path, options: OpenSimOptions, models: Path | None
    ) -> Exported:
        if options.rejected == "keep":
            raise UsageError("--rejected keep: rows without a fit have no pose to export")
        ground = recorded_ground(dataset.plan) if options.ground == "auto" else options.ground
        selection = Selection.of(dataset, options)
        chosen = chosen_rows(dataset, selection.kept, options.rows, options.sequence)
        people = list(_people(dataset, chosen))
        if not people:
            raise UsageError(f"{dataset.directory}: no row with a fit is left to export")
        one_each = SEQUENCE not in dataset
        if len(people) > MOST_MODELS and options.rows is None:
            raise UsageError(
                f"{dataset.directory}: {len(people):,} people would be as many models; choose with "
                f"--rows A:B (more than {MOST_MODELS:,} are written when asked for)"
            )
        writer = _Writer(
            dataset=dataset,
            models=conversion_models(dataset.plan, dataset.attrs["models_directory"], models),
            ground=GROUNDS[ground],
            angles=options.angles,
            rate=options.rate or recorded_rate(dataset, chosen),
            into=None if options.into is None else _foreign(options.into),
            into_path=options.into,
        )
        with whole_folder(path, INDEX) as folder:
            files = []
            for done, person in enumerate(people, 1):
                files.append(writer.write(folder, person))
                if self.progress:
                    self.progress(done, len(people))
            index = {
                "format": self.name,
                "version": INDEX_VERSION,
                "subset": dataset.attrs["subset"],
                "plan_id": dataset.attrs["plan_id"],
                "digest": dataset.attrs["digest"],
                "standin": dataset.attrs["standin"],
                "axes": ground,
                "one_row_each": one_each,
                "files": files,
            }
            (folder / INDEX).write_bytes(pretty_json(index))
        return Exported(
            path=path,
            rows=sum(len(person.rows) for person in people),
            left_out=selection.left_out,
            columns=coordinate_angles.COORDINATES if writer.into is None else (),
            attention=writer.attention(files),
        )


@dataclass(frozen=True)
class _Person:
    """Rows of one body: dataset positions and frame numbers, both increasing."""

    name: str
    rows: NDArray[np.int64]
    frames: NDArray[np.int64]
    single: bool


def _people(dataset: Dataset, rows: NDArray[np.int64]) -> Iterator[_Person]:
    """Rows grouped into bodies, in order."""
    if not len(rows):
        return
    if SEQUENCE not in dataset:
        source = dataset["source_row"]
        width = max(6, len(str(len(dataset))))
        for row in rows:
            yield _Person(
                f"row{row:0{width}d}", rows=np.array([row]), frames=source[[row]], single=True
            )
        return
    names, betas, genders = dataset[SEQUENCE], dataset["skel_betas"], dataset["skel_gender"]
    every = np.flatnonzero(np.concatenate(([True], names[1:] != names[:-1])))
    new = (
        (names[rows[1:]] != names[rows[:-1]])
        | (betas[rows[1:]] != betas[rows[:-1]]).any(1)
        | (genders[rows[1:]] != genders[rows[:-1]])
    )
    taken: set[str] = set()
    for run in np.split(rows, np.flatnonzero(new) + 1):
        start = every[np.searchsorted(every, run[0], side="right") - 1]
        yield _Person(_free_name(str(names[run[0]]), taken), run, run - start, single=False)


def _free_name(wanted: str, taken: set[str]) -> str:
    """`wanted` as a file name that nobody has yet."""
    base = re.sub(r"[^A-Za-z0-9._-]+", "_", wanted).strip("._") or "sequence"
    base = base[:100]
    name, number = base, 1
    while name.lower() in taken:
        number += 1
        name = f"{base}_{number}"
    taken.add(name.lower())
    return name


def _foreign(path: Path) -> osim_reader.ForeignModel:
    return read_osim(path)


def read_osim(path: Path) -> osim_reader.ForeignModel:
    """A .osim file of any origin.

    Raises:
        InputError: it cannot be read.
    """
    return _parsed(path, osim_reader.read_model)


def read_mot(path: Path) -> tables.Motion:
    """A .mot or .sto file of any origin.

    Raises:
        InputError: it cannot be read.
    """
    return _parsed(path, tables.read_motion)


def _parsed(path: Path, parse: Callable[[str, str], Any]) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not text") from None
    except ValueError as error:
        raise InputError(str(error)) from None


@dataclass
class _Writer:
    """Writes people, with what they share kept between them."""

    dataset: Dataset
    models: Path
    ground: NDArray[np.float64]
    angles: coordinate_angles.Angles
    rate: float | None
    into: osim_reader.ForeignModel | None
    into_path: Path | None

    def __post_init__(self) -> None:
        self._shared: dict[str, tuple[SKEL, osim_writer.Template, str]] = {}

    def write(self, folder: Path, person: _Person) -> dict[str, Any]:
        """All files of one person; returns their entry of the index."""
        poses, trans = (self._column(name, person) for name in ("skel_poses", "skel_trans"))
        betas = self._column("skel_betas", person)[:1]
        gender = str(self.dataset["skel_gender"][person.rows[0]])
        skel, shared, digest = self._model(folder, gender)
        body = subjects(skel, torch.as_tensor(betas))[0]
        rate = self.rate or DEFAULT_RATE
        times = np.zeros(1) if person.single else person.frames / rate
        tensors = (torch.as_tensor(poses), torch.as_tensor(betas), torch.as_tensor(trans))
        entry: dict[str, Any] = {
            "name": person.name,
            "mot": f"{person.name}.mot",
            "trc": f"{person.name}.trc",
            "csv": f"{person.name}.csv",
            "rows": person.rows.tolist(),
            "gender": gender,
            "ground": self.ground.tolist(),
            "rate": rate,
            "rate_from": "the data" if self.rate else "assumed",
        }
        if self.into is None:
            values = coordinate_angles.coordinates(
                poses, trans, body.root(self.ground), self.angles, sequence=not person.single
            )
            columns, turns = coordinate_angles.COORDINATES, None
            flagged = coordinate_angles.gimbal_rows(values, self.angles)
            text = osim_writer.osim_text(
                person.name, body, shared, self.ground, self.angles,
                geometry=f"{osim_writer.GEOMETRY}/{gender}", model_sha256=digest,
                standin=skel.standin, plan_id=self.dataset.attrs["plan_id"],
            )  # fmt: skip
            entry |= {"osim": f"{person.name}.osim", "angles": self.angles}
            _write(folder / entry["osim"], text)
        else:
            carried = self._carried(skel, body, tensors, person)
            columns = tuple(carried.values)
            values = np.stack([carried.values[name] for name in columns], 1)
            turns = [self.into.is_rotational(name) for name in columns]
            flagged = {}
            entry |= {
                "osim": str(self.into_path),
                "angles": "into",
                "residual_degrees": {
                    name: _spread(values) for name, values in carried.residuals.items()
                },
                "root_distance_metres": float(carried.distance.max()),
                "without_counterpart": list(carried.without_counterpart),
                "held_coordinates": list(carried.held),
            }
        entry["gimbal_frames"] = {name: rows.tolist() for name, rows in flagged.items()}
        _write(folder / entry["mot"], tables.mot_text(person.name, times, values, columns, turns))
        flags = _flags(len(values), flagged)
        _write(folder / entry["csv"], tables.csv_text(times, values, flags, columns, turns))
        points = skin_points(skel, *tensors, shared.markers.vertices) @ self.ground.T
        _write(
            folder / entry["trc"],
            tables.trc_text(entry["trc"], times, shared.markers.names, points),
        )
        return entry

    def _column(self, name: str, person: _Person) -> NDArray[np.float64]:
        first, last = int(person.rows[0]), int(person.rows[-1]) + 1
        return self.dataset.read(name, first, last)[person.rows - first].astype(np.float64)

    def _model(self, folder: Path, gender: str) -> tuple[SKEL, osim_writer.Template, str]:
        """Model and what its people share; its bones are written when it is first used."""
        if gender not in self._shared:
            skel = load_skel(self.models, gender, dtype=torch.float64)
            try:
                shared = osim_writer.template(skel)
            except ValueError as error:
                raise InputError(str(error)) from None
            if self.into is None:
                bones = folder / osim_writer.GEOMETRY / gender
                bones.mkdir(parents=True)
                for body, text in shared.bones.items():
                    _write(bones / f"{body}.obj", text)
            records = self.dataset.plan.models
            digest = next(r.sha256 for r in records if (r.kind, r.gender) == ("skel", gender))
            self._shared[gender] = skel, shared, digest
        return self._shared[gender]

    def _carried(
        self,
        skel: SKEL,
        body: Subject,
        tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        person: _Person,
    ) -> transfer.Carried:
        assert self.into is not None
        position, axes = body_frames(skel, *tensors)
        ours = {
            name: (position[:, k] @ self.ground.T, self.ground @ axes[:, k])
            for k, name in enumerate(JOINT_NAMES)
        }
        wanted = transfer.named_for(self.into.bodies, ours, body)
        try:
            return transfer.carry(wanted, self.into, sequence=not person.single)
        except ValueError as error:
            raise InputError(f"--into {self.into_path}: {error}") from None

    def attention(self, files: Sequence[Mapping[str, Any]]) -> str:
        """What a user should know of the export, in one line."""
        notes = []
        if not self.rate and any(len(entry["rows"]) > 1 for entry in files):
            notes.append(f"no frame rate recorded, {DEFAULT_RATE:g} Hz assumed (--rate HZ)")
        if flagged := sum(bool(entry["gimbal_frames"]) for entry in files):
            notes.append(f"{flagged} of {len(files)} motions pass gimbal lock (gimbal_frames)")
        if self.into is not None:
            worst: dict[str, float] = {}
            for entry in files:
                for name, spread in entry["residual_degrees"].items():
                    worst[name] = max(worst.get(name, 0.0), spread["median"])
            left = ", ".join(f"{name} {value:.1f}" for name, value in worst.items() if value > 0.05)
            notes.append(f"median residual in degrees: {left or 'none above 0.05'}")
            if missing := files[0]["without_counterpart"]:
                notes.append(f"bodies without counterpart: {', '.join(missing)}")
            if held := files[0]["held_coordinates"]:
                notes.append(f"coordinates left at their default: {', '.join(held)}")
        return "; ".join(notes)


def _spread(values: NDArray) -> dict[str, float]:
    return {
        "median": float(np.median(values)),
        "p95": float(np.percentile(values, 95)),
        "max": float(values.max()),
    }


def _flags(count: int, flagged: Mapping[str, NDArray]) -> list[str]:
    """For every row the joints that are near gimbal lock, separated by spaces."""
    found: list[list[str]] = [[] for _ in range(count)]
    for name, rows in flagged.items():
        for row in rows.tolist():
            found[row].append(name)
    return [" ".join(names) for names in found]


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
