"""Tables of OpenSim (.mot, .trc, .csv) and .osim files of other origin: read, refused, carried."""

import numpy as np
import pytest
import torch

from skel_fit import joint_limits
from skel_fit.anatomy import JOINT_NAMES, POSE_NAMES
from skel_fit.default_body import default_body_directory
from skel_fit.model_files import load_skel
from skel_fit.opensim import angles, functions, osim_reader, osim_writer, subject, tables, transfer

TIMES = np.arange(5) / 30


def random_values() -> np.ndarray:
    return np.random.default_rng(0).uniform(-2, 2, (5, 49))


def test_a_motion_reads_back() -> None:
    values = random_values()
    motion = tables.read_motion(tables.mot_text("walk", TIMES, values), "x.mot")
    assert motion.name == "walk" and motion.columns == angles.COORDINATES
    assert motion.in_degrees and motion.ours
    assert np.abs(motion.times - TIMES).max() < 1e-9
    turns = [name not in angles.TRANSLATIONS for name in motion.columns]
    assert np.abs(tables.radians(motion, turns, "x.mot") - values).max() < 1e-9


def test_sto_files_and_state_names_are_read() -> None:
    text = (
        "states\nDataType=double\nversion=3\nOpenSimVersion=4.5\ninDegrees=no\nendheader\n"
        "time\t/jointset/hip_r/hip_flexion_r/value\t/jointset/hip_r/hip_flexion_r/speed\n"
        "0\t0.5\t1\n0.1 0.6 1\n"
    )
    motion = tables.read_motion(text, "x.sto")
    assert motion.columns[0] == "hip_flexion_r" and not motion.ours
    assert tables.radians(motion, [True, False], "x.sto")[1, 0] == 0.6


GOOD = "m\nversion=1\nnRows=2\nnColumns=2\ninDegrees=yes\nendheader\ntime\ta\n0\t10\n1\t20\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("endheader\n", "", "no line 'endheader'"),
        ("nRows=2", "nRows=3", "says 3 rows, there are 2"),
        ("1\t20", "0\t20", "expected increasing time, row 1"),
        ("1\t20", "-1\t20", "expected increasing time, row 1"),
        ("1\t20", "1\t20\t30", "row 1 has 3 numbers, expected 2"),
        ("1\t20", "1\tnan", "not finite"),
        ("1\t20", "1\tten", "no number"),
        ("time\ta\n0\t10\n1\t20", "time\ta\ta\n0\t1\t1\n1\t2\t2", "'a' is there twice"),
        ("time\ta", "frame\ta", "expected 'time'"),
        ("inDegrees=yes\n", "", "expected inDegrees=yes or no"),
    ],
)
def test_damaged_motions_are_one_line(old, new, message) -> None:
    assert tables.read_motion(GOOD, "good.mot").values[1, 0] == 20
    with pytest.raises(ValueError, match=message) as caught:
        tables.read_motion(GOOD.replace(old, new), "bad.mot")
    assert str(caught.value).startswith("bad.mot: ") and "\n" not in str(caught.value)


def test_radians_declared_as_degrees_are_refused() -> None:
    text = GOOD.replace("0\t10\n1\t20", "0\t1.2\n1\t1.3")
    motion = tables.read_motion(text, "bad.mot")
    with pytest.raises(ValueError, match=r"bad.mot: .*look like radians"):
        tables.radians(motion, [True], "bad.mot")
    assert tables.radians(motion, [True], "bad.mot", "radians")[0, 0] == 1.2
    assert tables.radians(motion, [True], "bad.mot", "degrees")[0, 0] == np.radians(1.2)
    # A person who hardly moves, written by us, is not suspected.
    still = tables.mot_text("still", TIMES, random_values() / 100)
    read = tables.read_motion(still, "still.mot")
    assert tables.radians(read, [True] * 49, "still.mot").shape == (5, 49)


@pytest.mark.parametrize("times", [[0, 1, 1, 2, 3], [0, 1, 0.5, 2, 3]])
def test_time_that_does_not_increase_is_not_written(times) -> None:
    with pytest.raises(ValueError, match="row 2 does not increase"):
        tables.mot_text("x", np.array(times, float), random_values())


def test_numbers_that_are_not_finite_are_not_written() -> None:
    values = random_values()
    values[3, 4] = np.nan
    with pytest.raises(ValueError, match="row 3"):
        tables.mot_text("x", TIMES, values)


def test_markers_are_laid_out_as_the_format_asks() -> None:
    points = np.arange(30.0).reshape(5, 2, 3)
    lines = tables.trc_text("x.trc", TIMES, ("A", "B"), points).split("\n")
    assert lines[0].split("\t")[:3] == ["PathFileType", "4", "(X/Y/Z)"]
    assert lines[2].split("\t")[2:5] == ["5", "2", "m"]
    assert lines[3] == "Frame#\tTime\tA\t\t\tB"
    assert lines[4] == "\t\tX1\tY1\tZ1\tX2\tY2\tZ2" and lines[5] == ""
    assert [float(x) for x in lines[7].split("\t")] == pytest.approx(
        [2, 1 / 30, 6, 7, 8, 9, 10, 11]
    )


