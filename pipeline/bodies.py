"""Labels of other bodies than SMPL in a conversion: how a shard fits them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.columns import ERROR_COLUMNS, REGION_COLUMNS
from pipeline.errors import InputError, UsageError
from pipeline.fitters import DEFAULT_FITTER, FitterFactory, fit_columns, registered_fitter
from pipeline.identity_shapes import SHAPES_FILE, read_shapes
from pipeline.manifest import missing_models
from pipeline.plan import BodyRecord, CalibrationRecord, ModelRecord, Plan
from pipeline.provenance import file_record
from pipeline.readers.base import SMPL, AnnotationRows, AnnotationSource, BodyRows
from pipeline.up_axis import moved_points
from skel_fit.errors import ModelFileError
from skel_fit.models import BodyModels

if TYPE_CHECKING:
    import torch

    from skel_fit.bodies.identity_shapes import IdentityShapes
    from skel_fit.bodies.source_body import SourceBody, SourceRoot
    from skel_fit.bodies.surface_map import SurfaceMap
    from skel_fit.recipe import FitRequest

_BLOCK = 64
"""Rows whose errors are computed together."""
_FAMILY = ("smplh", "smplx")
_SKEL_GENDERS = ("male", "female")
_WRONG_TOPOLOGY = 2.0
"""Edges of a mapped mesh are as long as SKEL's within this factor, most of them."""


@dataclass
class BodyFit:
    """`FitterFactory` of the labels of one body.

    shapes: file with the shapes of people; None: not found yet, which is enough for a plan.
    """

    body: str
    vertices: int | None
    shapes: Path | None = None
    planned: BodyRecord | None = None
    needs_models: bool = True

    def models(
        self, directory: Path | None, pairs: Iterable[tuple[str, str]]
    ) -> tuple[ModelRecord, ...]:
        folder, wanted = _folder(directory), set()
        for label, skel in pairs:
            if self.vertices is None and self.body in _FAMILY:
                wanted.add((self.body, label))
            wanted |= {("skel", g) for g in (_SKEL_GENDERS if skel == "unknown" else (skel,))}
        held = Models(folder, self.body, self.vertices)
        return tuple(held.record(kind, gender) for kind, gender in sorted(wanted))

    def record(self, directory: Path | None, gender: str) -> BodyRecord:
        """The body with its map. gender: of a SKEL body that is needed."""
        held = Models(_folder(directory), self.body, self.vertices)
        name, found = held.map(gender)
        return BodyRecord(self.body, self.vertices, name, found.digest(), found.licence)

    def calibration(
        self, directory: Path | None, pairs: Iterable[tuple[str, str]]
    ) -> CalibrationRecord | None:
        return None  # residual fields are of a pair of SMPL and SKEL

    def open(
        self,
        directory: Path | None,
        device: str,
        request: FitRequest,
        calibration: CalibrationRecord | None,
    ) -> Any:
        """A `BodyFitter`."""
        del calibration
        if self.shapes is None or self.planned is None:
            raise UsageError(f"labels of {self.body} need the shapes of their people")
        held = Models(_folder(directory), self.body, self.vertices, device)
        shapes = read_shapes(self.shapes)
        return BodyFitter(held, request, shapes, self.planned)


def factory_of(plan: Plan, directory: Path) -> FitterFactory:
    """The fitter of a plan whose run is in `directory`."""
    if plan.body is None or plan.fitter != DEFAULT_FITTER:
        return registered_fitter(plan.fitter)
    return BodyFit(
        plan.body.name, plan.body.vertices, directory.absolute() / SHAPES_FILE, plan.body
    )


def factory_for(source: AnnotationSource, fitter: str) -> FitterFactory:
    """The fitter for an open source, before there is a plan.

    Raises InputError: labels of another body than SMPL and a fitter that takes none.
    """
    if source.body == SMPL:
        return registered_fitter(fitter)
    if fitter != DEFAULT_FITTER:
        raise InputError(
            f"{source.path}: labels of {source.body}; they can be fitted, not taken as they are"
        )
    return BodyFit(source.body, source.vertices)


