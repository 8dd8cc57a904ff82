"""Models in the schema of BSM: ellipsoid and constant-curvature joints, read, followed, carried.

The licensed file is not here. `bsm_like` writes one in its schema: names, joint types, orders of
axes and orientations of the joints' frames where docs/opensim.md#models-like-bsm states them;
sizes and the tilts of the spine are invented.
"""

import numpy as np
import pytest
import torch

from pipeline.exporters.opensim import OpenSim, OpenSimOptions, read_osim
from pipeline.opensim_import import import_opensim
from skel_fit.anatomy import JOINT_NAMES, POSE_NAMES
from skel_fit.default_body import default_body_directory
from skel_fit.model_files import load_skel
from skel_fit.opensim import osim_reader, subject, transfer
from tests.test_opensim_files import index_of, two_sequences
from tests.test_opensim_model import poses_inside_limits

SIDES = {"r": 1, "l": -1}
ZERO, LINE = "<Constant><value>0</value></Constant>", "<LinearFunction><coefficients>{} 0"
_PLACE = ("translation1", "1 0 0"), ("translation2", "0 1 0"), ("translation3", "0 0 1")


def joint(
    kind: str,
    name: str,
    ends: tuple[str, str],
    coordinates: tuple[str, ...],
    inside: str = "",
    frames: tuple[str, str] = ("0 0 0", "0 0 0"),
    places: tuple[str, str] = ("0.02 -0.1 0.03", "0 0.01 0"),
) -> str:
    """A joint with its frames: orientations and places on parent and child."""
    offsets = "".join(
        f'<PhysicalOffsetFrame name="{end}_offset"><socket_parent>{_path(end)}</socket_parent>'
        f"<translation>{place}</translation><orientation>{turn}</orientation>"
        "</PhysicalOffsetFrame>"
        for end, place, turn in zip(ends, places, frames, strict=True)
    )
    named = "".join(
        f'<Coordinate name="{c}"><range>-3.1 3.1</range></Coordinate>' for c in coordinates
    )
    return (
        f'<{kind} name="{name}"><socket_parent_frame>{ends[0]}_offset</socket_parent_frame>'
        f"<socket_child_frame>{ends[1]}_offset</socket_child_frame>"
        f"<coordinates>{named}</coordinates><frames>{offsets}</frames>{inside}</{kind}>"
    )


def _path(body: str) -> str:
    return "/ground" if body == "ground" else f"/bodyset/{body}"


def transform(turns: list[tuple[str, str, str]], moves: tuple[str, ...] = ()) -> str:
    """A SpatialTransform: rotations (axis, coordinate, function), translations by coordinates."""
    rows = [(f"rotation{k + 1}", *turn) for k, turn in enumerate(turns)]
    for k, (name, axis) in enumerate(_PLACE):
        own = (moves[k], LINE.format(1)) if moves else ("", ZERO)
        rows.append((name, axis, *own))
    return "<SpatialTransform>" + "".join(
        f'<TransformAxis name="{name}"><coordinates>{coordinate}</coordinates><axis>{axis}</axis>'
        + (function + "</coefficients></LinearFunction>" if "Linear" in function else function)
        + "</TransformAxis>"
        for name, axis, coordinate, function in rows
    ) + "</SpatialTransform>"  # fmt: skip


def _leg(s: str, way: int) -> list[str]:
    mirrored = LINE.format(way)
    spline = "<SimmSpline><x>-2.1 -1 0 0.5</x><y>-0.1 -0.05 0 0.02</y></SimmSpline>"
    knee, beta = f"knee_angle_{s}", f"knee_angle_{s}_beta"
    walker = f"{way * -1.64157} {way * 1.44618} 1.5708"
    return [
        joint("CustomJoint", f"hip_{s}", ("pelvis", f"femur_{s}"),
              (f"hip_flexion_{s}", f"hip_adduction_{s}", f"hip_rotation_{s}"),
              transform([("0 0 1", f"hip_flexion_{s}", LINE.format(1)),
                         ("1 0 0", f"hip_adduction_{s}", mirrored),
                         ("0 1 0", f"hip_rotation_{s}", mirrored)])),
        joint("CustomJoint", f"walker_knee_{s}", (f"femur_{s}", f"tibia_{s}"), (knee,),
              transform([("1 0 0", knee, LINE.format(1)), ("0 1 0", knee, spline),
                         ("0 0 1", knee, spline)]), (walker, walker)),
        joint("CustomJoint", f"patellofemoral_{s}", (f"femur_{s}", f"patella_{s}"), (beta,),
              transform([("0 0 1", beta, LINE.format(1)), ("0 1 0", "", ZERO),
                         ("1 0 0", "", ZERO)])),
        *(
            joint("PinJoint", name, (f"{above}_{s}", f"{below}_{s}"), (coordinate,), "",
                  (tilt, tilt))
            for name, above, below, coordinate, tilt in (
                (f"ankle_{s}", "tibia", "talus", f"ankle_angle_{s}",
                 f"{way * 0.175895} {way * -0.105208} 0.0186622"),
                (f"subtalar_{s}", "talus", "calcn", f"subtalar_angle_{s}",
                 f"{way * -1.76819} {way * 0.906223} 1.8196"),
                (f"mtp_{s}", "calcn", "toes", f"mtp_angle_{s}",
                 f"{way * -3.14159} {way * 0.619901} 0"),
            )
        ),
    ]  # fmt: skip


