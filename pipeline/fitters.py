"""How a shard task fits its rows. The default is `skel_fit`; tests and benchmarks bring their own.

The plan names the fitter, so two fitters are never mixed in one directory. The name is looked up
among those that this process registered: a file never decides what is imported or called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.columns import (
    ERROR_COLUMNS,
    FIT_COLUMNS,
    REGION_COLUMNS,
    RESULT_COLUMNS,
    SKEL_COLUMNS,
    Column,
)
from pipeline.errors import InputError, UsageError
from pipeline.given_labels import NOT_FITTED, GivenSkel, given_status, on_limits
from pipeline.manifest import missing_models
from pipeline.plan import CalibrationRecord, ModelRecord
from pipeline.provenance import file_record
from pipeline.up_axis import moved_points
from skel_fit.calibration import (
    CALIBRATION_FILE,
    Calibration,
    CalibrationFile,
    read_calibrations,
)
from skel_fit.default_body import STANDIN_CALIBRATION
from skel_fit.errors import ModelFileError
from skel_fit.models import BodyModels, Precision

if TYPE_CHECKING:
    import torch

    from skel_fit.fit import FitResult
    from skel_fit.model_files import Kind
    from skel_fit.recipe import FitRequest
    from skel_fit.uncertainty import AngleUncertainty

DEFAULT_FITTER = "skel_fit"
_SCHEMA_1_NAME = "pipeline.fitters:SkelFit"
"""What plans of schema version 1 call the default: a name like any other."""
_RESIDUAL_ROWS = 64


class Fitter(Protocol):
    """Fits rows that share their pair of body models. A row's result may not depend on others.

    Where the request has a `sequence`, rows are consecutive frames of one body instead.
    """

    def fit(
        self,
        genders: tuple[str, str],
        poses: np.ndarray,
        betas: np.ndarray,
        transl: np.ndarray,
        turn: np.ndarray | None = None,
        given: GivenSkel | None = None,
        progress: Callable[[float], None] = lambda share: None,
    ) -> Mapping[str, np.ndarray]:
        """SMPL poses (n, 72), betas (n, 10), transl (n, 3), float64 -> `columns.FIT_COLUMNS`.

        `genders` is (smpl gender, skel gender); `turn` changes the axes before the fit:
        (3, 3) for all, or (n, 3, 4) a rotation and a shift a row (`pipeline.up_axis.turned`).
        `given`: the labels' own SKEL bodies, where they are taken as they are. `progress`: of a
        sequence, hears between steps which share of the work is done.
        """

    def residuals(
        self,
        genders: tuple[str, str],
        smpl: tuple[np.ndarray, np.ndarray, np.ndarray],
        skel: tuple[np.ndarray, np.ndarray, np.ndarray],
        turn: np.ndarray | None = None,
    ) -> Mapping[str, np.ndarray]:
        """`columns.ERROR_COLUMNS` (n,), metres, of SMPL parameters as in the label file and SKEL
        parameters in the world turned by `turn`."""

    def root_departures(
        self,
        genders: tuple[str, str],
        smpl: tuple[np.ndarray, np.ndarray, np.ndarray],
        skel: tuple[np.ndarray, np.ndarray, np.ndarray],
        turn: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """`skel_fit.root.root_departure` (n, 3), (n, 3) of the parameters of `residuals`."""


class FitterFactory(Protocol):
    """What a registered name stands for. Picklable: it travels to workers with their job."""

    needs_models: bool

    def models(
        self, directory: Path | None, pairs: Iterable[tuple[str, str]]
    ) -> tuple[ModelRecord, ...]:
        """Identity of the model files that these (smpl, skel) gender pairs need."""

    def calibration(
        self, directory: Path | None, pairs: Iterable[tuple[str, str]]
    ) -> CalibrationRecord | None:
        """The calibration of a models folder, with those of these pairs that it is one of."""

    def open(
        self,
        directory: Path | None,
        device: str,
        request: FitRequest,
        calibration: CalibrationRecord | None,
    ) -> Fitter:
        """A fitter; loads models when they are first needed.

        calibration: of the plan, which the folder must hold.
        """


def register_fitter(name: str, make: Callable[[], FitterFactory]) -> None:
    """Let plans name a fitter, in this process. For tests and benchmarks.

    Raises:
        ValueError: the name stands for another fitter already.
    """
    if _FITTERS.setdefault(name, make) is not make:
        raise ValueError(f"fitter '{name}' is registered already")


def registered_fitter(name: str) -> FitterFactory:
    """The fitter that a plan names. Nothing is imported.

    Raises:
        InputError: no fitter of that name is registered.
    """
    make = _FITTERS.get(name)
    if make is None:
        raise InputError(
            f"fitter '{name}' is not known here (known: {', '.join(sorted(_FITTERS))}); "
            "the data were made by another program, which must read them too"
        )
    return make()


@dataclass
class SkelFit:
    """The default: `skel_fit.fit_skel`. Holds the models that it described; travels without."""

    needs_models: bool = True
    _held: BodyModels | None = field(default=None, init=False, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": None}

    def _bodies(self, directory: Path) -> BodyModels:
        if self._held is None or self._held.directory != directory:
            self._held = BodyModels(directory)
        return self._held

    def models(
        self, directory: Path | None, pairs: Iterable[tuple[str, str]]
    ) -> tuple[ModelRecord, ...]:
        if directory is None:
            raise UsageError("the SKEL fit needs a models folder")
        pairs = tuple(pairs)
        wanted: set[tuple[Kind, str]] = {("smpl", smpl) for smpl, _ in pairs}
        wanted |= {("skel", skel) for _, skel in pairs}
        held, records = self._bodies(directory), []
        for kind, gender in sorted(wanted):
            record = file_record(_model_file(directory, kind, gender))
            standin = bool(_load(held, kind, gender, "float32").standin)
            records.append(ModelRecord(kind, gender, **record.to_json(), standin=standin))
        return tuple(records)

    def calibration(
        self, directory: Path | None, pairs: Iterable[tuple[str, str]]
    ) -> CalibrationRecord | None:
        if directory is None:
            raise UsageError("the SKEL fit needs a models folder")
        path = calibration_file(directory)
        found = _calibrations(path)
        held, mine, free = self._bodies(directory), [], False
        for smpl, skel in sorted(pairs):
            bodies = [_load(held, "smpl", smpl, "float32"), _load(held, "skel", skel, "float32")]
            own = found.of(*bodies)
            if own is not None:
                mine.append(f"{smpl}:{skel}")
                free = own.root_is_free
        if not mine:
            return None
        record = file_record(path)
        return CalibrationRecord(**record.to_json(), pairs=tuple(mine), root_is_free=free)

    def open(
        self,
        directory: Path | None,
        device: str,
        request: FitRequest,
        calibration: CalibrationRecord | None,
    ) -> Fitter:
        if directory is None:
            raise UsageError("the SKEL fit needs a models folder")
        return _SkelFitter(
            directory, device, request, _planned_calibrations(directory, calibration)
        )


def calibration_file(directory: Path) -> Path:
    """`calibration.npz` of a models folder; where it has none, that of the stand-in pair."""
    path = directory / CALIBRATION_FILE
    return path if path.exists() else STANDIN_CALIBRATION


def _calibrations(path: Path) -> CalibrationFile:
    try:
        return read_calibrations(path)
    except ModelFileError as error:
        raise InputError(str(error)) from error


def _planned_calibrations(
    directory: Path, planned: CalibrationRecord | None
) -> Mapping[str, Calibration]:
    """Calibrations of a plan's pairs, from the very file of the plan."""
    if planned is None:
        return {}
    path = calibration_file(directory)
    if not path.is_file() or file_record(path).sha256 != planned.sha256:
        raise InputError(
            f"{path}: absent or not the calibration of the plan (SHA-256 {planned.sha256[:12]}"
            "...); restore it, on a cluster on every node, or convert into another directory"
        )
    known = {":".join(pair): own for pair, own in _calibrations(path).pairs.items()}
    return {pair: known[pair] for pair in planned.pairs if pair in known}