class Models:
    """Body models and maps of a folder, as far as labels of one body need them."""

    def __init__(
        self, directory: Path, body: str, vertices: int | None, device: str = "cpu"
    ) -> None:
        self.directory, self.body, self.vertices = directory, body, vertices
        self._held = BodyModels(directory, device)
        self._bodies: dict[str, SourceBody] = {}
        self._maps: dict[str, tuple[str, SurfaceMap]] = {}

    @property
    def device(self) -> str:
        return self._held.device

    def skel(self, gender: str, precision: Any = "float32") -> Any:
        """The SKEL body of a gender."""
        self._file("skel", gender)
        return _input_error(lambda: self._held.model("skel", gender, precision))

    def source(self, gender: str) -> SourceBody:
        """The labels' body. gender: of its model file."""
        from skel_fit.bodies.smpl_family import FamilyBody
        from skel_fit.bodies.source_body import MeshBody

        if gender not in self._bodies:
            if self.vertices is not None:
                self._bodies[gender] = MeshBody(self.body, self.vertices)
            elif self.body in _FAMILY:
                self._file(self.body, gender)
                kind: Any = self.body
                self._bodies[gender] = _input_error(
                    lambda: FamilyBody.load(self.directory, kind, gender)
                )
            else:
                raise InputError(f"labels of {self.body}: no such body model is known")
        return self._bodies[gender]

    def map(self, gender: str) -> tuple[str, SurfaceMap]:
        """Name and map from the body to SKEL of a gender.

        Raises InputError: none, or one for another number of vertices.
        """
        from skel_fit.bodies.map_files import find_map

        if gender not in self._maps:
            skel = self.skel(gender)
            found = _input_error(lambda: find_map(self.directory, self.body, skel))
            if self.vertices not in (None, found[1].source_vertices):
                raise InputError(
                    f"member 'vertices': {self.vertices} vertices a row, but {self.body} has "
                    f"{found[1].source_vertices} (map {found[0] or 'of its own triangles'}); name "
                    "the body that the meshes are of"
                )
            self._maps[gender] = found
        return self._maps[gender]

    def record(self, kind: str, gender: str) -> ModelRecord:
        """Identity of a model file that is needed."""
        if kind == "skel":
            standin = bool(self.skel(gender).standin)
        else:
            own: Any = self.source(gender)
            standin = bool(own.arrays.standin)
        record = file_record(self._file(kind, gender))
        return ModelRecord(kind, gender, **record.to_json(), standin=standin)

    def _file(self, kind: Any, gender: str) -> Path:
        from skel_fit.model_files import model_file

        try:
            return Path(model_file(self.directory, kind, gender))
        except ModelFileError as error:
            if kind != "skel":
                raise InputError(str(error)) from error
            what = f"no SKEL model file for gender '{gender}'"
            raise InputError(missing_models(self.directory, what)) from error