def _arm(s: str, way: int) -> list[str]:
    half = 0 if way > 0 else np.pi
    radii = f"<radii_x_y_z>{way * 0.083} {way * 0.2} {way * 0.083}</radii_x_y_z>"
    elbow, roll = f"elbow_flexion_{s}", f"pro_sup_{s}"
    flexion, deviation = f"wrist_flexion_{s}", f"wrist_deviation_{s}"
    return [
        joint("EllipsoidJoint", f"scapulothoracic_{s}", ("thorax", f"scapula_{s}"),
              (f"scapula_abduction_{s}", f"scapula_elevation_{s}", f"scapula_upward_rot_{s}"),
              radii, (f"0 {way * -0.97} {half}",
                      f"{way * -0.5181} {way * -1.1416} {half - 0.2854}")),
        joint("CustomJoint", f"GlenoHumeral_{s}", (f"scapula_{s}", f"humerus_{s}"),
              tuple(f"shoulder_{s}_{k}" for k in "xyz"),
              transform([(axis, f"shoulder_{s}_{k}", LINE.format(1))
                         for axis, k in zip(("1 0 0", "0 1 0", "0 0 1"), "xyz", strict=True)])),
        *(
            joint("CustomJoint", name, (above, below), (coordinate,),
                  transform([(axis, coordinate, LINE.format(1)), (second, "", ZERO),
                             (third, "", ZERO)]))
            for name, above, below, coordinate, axis, second, third in (
                (f"elbow_{s}", f"humerus_{s}", f"ulna_{s}", elbow,
                 f"{way * 0.0494} {way * 0.0366} 0.99811", "0 1 0", "1 0 0"),
                (f"radioulnar_{s}", f"ulna_{s}", f"radius_{s}", roll,
                 f"{way * -0.01716} {way * 0.99267} {way * -0.11967}", "1 0 0", "0 0 1"),
            )
        ),
        joint("CustomJoint", f"wrist_{s}", (f"radius_{s}", f"hand_{s}"), (flexion, deviation),
              transform([("1 0 0", flexion, LINE.format(way)), ("0 0 1", deviation,
                          LINE.format(-1)), ("0 1 0", "", ZERO)])),
    ]  # fmt: skip


def bsm_like() -> str:
    """26 bodies, 49 free coordinates and two dependent ones."""
    root = ("pelvis_tilt", "pelvis_list", "pelvis_rotation", "pelvis_tx", "pelvis_ty", "pelvis_tz")
    joints = [
        joint("CustomJoint", "ground_pelvis", ("ground", "pelvis"), root,
              transform([("0 0 1", root[0], LINE.format(1)), ("1 0 0", root[1], LINE.format(1)),
                         ("0 1 0", root[2], LINE.format(1))], root[3:]),
              places=("0 0 0", "0 0 0"))
    ]  # fmt: skip
    spine = ("pelvis", "lumbar_body", "thorax", "head")
    for k, (part, length, neutral) in enumerate(
        (("lumbar", 0.1, 0.7), ("thorax", 0.3, -0.6), ("head", 0.1, 0.2))
    ):
        joints.append(
            joint("ConstantCurvatureJoint", f"spine_{part}", spine[k : k + 2],
                  (f"{part}_bending", f"{part}_extension", f"{part}_twist"),
                  f"<neutral_angle_x_z_y>0 {neutral} 0</neutral_angle_x_z_y>"
                  f"<length>{length}</length>", (f"0 0 {-0.1 * k}", f"0 0 {0.2 + neutral / 3}"))
        )  # fmt: skip
    for s, way in SIDES.items():
        joints += [*_leg(s, way), *_arm(s, way)]
    limbs = (
        "femur", "tibia", "patella", "talus", "calcn", "toes",
        "scapula", "humerus", "ulna", "radius", "hand",
    )  # fmt: skip
    bodies = [*spine, *(f"{name}_{s}" for name in limbs for s in SIDES)]
    masses = "".join(
        f'<Body name="{name}"><mass>1</mass><mass_center>0 0 0</mass_center>'
        "<inertia>1 1 1 0 0 0</inertia></Body>"
        for name in bodies
    )
    couplers = "".join(
        f'<CoordinateCouplerConstraint name="patella_{s}"><coupled_coordinates_function>'
        "<LinearFunction><coefficients>-1 0.1</coefficients></LinearFunction>"
        "</coupled_coordinates_function>"
        f"<independent_coordinate_names>knee_angle_{s}</independent_coordinate_names>"
        f"<dependent_coordinate_name>knee_angle_{s}_beta</dependent_coordinate_name>"
        "<scale_factor>1</scale_factor></CoordinateCouplerConstraint>"
        for s in SIDES
    )
    return (
        '<?xml version="1.0"?><OpenSimDocument Version="40000"><Model name="bsm_like">'
        f'<Ground name="ground"/><BodySet><objects>{masses}</objects></BodySet>'
        f"<JointSet><objects>{''.join(joints)}</objects></JointSet>"
        f"<ConstraintSet><objects>{couplers}</objects></ConstraintSet></Model></OpenSimDocument>"
    )