@dataclass
class _SkelFitter:
    directory: Path
    device: str
    request: FitRequest
    calibrations: Mapping[str, Calibration]
    _held: BodyModels = field(init=False)

    def __post_init__(self) -> None:
        self._held = BodyModels(self.directory, self.device)

    def fit(
        self,
        genders: tuple[str, str],
        poses: np.ndarray,
        betas: np.ndarray,
        transl: np.ndarray,
        turn: np.ndarray | None = None,
        given: GivenSkel | None = None,
        progress: Callable[[float], None] = lambda share: None,
    ) -> Mapping[str, np.ndarray]:
        del given
        from skel_fit.fit import fit_skel
        from skel_fit.sequence import fit_sequence
        from skel_fit.uncertainty import angle_uncertainty

        config, sequence = self.request.frame, self.request.sequence
        smpl, skel = self._pair(genders, config.dtype)
        rows = self._turned(smpl, (poses, betas, transl), turn)
        if sequence is None:
            result = fit_skel(skel, smpl, *rows, config)
        else:
            result = fit_sequence(skel, smpl, *rows, config, sequence, progress=progress)
        calibration = self.calibrations.get(":".join(genders))
        return fit_columns(result, angle_uncertainty(skel, smpl, result, config, calibration))

    def residuals(
        self,
        genders: tuple[str, str],
        smpl: tuple[np.ndarray, np.ndarray, np.ndarray],
        skel: tuple[np.ndarray, np.ndarray, np.ndarray],
        turn: np.ndarray | None = None,
    ) -> Mapping[str, np.ndarray]:
        import torch

        from skel_fit.anatomy import REGIONS
        from skel_fit.solver.tables import regions

        smpl_model, skel_model = self._pair(genders, "float64")
        region = torch.as_tensor(regions(skel_model), device=self.device)
        found: dict[str, list[np.ndarray]] = {name: [] for name in ERROR_COLUMNS}
        with torch.no_grad():
            for start in range(0, len(smpl[0]), _RESIDUAL_ROWS):
                block = slice(start, start + _RESIDUAL_ROWS)
                poses, betas, transl = (self._tensor(values[block]) for values in smpl)
                target = smpl_model(
                    global_orient=poses[:, :3], body_pose=poses[:, 3:], betas=betas, transl=transl
                ).vertices
                if turn is not None:
                    own = turn if turn.ndim == 2 else turn[block]
                    target = moved_points(target, self._tensor(own))
                fitted = skel_model(*(self._tensor(values[block]) for values in skel))
                distance = torch.linalg.vector_norm(fitted.skin_vertices - target, dim=-1)
                found["vertex_error_mean"].append(distance.mean(dim=1).cpu().numpy())
                found["vertex_error_max"].append(distance.amax(dim=1).cpu().numpy())
                for index, part in enumerate(REGIONS):
                    own = distance[:, region == index].mean(dim=1)
                    found[REGION_COLUMNS[part]].append(own.cpu().numpy())
        return {name: np.concatenate(values) for name, values in found.items()}

    def root_departures(
        self,
        genders: tuple[str, str],
        smpl: tuple[np.ndarray, np.ndarray, np.ndarray],
        skel: tuple[np.ndarray, np.ndarray, np.ndarray],
        turn: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        from skel_fit.root import root_departure

        smpl_model, skel_model = self._pair(genders, "float64")
        poses, betas, transl = self._turned(smpl_model, smpl, turn)
        angles, shape, trans = (self._tensor(values) for values in skel)
        rotation, shift = root_departure(
            skel_model, smpl_model, poses[:, :3], betas, transl, (angles[:, :3], shape, trans)
        )
        return rotation.cpu().numpy(), shift.cpu().numpy()

    def _turned(
        self,
        model: Any,
        smpl: tuple[np.ndarray, np.ndarray, np.ndarray],
        turn: np.ndarray | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """SMPL poses, betas, transl as tensors, in the world turned by `turn`."""
        import torch

        from skel_fit.root import turned_smpl

        poses, betas, transl = (self._tensor(values) for values in smpl)
        if turn is None:
            return poses, betas, transl
        orient, transl = turned_smpl(model, poses[:, :3], betas, transl, self._tensor(turn))
        return torch.cat([orient, poses[:, 3:]], dim=1), betas, transl

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        import torch

        return torch.as_tensor(values, dtype=torch.float64, device=self.device)

    def _pair(self, genders: tuple[str, str], precision: Precision) -> tuple[Any, Any]:
        smpl = _load(self._held, "smpl", genders[0], precision)
        return smpl, _load(self._held, "skel", genders[1], precision)


def fit_columns(result: FitResult, sure: AngleUncertainty) -> dict[str, np.ndarray]:
    """`columns.FIT_COLUMNS` of a fit."""
    found = {
        "skel_poses": result.poses,
        "skel_poses_sd": sure.sd,
        "skel_poses_observed": sure.observed,
        "skel_betas": result.betas,
        "skel_trans": result.trans,
        "vertex_error_mean": result.vertex_error_mean,
        "vertex_error_max": result.vertex_error_max,
        "vertex_error_unlimited": result.unlimited_error,
        "vertex_error_alone": result.alone_error,
        "active_limits": result.active_limits,
        "iterations": result.iterations,
        "start": result.start,
        **{name: result.region_errors[region] for region, name in REGION_COLUMNS.items()},
    }
    columns = {
        name: values.detach().cpu().numpy().astype(RESULT_COLUMNS[name].dtype)
        for name, values in found.items()
    }
    return columns | {"status": np.array(result.status, np.str_)}


class NotFitted(SkelFit):
    """No fit: the SKEL bodies of the label file, judged."""

    def calibration(
        self, directory: Path | None, pairs: Iterable[tuple[str, str]]
    ) -> CalibrationRecord | None:
        return None  # labels are no optimum

    def open(
        self,
        directory: Path | None,
        device: str,
        request: FitRequest,
        calibration: CalibrationRecord | None,
    ) -> Fitter:
        if directory is None:
            raise UsageError("SKEL labels are judged with body models: a models folder is needed")
        return _NotFitted(directory, device, request, {})


class _NotFitted(_SkelFitter):
    def fit(
        self,
        genders: tuple[str, str],
        poses: np.ndarray,
        betas: np.ndarray,
        transl: np.ndarray,
        turn: np.ndarray | None = None,
        given: GivenSkel | None = None,
        progress: Callable[[float], None] = lambda share: None,
    ) -> Mapping[str, np.ndarray]:
        if given is None:
            raise InputError("the label file holds no SKEL labels to take as they are")
        import torch

        from skel_fit.crew import each, rows_over_threads

        self._pair(genders, "float64")  # loaded by one thread

        def judged(start: int) -> dict[str, np.ndarray]:
            rows = np.arange(start, min(start + _RESIDUAL_ROWS, len(poses)))
            # Every call has the same size: a matrix product may sum otherwise for another one.
            full = np.resize(rows, _RESIDUAL_ROWS)
            smpl = (poses[full], betas[full], transl[full])
            columns = self._judged(genders, smpl, given.take(full))
            return {name: values[: len(rows)] for name, values in columns.items()}

        with rows_over_threads():
            starts = range(0, len(poses), _RESIDUAL_ROWS)
            parts = list(each(judged, starts, torch.device(self.device)))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _judged(
        self,
        genders: tuple[str, str],
        smpl: tuple[np.ndarray, np.ndarray, np.ndarray],
        skel: GivenSkel,
    ) -> dict[str, np.ndarray]:
        trans = self._placed(genders, smpl, skel) if skel.trans is None else skel.trans
        body = {"skel_poses": skel.poses, "skel_betas": skel.betas, "skel_trans": trans}
        columns = {name: column.empty(len(trans)) for name, column in _made().items()}
        columns |= {name: values.astype(np.float32) for name, values in body.items()}
        poses, shape, place = (columns[name].astype(np.float64) for name in SKEL_COLUMNS)
        for name, values in self.residuals(genders, smpl, (poses, shape, place)).items():
            columns[name] = values.astype(np.float32)
        table = self.request.frame.limits
        columns["active_limits"] = on_limits(poses, table)
        return columns | {"status": given_status(poses, columns["vertex_error_max"], table)}

    def _placed(
        self,
        genders: tuple[str, str],
        smpl: tuple[np.ndarray, np.ndarray, np.ndarray],
        skel: GivenSkel,
    ) -> np.ndarray:
        """Translations (n, 3) in closed form, metres."""
        from skel_fit.root import root_from_smpl

        smpl_model, skel_model = self._pair(genders, "float64")
        poses, betas, transl = (self._tensor(values) for values in smpl)
        shape = self._tensor(skel.betas)
        _, trans = root_from_smpl(skel_model, smpl_model, poses[:, :3], betas, transl, shape)
        return trans.cpu().numpy()


def _made() -> dict[str, Column]:
    return {name: RESULT_COLUMNS[name] for name in FIT_COLUMNS if name != "status"}


def _load(held: BodyModels, kind: Kind, gender: str, precision: Precision) -> Any:
    _model_file(held.directory, kind, gender)
    try:
        return held.model(kind, gender, precision)
    except ModelFileError as error:
        raise InputError(str(error)) from error


def _model_file(directory: Path, kind: Kind, gender: str) -> Path:
    from skel_fit.model_files import model_file

    try:
        return Path(model_file(directory, kind, gender))
    except ModelFileError as error:
        what = f"no {kind.upper()} model file for gender '{gender}'"
        raise InputError(missing_models(directory, what)) from error


_FITTERS: dict[str, Callable[[], FitterFactory]] = {
    DEFAULT_FITTER: SkelFit,
    NOT_FITTED: NotFitted,
    _SCHEMA_1_NAME: SkelFit,
}
