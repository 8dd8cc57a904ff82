"""OpenSim itself as the judge of our files. Needs the extra `biomech`; skipped where it is missing.

The models of other people are taken from the folder that `HMR_SKEL_OSIM_MODELS` names
(`make osim-models` fills it), and skipped without it.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.exporters.opensim import OpenSim, OpenSimOptions
from skel_fit import joint_limits
from skel_fit.anatomy import JOINT_NAMES, POSE_NAMES
from skel_fit.default_body import default_body_directory
from skel_fit.model_files import load_skel
from skel_fit.opensim import angles, osim_reader, osim_writer, subject, tables, transfer
from tests.test_opensim_bsm import bsm_like
from tests.test_opensim_files import index_of, our_frames, two_sequences
from tests.test_opensim_model import poses_inside_limits

opensim = pytest.importorskip("opensim", reason="needs OpenSim: pip install 'hmr-skel[biomech]'")
opensim.Logger.setLevelString("Error")
opensim.Logger.removeFileSink()  # else it leaves opensim.log where the tests run

CASES = [(gender, kind) for gender in ("male", "female") for kind in angles.ANGLES]
FRAMES = 100


class Case:
    """A person of one gender in a folder of his own, in one convention of angles."""

    def __init__(self, folder: Path, gender: str, kind: angles.Angles, beta_seed: int = 0) -> None:
        self.kind = kind
        self.folder = folder
        self.skel = load_skel(default_body_directory(), gender, dtype=torch.float64)
        self.shared = osim_writer.template(self.skel)
        self.betas = torch.tensor(np.random.default_rng(beta_seed).uniform(-3, 3, (1, 10)))
        self.person = subject.subjects(self.skel, self.betas)[0]
        self.ground = subject.GROUNDS["y-up"]
        self.path = folder / "person.osim"
        text = osim_writer.osim_text("person", self.person, self.shared, self.ground, kind)
        self.path.write_text(text)
        self.model = opensim.Model(str(self.path))
        self.state = self.model.initSystem()
        self.coordinates = [self.model.getCoordinateSet().get(n) for n in angles.COORDINATES]
        self.bodies = [self.model.getBodySet().get(n) for n in JOINT_NAMES]

    def values(self, poses: np.ndarray, trans: np.ndarray, *, sequence: bool) -> np.ndarray:
        root = self.person.root(self.ground)
        return angles.coordinates(poses, trans, root, self.kind, sequence=sequence)

    def ours(self, poses: np.ndarray, trans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tensors = torch.tensor(poses), self.betas, torch.tensor(trans)
        position, axes = subject.body_frames(self.skel, *tensors)
        return position @ self.ground.T, self.ground @ axes

    def theirs(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return bodies_of(self.model, self.state, self.coordinates, self.bodies, values)


def bodies_of(model, state, coordinates, bodies, values) -> tuple[np.ndarray, np.ndarray]:
    """OpenSim's forward kinematics: (n, b, 3) and (n, b, 3, 3)."""
    positions, axes = [], []
    for row in values:
        for coordinate, value in zip(coordinates, row, strict=True):
            coordinate.setValue(state, float(value), False)
        model.realizePosition(state)
        found = [body.getTransformInGround(state) for body in bodies]
        positions.append([transform.p().to_numpy() for transform in found])
        axes.append([[[t.R().get(a, b) for b in range(3)] for a in range(3)] for t in found])
    return np.array(positions), np.array(axes)


@pytest.fixture(params=CASES, ids="-".join, scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("opensim"), *request.param)


def test_opensim_moves_the_bodies_as_we_do(case: Case) -> None:
    poses = poses_inside_limits(FRAMES)
    trans = np.random.default_rng(1).normal(size=(FRAMES, 3))
    position, axes = case.theirs(case.values(poses, trans, sequence=False))
    wanted, turned = case.ours(poses, trans)
    assert np.abs(position - wanted).max() <= 1e-6
    assert np.abs(axes - turned).max() <= 1e-5