@pytest.fixture(scope="module")
def model() -> osim_reader.ForeignModel:
    return osim_reader.read_model(bsm_like(), "bsm_like.osim")


#: Bodies whose joint has three free angles about three axes.
BALLS = ("pelvis", "femur_r", "femur_l", "lumbar_body", "thorax", "head", "scapula_r", "scapula_l",
         "humerus_r", "humerus_l")  # fmt: skip


def test_the_schema_has_the_names_that_skel_has(model) -> None:
    assert set(JOINT_NAMES) < set(model.bodies) and len(model.bodies) == 26
    assert set(POSE_NAMES) < set(model.coordinates) and len(model.coordinates) == 51


def relative(model: osim_reader.ForeignModel, body: str, **angles: float) -> np.ndarray:
    """Where a joint puts its moving frame, seen from its fixed one."""
    found = model.joint_of(body)
    values = {c.name: np.array([angles.get(c.name, 0.0)]) for c in found.coordinates}
    (fixed, axes), (on_child, _) = found.parent_frame, found.child_frame
    moving = found.position(values)[0] + found.rotation(values)[0] @ on_child
    return axes.T @ (moving - fixed)


def test_a_bent_spine_is_one_arc(model) -> None:
    # From straight: the neutral extension of the thorax is taken away.
    length, bend = 0.3, 0.5
    bent = relative(model, "thorax", thorax_bending=bend, thorax_extension=0.6)
    ends = (0, np.sin(bend) / bend, (1 - np.cos(bend)) / bend)
    assert bent == pytest.approx(length * np.array(ends), abs=1e-12)
    back = relative(model, "thorax", thorax_extension=0.6 + bend)
    assert back == pytest.approx(length * np.array([-ends[2], ends[1], 0]), abs=1e-12)
    twisted = relative(model, "thorax", thorax_extension=0.6, thorax_twist=1.0)
    assert twisted == pytest.approx([0, length, 0], abs=1e-12)
    # Both: an arc of the same length, so its chord is that of its whole bend.
    both = relative(model, "thorax", thorax_bending=0.5, thorax_extension=0.6 + 0.4)
    whole = np.arccos(np.cos(0.5) * np.cos(0.4))
    assert np.linalg.norm(both) == pytest.approx(length * np.sin(whole / 2) / (whole / 2))


def test_a_scapula_slides_on_an_ellipsoid(model) -> None:
    radii = np.array([0.083, 0.2, 0.083])
    for s, way in SIDES.items():
        at = {f"scapula_abduction_{s}": 0.3, f"scapula_elevation_{s}": -0.4}
        place = relative(model, f"scapula_{s}", **at)
        assert np.square(place / radii).sum() == pytest.approx(1)
        direction = np.array([np.sin(-0.4), -np.sin(0.3) * np.cos(0.4), np.cos(0.3) * np.cos(0.4)])
        assert place == pytest.approx(way * radii * direction)
        # Turning in the plane of the blade moves nothing.
        turned = relative(model, f"scapula_{s}", **at, **{f"scapula_upward_rot_{s}": 1.0})
        assert turned == pytest.approx(place)