@dataclass
class BodyFitter:
    """Fits rows of another body than SMPL; `pipeline.fitters.Fitter` for them."""

    held: Models
    request: FitRequest
    shapes: IdentityShapes
    planned: BodyRecord
    _checked: set[str] = field(default_factory=set)

    def fit(
        self,
        genders: tuple[str, str],
        labels: BodyRows,
        turn: np.ndarray | None = None,
        progress: Callable[[float], None] = lambda share: None,
    ) -> Mapping[str, np.ndarray]:
        """`columns.FIT_COLUMNS` of rows that share their genders (label, SKEL); where sequences are
        asked for, those of one sequence. progress: as in `fit_surface_sequence`."""
        from skel_fit.bodies.surface_fit import fit_skel_to_surface, surface_solver
        from skel_fit.bodies.surface_sequence import fit_surface_sequence
        from skel_fit.uncertainty import angle_uncertainty

        config, sequence = self.request.frame, self.request.sequence
        skel, found = self.held.skel(genders[1], config.dtype), self._map(genders[1])
        body = self.held.source(genders[0])
        surfaces, root = self._posed(body, labels, turn)
        masks = body.mask_weights()
        if sequence is None:
            result = fit_skel_to_surface(
                skel, surfaces, found, labels.identity, self.shapes, config, root=root,
                mask_weights=masks,
            )  # fmt: skip
        else:
            result = fit_surface_sequence(
                skel, surfaces, found, int(labels.identity[0]), self.shapes, config, sequence,
                root=root, mask_weights=masks, progress=progress,
            )  # fmt: skip
        solver = surface_solver(skel, found, config, masks)
        return fit_columns(result, angle_uncertainty(skel, None, result, config, None, solver))

    def residuals(
        self,
        genders: tuple[str, str],
        labels: BodyRows,
        skel: tuple[np.ndarray, np.ndarray, np.ndarray],
        turn: np.ndarray | None = None,
    ) -> Mapping[str, np.ndarray]:
        """`columns.ERROR_COLUMNS` (n,), metres, of stored SKEL parameters against the surfaces."""
        import torch

        from skel_fit.anatomy import REGIONS
        from skel_fit.solver.tables import regions

        model, found = self.held.skel(genders[1], "float64"), self._map(genders[1])
        body = self.held.source(genders[0])
        region = regions(model)
        columns: dict[str, list[np.ndarray]] = {name: [] for name in ERROR_COLUMNS}
        with torch.no_grad():
            for start in range(0, len(labels.identity), _BLOCK):
                part = slice(start, start + _BLOCK)
                rows = np.arange(len(labels.identity))[part]
                own = turn if turn is None or turn.ndim == 2 else turn[part]
                surfaces, _ = self._posed(body, labels.take(rows), own)
                target = found.apply(surfaces.double())
                given = (torch.as_tensor(values[part]).to(model.device) for values in skel)
                distance = torch.linalg.vector_norm(
                    model(*given).skin_vertices.cpu() - target.cpu(), dim=-1
                ).numpy()
                columns["vertex_error_mean"].append(distance.mean(axis=1))
                columns["vertex_error_max"].append(distance.max(axis=1))
                for index, name in enumerate(REGIONS):
                    own = distance[:, region == index].mean(axis=1)
                    columns[REGION_COLUMNS[name]].append(own)
        return {name: np.concatenate(values) for name, values in columns.items()}

    def root_departures(
        self,
        genders: tuple[str, str],
        labels: BodyRows,
        skel: tuple[np.ndarray, np.ndarray, np.ndarray],
        turn: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """How far stored roots are from those that the labels state: `skel_fit.root_departure`."""
        import torch

        from skel_fit.bodies.source_body import SourceRoot
        from skel_fit.bodies.surface_fit import stated_translation
        from skel_fit.root import root_angles, root_rotation

        model = self.held.skel(genders[1], "float64")
        root = _stated_root(self.held.source(genders[0]), labels, turn)
        assert root is not None  # recipes that keep a root are refused where none is stated
        root = SourceRoot(*(part.to(model.device) for part in root))
        offsets = self.shapes.offsets[self.shapes.places(labels.identity)]
        angles, betas, trans, away = (
            torch.as_tensor(values).to(model.device) for values in (*skel, offsets)
        )
        with torch.no_grad():
            exact = stated_translation(model, root, betas, away)
            back = root.orient.transpose(1, 2)
            shift = (back @ (trans - exact)[:, :, None])[:, :, 0]
            turned = root_angles(model, back @ root_rotation(model, angles[:, :3]))
        return turned.cpu().numpy(), shift.cpu().numpy()

    def _posed(
        self, body: SourceBody, labels: BodyRows, turn: np.ndarray | None
    ) -> tuple[torch.Tensor, SourceRoot | None]:
        """Surfaces (n, V, 3) and stated roots, in the axes that `turn` leads to."""
        import torch

        surfaces = body.surface(labels.parameters)
        if turn is not None:
            surfaces = moved_points(surfaces.double(), torch.as_tensor(turn, dtype=torch.float64))
        return surfaces, _stated_root(body, labels, turn)

    def _map(self, gender: str) -> SurfaceMap:
        """The map, which must be the plan's."""
        name, found = self.held.map(gender)
        if gender not in self._checked and found.digest() != self.planned.map_sha256:
            raise InputError(
                f"{self.held.directory}: map {name or 'of the own triangles'} is not that of the "
                f"plan (SHA-256 {self.planned.map_sha256[:12]}...); restore it, on a cluster on "
                "every node, or convert into another directory"
            )
        self._checked.add(gender)
        return found


def _stated_root(body: SourceBody, labels: BodyRows, turn: np.ndarray | None) -> SourceRoot | None:
    """The roots that labels state, in the axes that `turn` leads to; None where they state none."""
    import torch

    if not body.states_root:
        return None
    root = body.root(labels.parameters)
    return root if turn is None else root.turned(torch.as_tensor(turn, dtype=torch.float64))


def check_surfaces(
    source: AnnotationSource, models: Models, gender: str, rows: AnnotationRows | None
) -> None:
    """Refuse labels whose mapped mesh is no person: another topology under the same name.

    rows: some accepted rows, None: there are none. gender: of a SKEL body that is needed. Raises
    InputError.
    """
    import torch

    name, found = models.map(gender)
    faces_of_file = getattr(source, "faces", None)
    if faces_of_file is not None:
        try:
            found.check_source(faces_of_file)
        except ValueError as error:
            raise InputError(f"{source.path}: member 'faces': {error}") from None
    skel = models.skel(gender)
    faces = skel.faces.cpu().numpy()
    edges = np.unique(np.sort(np.concatenate((faces[:, :2], faces[:, 1:])), axis=1), axis=0)
    template = skel.template.detach().cpu().double().numpy()
    still = np.linalg.norm(template[edges[:, 0]] - template[edges[:, 1]], axis=1)
    if rows is None:
        return
    assert rows.other is not None
    for place, row in enumerate(rows.source_row.tolist()):
        body = models.source(str(rows.smpl_gender[place]))
        try:
            own = rows.other.take(np.array([place]))
            mesh = found.apply(body.surface(own.parameters).double())[0]
        except ValueError as error:
            raise InputError(f"{source.path}: row {row}: {error}") from None
        first, second = (mesh[torch.as_tensor(edges[:, k])] for k in range(2))
        length = torch.linalg.vector_norm(first - second, dim=1).numpy()
        factor = np.exp(np.median(np.abs(np.log((length + 1e-6) / (still + 1e-6)))))
        if not factor < _WRONG_TOPOLOGY:
            raise InputError(
                f"{source.path}: row {row}: its mesh as SKEL's skin has edges {factor:.0f} times "
                f"too long or short: vertices are not in the order of {source.body} that the map "
                f"{name or '(own triangles)'} is for; name the body that the meshes are of"
            )


def _folder(directory: Path | None) -> Path:
    if directory is None:
        raise UsageError("the SKEL fit needs a models folder")
    return directory


def _input_error(make: Any) -> Any:
    try:
        return make()
    except ModelFileError as error:
        raise InputError(str(error)) from error