def test_csv_has_names_degrees_and_flags() -> None:
    values = random_values()
    flags = ["", "hip_r", "", "", "hip_r glenohumeral_l"]
    rows = tables.csv_text(TIMES, values, flags).splitlines()
    assert rows[0].split(",") == ["time", *angles.COORDINATES, "gimbal"]
    cells = rows[2].split(",")
    assert float(cells[1]) == pytest.approx(np.degrees(values[1, 0]), abs=1e-8)
    assert float(cells[4]) == pytest.approx(values[1, 3], abs=1e-8)  # pelvis_tx, metres
    assert cells[-1] == "hip_r"


# ---- other people's models ----------------------------------------------------------------------

JOINT_3 = """<Joint><CustomJoint name="hip"><parent_body>pelvis</parent_body>
<location_in_parent>0.1 0 0</location_in_parent>
<orientation_in_parent>0.1 0.2 0.3</orientation_in_parent>
<location>0 0 0</location><orientation>0 0 0.5</orientation><CoordinateSet><objects>{coordinates}
</objects></CoordinateSet><reverse>false</reverse><SpatialTransform>{axes}</SpatialTransform>
</CustomJoint></Joint>"""


def coordinate(name: str, extra: str = "") -> str:
    return f'<Coordinate name="{name}"><range>-3 3</range>{extra}</Coordinate>'


def axis(name: str, direction: str, coordinates: str = "", function: str = "") -> str:
    constant = "<Constant><value>0</value></Constant>"
    return (
        f'<TransformAxis name="{name}"><coordinates>{coordinates}</coordinates><axis>{direction}'
        f"</axis><function>{function or constant}</function></TransformAxis>"
    )


def old_model(joint: str = JOINT_3, names: tuple[str, ...] = ("flex", "add", "rot")) -> str:
    """A pelvis that moves freely and a femur: the layout of OpenSim 3."""
    slopes = ("1 0", "-1 0", "2 0.1")
    lines = [f"<LinearFunction><coefficients>{s}</coefficients></LinearFunction>" for s in slopes]
    axes = "".join(
        axis(f"rotation{k + 1}", direction, names[k], lines[k])
        for k, direction in enumerate(("0 0 1", "1 0 0", "0 1 0"))
    ) + "".join(axis(f"translation{k + 1}", d) for k, d in enumerate(("1 0 0", "0 1 0", "0 0 1")))
    made = joint.format(axes=axes, coordinates="".join(map(coordinate, names)))
    free = "".join(coordinate(f"p{k}") for k in range(6))
    return (
        '<OpenSimDocument Version="30000"><Model name="old"><BodySet><objects>'
        '<Body name="ground"/><Body name="pelvis"><Joint><FreeJoint name="root">'
        f"<parent_body>ground</parent_body><CoordinateSet><objects>{free}</objects>"
        "</CoordinateSet></FreeJoint></Joint></Body>"
        f'<Body name="femur_r">{made}'
        "</Body></objects></BodySet></Model></OpenSimDocument>"
    )