def test_its_own_motion_carried_to_it_is_its_own_motion(model) -> None:
    rng = np.random.default_rng(3)
    values = {name: rng.uniform(-0.7, 0.7, 25) for name in model.coordinates}
    frames = model.body_frames(values, 25)
    found = transfer.carry({b: frames[b] for b in JOINT_NAMES}, model, sequence=False)
    assert max(r.max() for r in found.residuals.values()) < 1e-5
    assert found.without_counterpart == ("patella_r", "patella_l") and not found.held
    for name in POSE_NAMES:
        assert np.abs(found.values[name] - values[name]).max() < 1e-6, name
    again = model.body_frames(found.values, 25)
    for body in ("scapula_l", "head", "hand_r"):
        assert np.abs(again[body][0] - frames[body][0]).max() < 1e-6


@pytest.fixture(scope="module")
def carried(model):
    """Random poses of a person, on the model; what was wanted; the reached frames."""
    skel = load_skel(default_body_directory(), "male", dtype=torch.float64)
    betas = torch.zeros(1, 10, dtype=torch.float64)
    poses = poses_inside_limits(40) * 0.6
    position, axes = subject.body_frames(
        skel, torch.tensor(poses), betas, torch.zeros(40, 3, dtype=torch.float64)
    )
    ground = subject.GROUNDS["y-up"]
    ours = {n: (position[:, k] @ ground.T, ground @ axes[:, k]) for k, n in enumerate(JOINT_NAMES)}
    wanted = transfer.named_for(model.bodies, ours, subject.subjects(skel, betas)[0])
    found = transfer.carry(wanted, model, sequence=False)
    return found, wanted, model.body_frames(found.values, 40)


def test_a_motion_of_skel_is_carried_and_every_joint_has_its_residual(model, carried) -> None:
    found, wanted, reached = carried
    assert set(found.residuals) == set(JOINT_NAMES)
    for body in BALLS:
        assert found.residuals[body].max() < 1e-4, body
    assert found.residuals["tibia_r"].max() > 1  # its flexion turns about more than one axis
    # The residual of a body is the angle that its joint, seen from its parent, is off.
    for body in JOINT_NAMES[1:]:
        above = model.joint_of(body).parent
        want = wanted[above][1].transpose(0, 2, 1) @ wanted[body][1]
        have = reached[above][1].transpose(0, 2, 1) @ reached[body][1]
        cosine = (np.einsum("nab,nab->n", want, have) - 1) / 2
        assert np.abs(np.cos(np.radians(found.residuals[body])) - cosine).max() < 1e-6, body


def test_export_into_it_and_back_by_files(tmp_path_factory, tmp_path) -> None:
    dataset = two_sequences(tmp_path_factory.getbasetemp())
    path = tmp_path / "bsm_like.osim"
    path.write_text(bsm_like())
    options = OpenSimOptions(into=path, sequence=str(dataset["sequence"][0]))
    OpenSim().write(dataset, tmp_path / "out", options, None)
    entry = index_of(tmp_path / "out")["files"][0]
    assert set(entry["residual_degrees"]) == set(JOINT_NAMES)
    assert max(entry["residual_degrees"][body]["max"] for body in BALLS) < 1e-4
    assert entry["without_counterpart"] == ["patella_r", "patella_l"]
    back = import_opensim(
        path, tmp_path / "out" / entry["mot"], models=default_body_directory, gender="male",
        ground="z-up",
    )  # fmt: skip
    hips = [POSE_NAMES.index(f"hip_{m}_{s}") for m in ("flexion", "adduction") for s in "rl"]
    apart = back.poses[:, hips] - dataset["skel_poses"][entry["rows"]][:, hips]
    # The shape is not that of the sequence, and the thigh's rest direction is part of the shape.
    assert np.degrees(np.abs(apart)).max() < 1
    assert read_osim(path).coordinates["thorax_twist"].high == 3.1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<radii_x_y_z>0.083 0.2 0.083</radii_x_y_z>", "", "needs <radii_x_y_z> of 3 numbers"),
        ("<radii_x_y_z>0.083 0.2 ", "<radii_x_y_z>0.083 0 ", "needs <radii_x_y_z> of 3 numbers"),
        ("<length>0.3</length>", "<length>0</length>", "needs <length>"),
        ("<length>0.3</length>", "<length>far</length>", "expected 1 numbers in <length>"),
        (
            '<Coordinate name="thorax_twist"><range>-3.1 3.1</range></Coordinate>',
            "",
            "a ConstantCurvatureJoint has 3 coordinates, not 2",
        ),
    ],
)
def test_a_joint_without_its_sizes_is_refused(old, new, message) -> None:
    text = bsm_like()
    assert old in text
    with pytest.raises(ValueError, match=message) as caught:
        osim_reader.read_model(text.replace(old, new), "bad.osim")
    assert str(caught.value).startswith("bad.osim: joint ") and "\n" not in str(caught.value)