def _sequence(frames: int, reach: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """A slow motion from rest to somewhere inside the limits."""
    limits = joint_limits.limits("default").copy()
    limits[:3] = [-0.5, 0.5]
    goal = np.random.default_rng(8).uniform(limits[:, 0], limits[:, 1])
    share = np.linspace(0, reach, frames)[:, None]
    return share * goal, share * np.array([0.3, -0.2, 0.1])


def test_a_written_motion_is_the_same_motion_in_opensim(case: Case) -> None:
    poses, trans = _sequence(60, reach=1.0)
    values = case.values(poses, trans, sequence=True)
    path = case.folder / "person.mot"
    path.write_text(tables.mot_text("person", np.arange(60) / 30, values))
    table = opensim.TimeSeriesTable(str(path))
    assert table.getTableMetaDataAsString("inDegrees") == "yes"
    assert list(table.getColumnLabels()) == list(angles.COORDINATES)
    read = table.getMatrix().to_numpy()
    turns = [name not in angles.TRANSLATIONS for name in angles.COORDINATES]
    read = np.where(turns, np.radians(read), read)
    position, axes = case.theirs(read)
    wanted, turned = case.ours(poses, trans)
    assert np.abs(position - wanted).max() <= 1e-6
    assert np.abs(axes - turned).max() <= 1e-5


IK = """<?xml version="1.0"?><OpenSimDocument Version="40500"><InverseKinematicsTool name="ik">
<model_file>{model}</model_file><marker_file>{markers}</marker_file><constraint_weight>Inf
</constraint_weight><accuracy>1e-10</accuracy><time_range>0 10</time_range>
<report_errors>false</report_errors><output_motion_file>{out}</output_motion_file>
<IKTaskSet><objects>{tasks}</objects></IKTaskSet></InverseKinematicsTool></OpenSimDocument>"""


def test_inverse_kinematics_of_fixed_markers_returns_the_angles(case: Case) -> None:
    frames = 4
    poses, trans = _sequence(frames)
    values = case.values(poses, trans, sequence=True)
    position, axes = case.ours(poses, trans)
    chosen = case.shared.markers
    local = osim_writer.marker_locations(case.person, chosen)
    points = position[:, chosen.bodies]
    points = points + np.einsum("nmab,mb->nma", axes[:, chosen.bodies], local)
    trc, out, setup = (case.folder / name for name in ("m.trc", "ik.mot", "ik.xml"))
    trc.write_text(tables.trc_text("m", np.arange(frames) / 30, chosen.names, points))
    tasks = "".join(
        f'<IKMarkerTask name="{name}"><apply>true</apply><weight>1</weight></IKMarkerTask>'
        for name in chosen.names
    )
    setup.write_text(IK.format(model=case.path, markers=trc, out=out, tasks=tasks))
    tool = opensim.InverseKinematicsTool(str(setup))
    assert tool.run()
    motion = tables.read_motion(out.read_text(), str(out))
    turns = [name not in angles.TRANSLATIONS for name in motion.columns]
    read = tables.radians(motion, turns, str(out), "degrees")
    wanted = values[:, [angles.COORDINATES.index(name) for name in motion.columns]]
    apart = np.degrees(np.abs(read - wanted)[:, turns])
    assert len(motion.times) == frames and len(motion.columns) == 49
    assert apart.max() < 1e-3


ID = """<?xml version="1.0"?><OpenSimDocument Version="40500"><InverseDynamicsTool name="id">
<results_directory>{folder}</results_directory><model_file>{model}</model_file>
<time_range>-1 100</time_range><forces_to_exclude>Muscles</forces_to_exclude>
<coordinates_file>{motion}</coordinates_file>
<lowpass_cutoff_frequency_for_coordinates>{cutoff}</lowpass_cutoff_frequency_for_coordinates>
<output_gen_force_file>id.sto</output_gen_force_file></InverseDynamicsTool></OpenSimDocument>"""


def inverse_dynamics(folder: Path, model: Path, motion: Path, cutoff: float = -1) -> tables.Motion:
    """Generalised forces that OpenSim finds for a motion."""
    setup = folder / "id.xml"
    setup.write_text(ID.format(folder=folder, model=model, motion=motion, cutoff=cutoff))
    tool = opensim.InverseDynamicsTool(str(setup))
    assert tool.run()
    return tables.read_motion((folder / "id.sto").read_text(), "id.sto")


def test_a_person_who_stands_weighs_what_the_segments_weigh(case: Case) -> None:
    frames = 20
    poses, trans = np.zeros((frames, 46)), np.zeros((frames, 3))
    values = case.values(poses, trans, sequence=True)
    path = case.folder / "still.mot"
    path.write_text(tables.mot_text("still", np.arange(frames) / 30, values))
    forces = inverse_dynamics(case.folder, case.path, path)
    mass = case.model.getTotalMass(case.state)
    columns = dict(zip(forces.columns, forces.values.T, strict=True))
    assert columns["pelvis_ty_force"] == pytest.approx(mass * 9.80665, rel=1e-6)
    assert np.abs(columns["pelvis_tx_force"]).max() < 1e-6 * mass
    assert all(np.isfinite(column).all() for column in columns.values())


def test_an_exported_sequence_opens_and_inverse_dynamics_runs(tmp_path_factory, tmp_path) -> None:
    dataset = two_sequences(tmp_path_factory.getbasetemp())
    OpenSim().write(dataset, tmp_path / "osim", OpenSimOptions(), None)
    for entry in index_of(tmp_path / "osim")["files"]:
        path, motion = (tmp_path / "osim" / entry[kind] for kind in ("osim", "mot"))
        model = opensim.Model(str(path))
        state = model.initSystem()
        table = opensim.TimeSeriesTable(str(motion))  # a temporary would be freed too early
        read = table.getMatrix().to_numpy()
        turns = [name not in angles.TRANSLATIONS for name in angles.COORDINATES]
        coordinates = [model.getCoordinateSet().get(name) for name in angles.COORDINATES]
        bodies = [model.getBodySet().get(name) for name in JOINT_NAMES]
        values = np.where(turns, np.radians(read), read)
        position, axes = bodies_of(model, state, coordinates, bodies, values)
        wanted, turned = our_frames(dataset, entry["rows"], entry["gender"])
        ground = np.array(entry["ground"])
        assert np.abs(position - wanted @ ground.T).max() <= 1e-6
        assert np.abs(axes - ground @ turned).max() <= 1e-5
        forces = inverse_dynamics(tmp_path, path, motion)
        assert len(forces.columns) == 49 and np.isfinite(forces.values).all()
        markers = opensim.TimeSeriesTableVec3(str(tmp_path / "osim" / entry["trc"]))
        assert markers.getNumRows() == len(entry["rows"]) and markers.getNumColumns() == 72


# ---- other people's models ----------------------------------------------------------------------

FOREIGN = {
    "Rajagopal2015.osim": 39,
    "Model_Pose2Sim_simple.osim": 40,
    "Model_Pose2Sim_muscles_flex.osim": 62,
}


@pytest.fixture(params=FOREIGN)
def foreign(request: pytest.FixtureRequest) -> Path:
    folder = os.environ.get("HMR_SKEL_OSIM_MODELS")
    if not folder:
        pytest.skip("set HMR_SKEL_OSIM_MODELS to the folder that `make osim-models` fills")
    return Path(folder) / request.param


def test_our_reader_moves_other_models_as_opensim_does(foreign: Path) -> None:
    model = osim_reader.read_model(foreign.read_text(), foreign.name)
    assert len(model.coordinates) == FOREIGN[foreign.name]
    assert apart_from_opensim(model, foreign) < 1e-5


def test_our_reader_moves_ellipsoid_and_bent_joints_as_opensim_does(tmp_path: Path) -> None:
    path = tmp_path / "bsm_like.osim"
    path.write_text(bsm_like())
    assert apart_from_opensim(osim_reader.read_model(path.read_text(), path.name), path) < 1e-12


def apart_from_opensim(model: osim_reader.ForeignModel, path: Path) -> float:
    """Largest difference of any place (m) or entry of any rotation, at random coordinates."""
    judge = opensim.Model(str(path))
    state = judge.initSystem()
    names = list(model.coordinates)
    coordinates = [judge.getCoordinateSet().get(name) for name in names]
    assert judge.getCoordinateSet().getSize() == len(names)
    for coordinate in coordinates:
        coordinate.setLocked(state, False)
        coordinate.setClamped(state, False)
    rng = np.random.default_rng(0)
    values = {
        name: rng.uniform(max(c.low, -2), min(c.high, 2), 5)
        for name, c in model.coordinates.items()
    }
    full = model.completed(values, 5)
    frames = model.body_frames(values, 5)
    bodies = [judge.getBodySet().get(name) for name in model.bodies]
    table = np.stack([full[name] for name in names], 1)
    position, axes = bodies_of(judge, state, coordinates, bodies, table)
    ours = [np.stack([frames[b][k] for b in model.bodies], 1) for k in (0, 1)]
    return float(max(np.abs(ours[0] - position).max(), np.abs(ours[1] - axes).max()))


def test_a_motion_goes_into_other_models_and_back(foreign: Path, case: Case) -> None:
    model = osim_reader.read_model(foreign.read_text(), foreign.name)
    poses, trans = _sequence(30, reach=0.6)
    position, axes = case.ours(poses, trans)
    ours = {name: (position[:, k], axes[:, k]) for k, name in enumerate(JOINT_NAMES)}
    into = transfer.carry(transfer.named_for(model.bodies, ours, case.person), model)
    for body in ("pelvis", "femur_r", "femur_l", "torso", "humerus_r", "humerus_l"):
        assert into.residuals[body].max() < 1e-3  # three free angles
    assert into.distance.max() < 1e-9
    # Signs as the field has them: a bent knee is positive, and near ours.
    ours_knee = poses[:, POSE_NAMES.index("knee_angle_r")]
    assert np.degrees(np.abs(into.values["knee_angle_r"] - ours_knee)).max() < 10
    ours_ankle = poses[:, POSE_NAMES.index("ankle_angle_r")]
    assert np.degrees(np.abs(into.values["ankle_angle_r"] - ours_ankle)).max() < 3
    text = osim_writer.osim_text("own", case.person, case.shared, case.ground, "skel")
    own = osim_reader.read_model(text, "own")
    frames = transfer.named_for_skel(model.body_frames(into.values, 30), case.person)
    back = transfer.carry(frames, own, still=("scapula_r", "scapula_l"))
    found = np.stack([back.values[name] for name in POSE_NAMES], 1)
    legs = [POSE_NAMES.index(f"hip_{m}_{s}") for m in ("flexion", "adduction") for s in "rl"]
    assert np.abs(found - poses)[:, [0, 1, 2, *legs]].max() < 1e-6
    assert {"scapula_r", "scapula_l"} <= set(back.without_counterpart)