def test_models_of_the_old_layout_are_read_and_followed() -> None:
    model = osim_reader.read_model(old_model(), "old.osim")
    assert model.bodies == ("pelvis", "femur_r") and model.notes is None
    rng = np.random.default_rng(0)
    values = {name: rng.uniform(-1, 1, 6) for name in model.coordinates}
    frames = model.body_frames(values, 6)
    found = transfer.carry({b: frames[b] for b in model.bodies}, model)
    assert max(r.max() for r in found.residuals.values()) < 1e-5
    assert found.distance.max() < 1e-9 and not found.held
    again = model.body_frames(found.values, 6)
    for body in model.bodies:
        assert np.abs(again[body][0] - frames[body][0]).max() < 1e-9
        assert np.abs(again[body][1] - frames[body][1]).max() < 1e-9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no XML"),
        ("<a/>", "expected an <OpenSimDocument>"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><OpenSimDocument/>', "document type or entities"),
        ("<OpenSimDocument><Model/></OpenSimDocument>", "no joints"),
        (old_model(names=("flex", "flex", "rot")), "two coordinates are named 'flex'"),
        (old_model(names=("p0", "add", "rot")), "two coordinates are named 'p0'"),
        (
            old_model().replace("CustomJoint", "ScapulothoracicJoint"),
            "type Scapulothoracic.*not read",
        ),
        (old_model().replace("LinearFunction", "GCVSpline"), "function GCVSpline is not read"),
        (old_model().replace(">pelvis</parent", ">moon</parent"), "hangs on nothing"),
        (old_model().replace("<axis>1 0 0", "<axis>0 0 0"), "has no direction"),
        (old_model().replace("0.1 0.2 0.3", "0.1 0.2"), "expected 3 numbers"),
        (old_model().replace(">false</reverse", ">true</reverse"), "is reversed"),
    ],
)
def test_models_that_cannot_be_read_are_one_line(text, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        osim_reader.read_model(text, "bad.osim")
    assert str(caught.value).startswith("bad.osim: ") and "\n" not in str(caught.value)


def test_splines_go_through_their_knots_and_on_straight() -> None:
    x = np.array([0.0, 0.4, 1.0, 1.3, 2.0])
    cubic = x**3 - x
    text = (
        f"<SimmSpline><x>{' '.join(map(str, x))}</x><y>{' '.join(map(str, cubic))}</y></SimmSpline>"
    )
    spline = functions.function(osim_reader.ElementTree.fromstring(text), "here")
    between = np.linspace(0, 2, 31)[:, None]
    # Its end conditions make it exact for any cubic.
    assert spline(between) == pytest.approx(between[:, 0] ** 3 - between[:, 0], abs=1e-12)
    assert spline(np.array([[-1.0]]))[0] == pytest.approx(1.0)
    assert spline(np.array([[3.0]]))[0] == pytest.approx(6.0 + 11.0)


@pytest.fixture(scope="module")
def person():
    skel = load_skel(default_body_directory(), "female", dtype=torch.float64)
    return skel, subject.subjects(skel, torch.full((1, 10), 0.7, dtype=torch.float64))[0]


def test_our_own_bodies_carried_back_are_our_angles(person) -> None:
    skel, one = person
    ground = subject.GROUNDS["z-up"]
    limits = joint_limits.limits("default").copy()
    limits[:3] = [-1, 1]
    poses = np.random.default_rng(4).uniform(limits[:, 0], limits[:, 1], (20, 46))
    trans = np.random.default_rng(5).normal(size=(20, 3))
    betas = torch.tensor(one.betas[None])
    position, axes = subject.body_frames(skel, torch.tensor(poses), betas, torch.tensor(trans))
    frames = {
        name: (position[:, k] @ ground.T, ground @ axes[:, k]) for k, name in enumerate(JOINT_NAMES)
    }
    text = osim_writer.osim_text("own", one, osim_writer.template(skel), ground, "skel")
    found = transfer.carry(frames, osim_reader.read_model(text, "own"), sequence=False)
    reached = np.stack([found.values[name] for name in POSE_NAMES], 1)
    assert np.abs((reached - poses + np.pi) % (2 * np.pi) - np.pi).max() < 1e-6
    assert max(r.max() for r in found.residuals.values()) < 1e-3
    assert found.distance.max() < 1e-9 and not found.held and not found.without_counterpart


def test_a_model_with_one_torso_follows_our_thorax(person) -> None:
    _, one = person
    ours = {
        name: (np.zeros((1, 3)), one.orientations[None, k]) for k, name in enumerate(JOINT_NAMES)
    }
    theirs = transfer.named_for(("pelvis", "torso", "femur_r"), ours, one)
    assert set(theirs) == {"pelvis", "torso", "femur_r"}
    # At rest the torso is upright: x forward (+z of the body frame), y up.
    assert theirs["torso"][1][0] == pytest.approx(subject.GROUNDS["y-up"].T)
    back = transfer.named_for_skel(theirs, one)
    assert back["thorax"][1][0] == pytest.approx(one.orientations[12])


def test_a_model_of_other_things_is_refused(person) -> None:
    text = old_model().replace('"pelvis"', '"crane"').replace(">pelvis<", ">crane<")
    model = osim_reader.read_model(text.replace("femur_r", "hook"), "crane.osim")
    with pytest.raises(ValueError, match="no body has a counterpart"):
        transfer.carry({"pelvis": (np.zeros((1, 3)), np.eye(3)[None])}, model)


def test_locked_and_unreached_coordinates_are_named(person) -> None:
    text = old_model().replace(
        '<Coordinate name="add">', '<Coordinate name="add"><locked>true</locked>'
    )
    model = osim_reader.read_model(text, "old.osim")
    eye = np.eye(3)[None]
    turned = angles.rotation_about(np.array([1.0, 0, 0]), np.array([0.5]))
    frames = {"pelvis": (np.zeros((1, 3)), eye), "femur_r": (np.zeros((1, 3)), turned)}
    found = transfer.carry(frames, model)
    assert found.held == ("add",) and found.residuals["femur_r"][0] > 1
    only_pelvis = transfer.carry({"pelvis": frames["pelvis"]}, model)
    assert only_pelvis.without_counterpart == ("femur_r",)
    assert set(only_pelvis.held) == {"flex", "add", "rot"}
