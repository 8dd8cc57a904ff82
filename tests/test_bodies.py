"""Bodies of other topologies: maps, model files, shapes of identities, fits to their surfaces."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from skel_fit import FitConfig, load_skel, load_smpl
from skel_fit.bodies import (
    IdentityShapes,
    SurfaceMap,
    fit_identity,
    fit_skel_to_surface,
    surface_weights,
)
from skel_fit.bodies.smpl_family import FamilyBody
from skel_fit.default_body import default_body_directory
from skel_fit.default_body.expansion import default_body_arrays
from skel_fit.errors import ModelFileError
from skel_fit.fit import solver_of
from skel_fit.solver.surfaces import Meshes, place_surfaces
from tests.foreign_bodies import (
    SMPLX_VERTICES,
    FakeBody,
    fake_bodies,
    fake_smplx_arrays,
)

POSE_TOLERANCE = np.deg2rad(0.02)
ROWS = 4


@pytest.fixture(scope="module")
def bodies():
    """Male stand-in pair."""
    folder = default_body_directory()
    return load_skel(folder, "male"), load_smpl(folder, "male", dtype=torch.float64)


@pytest.fixture(scope="module")
def fakes(bodies) -> dict[str, FakeBody]:
    return fake_bodies(bodies[0].faces.numpy())


@pytest.fixture(scope="module")
def smplx(fakes, tmp_path_factory) -> FamilyBody:
    """The fake SMPL-X, read from a file in official members."""
    folder = tmp_path_factory.mktemp("smplx")
    arrays = fake_smplx_arrays(default_body_arrays("smpl", "male"), fakes["smplx"], "male")
    np.savez(folder / "SMPLX_MALE.npz", **arrays)
    return FamilyBody.load(folder, "smplx", "male")


@pytest.fixture(scope="module")
def people() -> dict[str, np.ndarray]:
    """SMPL-X parameters of four rows of two people, hands flat."""
    rng = np.random.default_rng(5)
    betas = rng.normal(0.0, 0.8, (2, 10))[[0, 0, 1, 1]]
    return {
        "global_orient": rng.normal(0.0, 0.6, (ROWS, 3)),
        "body_pose": rng.normal(0.0, 0.15, (ROWS, 63)),
        "betas": betas,
        "transl": rng.normal((0.0, 0.0, 4.0), 1.0, (ROWS, 3)),
    }


IDENTITY = np.array([7, 7, 9, 9])


@pytest.fixture(scope="module")
def meshes(bodies, people) -> np.ndarray:
    """The same people as SMPL, (4, 6890, 3)."""
    poses = np.concatenate((people["body_pose"], np.zeros((ROWS, 6))), axis=1)
    given = {"global_orient": people["global_orient"], "body_pose": poses,
             "betas": people["betas"], "transl": people["transl"]}  # fmt: skip
    return bodies[1](**{k: torch.as_tensor(v) for k, v in given.items()}).vertices.numpy()


@pytest.fixture(scope="module")
def rest(bodies, people) -> np.ndarray:
    """Rest meshes (2, 6890, 3) of the two people."""
    zeros = torch.zeros(2, 72, dtype=torch.float64)
    betas = torch.as_tensor(people["betas"][::2])
    return (
        bodies[1](global_orient=zeros[:, :3], body_pose=zeros[:, 3:], betas=betas)
        .vertices.detach()
        .numpy()
    )


@pytest.fixture(scope="module")
def shapes(bodies, rest) -> IdentityShapes:
    return _shapes(bodies, rest)


def _shapes(bodies, rest: np.ndarray) -> IdentityShapes:
    return fit_identity(
        {"male": bodies[0]},
        torch.as_tensor(rest),
        np.array([7, 9]),
        np.full(2, "male"),
        at_rest=True,
    )


# ---- maps ----


def test_a_map_reads_back_and_takes_each_vertex_from_its_place(fakes, meshes, tmp_path):
    """numpy and torch alike, exactly where the map is exact; the file is the same every time."""
    for name, fake in fakes.items():
        path = tmp_path / f"{name}.npz"
        fake.map.write(path)
        first = path.read_bytes()
        fake.map.write(path)
        assert path.read_bytes() == first
        found = SurfaceMap.read(path)
        moved = found.apply(fake.vertices(meshes[:1]))
        np.testing.assert_allclose(moved, meshes[:1], atol=1e-14)
        tensor = found.apply(torch.as_tensor(fake.vertices(meshes[:1])))
        np.testing.assert_array_equal(tensor.numpy(), moved)
        assert (found.source, found.licence) == (name, fake.map.licence)


class _Harm:
    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.parametrize(
    ("member", "change", "words"),
    [
        ("columns", lambda a: a + 20_000, "of 10475 source vertices"),
        ("columns", lambda a: a.astype("<i8"), "'columns' is int64"),
        ("columns", lambda a: a[:100], "expected <i4 (6890, 3)"),
        ("weights", lambda a: a * 2, "do not add up to 1"),
        ("weights", lambda a: a + np.float32([-2, 2, 0]), "expected at least 0"),
        ("weights", lambda a: np.where(a == 1, np.nan, a).astype("<f4"), "not finite"),
        ("vertex_weight", lambda a: a * 0, "is 0 for every vertex"),
        ("source", lambda a: np.array("../smplx"), "no name of a body"),
        ("licence", lambda a: np.array(""), "licence is empty"),
        ("target_faces_sha256", lambda a: np.array("00"), "no SHA-256"),
        ("licence", lambda a: None, "'licence' is missing"),
        ("licence", lambda a: np.array([_Harm()], object), "refused"),
    ],
)
def test_a_map_that_is_none_is_refused(fakes, tmp_path, monkeypatch, member, change, words):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "map.npz"
    fakes["smplx"].map.write(path)
    with np.load(path) as file:
        content = dict(file)
    value = change(content.pop(member))
    if value is not None:
        content[member] = value
    np.savez(path, **content)
    with pytest.raises(ModelFileError) as caught:
        SurfaceMap.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert words == "refused" or words in str(caught.value)
    assert not Path("harmed").exists()


def test_a_map_of_another_topology_is_refused(bodies, fakes, meshes, shapes):
    """The licensed SKEL has as many vertices as the stand-in: only the triangles tell."""
    fake = fakes["smplx"]
    other = SurfaceMap.of(
        fake.map.columns, fake.map.weights, source="smplx", source_vertices=SMPLX_VERTICES,
        source_faces=fake.faces, target_faces=fake.faces[:13776], licence="none",
    )  # fmt: skip
    with pytest.raises(ValueError, match="leads to another topology"):
        fit_skel_to_surface(bodies[0], fake.vertices(meshes), other, IDENTITY, shapes)
    with pytest.raises(ValueError, match=r"takes \(n, 10475, 3\)"):
        fit_skel_to_surface(bodies[0], meshes, fake.map, IDENTITY, shapes)
    with pytest.raises(ValueError, match="triangles of the source"):
        fake.map.check_source(fake.faces[::-1])
    fake.map.check_source(fake.faces)


# ---- bodies ----


def test_smplx_of_the_same_person_has_the_same_surface(bodies, fakes, smplx, people, meshes):
    """Official members in, the stand-in's surface out; the stated root turns it back exactly."""
    posed = smplx.surface(people)
    found = fakes["smplx"].map.apply(posed).numpy()
    np.testing.assert_allclose(found, meshes, atol=1e-6)
    still = smplx.root(people).unposed(posed)
    unturned = people | {"global_orient": np.zeros((ROWS, 3)), "transl": np.zeros((ROWS, 3))}
    np.testing.assert_allclose(still.numpy(), smplx.surface(unturned).numpy(), atol=1e-9)
    masks = fakes["smplx"].map.carried(smplx.mask_weights())
    np.testing.assert_allclose(masks, bodies[1].lbs_weights.numpy(), atol=1e-7)


def test_a_row_of_smplx_depends_on_no_other(smplx, people):
    everyone = smplx.surface(people)
    for row in range(ROWS):
        alone = {name: values[row : row + 1] for name, values in people.items()}
        assert torch.equal(smplx.surface(alone)[0], everyone[row])


def test_mean_hands_are_added_where_the_label_counts_from_them(smplx, people):
    flat = smplx.surface(people | {"flat_hand_mean": np.full(ROWS, True)})
    assert torch.equal(flat, smplx.surface(people))
    mean = smplx.surface(people | {"flat_hand_mean": np.full(ROWS, False)})
    given = {
        "left_hand_pose": np.full((ROWS, 45), 0.1),
        "right_hand_pose": np.full((ROWS, 45), -0.1),
    }
    assert torch.equal(mean, smplx.surface(people | given))
    assert not torch.equal(mean, flat)


def test_labels_with_more_betas_than_the_file_are_refused(smplx, people):
    with pytest.raises(ValueError, match=r"the model file SMPLX_MALE\.npz has 300"):
        smplx.surface(people | {"betas": np.zeros((ROWS, 301))})


def test_a_model_file_of_another_body_is_refused(fakes, tmp_path):
    arrays = fake_smplx_arrays(default_body_arrays("smpl", "male"), fakes["smplx"], "male")
    arrays["kintree_table"] = arrays["kintree_table"].copy()
    arrays["kintree_table"][0, 4] = 0
    (tmp_path / "SMPLX_MALE.pkl").write_bytes(pickle.dumps(arrays))
    with pytest.raises(ModelFileError, match="kintree_table"):
        FamilyBody.load(tmp_path, "smplx", "male")
    with pytest.raises(ModelFileError, match=r"SMPLX_FEMALE\.npz"):
        FamilyBody.load(tmp_path, "smplx", "female")


# ---- shapes and fits ----


def test_the_shape_of_a_rest_mesh_is_found(shapes, people):
    """The stand-in's own shapes, to a coefficient of 0.05: then the solver has converged."""
    np.testing.assert_array_equal(shapes.names, [7, 9])
    np.testing.assert_allclose(shapes.betas, people["betas"][::2], atol=0.05)
    assert (shapes.error < 0.0005).all()
    np.testing.assert_allclose(shapes.offsets, 0.0, atol=2e-4)


def test_a_shape_depends_on_its_own_meshes_alone(bodies, rest, shapes, tmp_path):
    """Bit for bit, whoever else is solved with it; and its file reads back."""
    alone = fit_identity(
        {"male": bodies[0]}, torch.as_tensor(rest[1:]), np.array([9]), np.full(1, "male"),
        at_rest=True,
    )  # fmt: skip
    np.testing.assert_array_equal(alone.betas[0], shapes.betas[1])
    np.testing.assert_array_equal(alone.offsets[0], shapes.offsets[1])
    path = tmp_path / "shapes.npz"
    shapes.write(path)
    found = IdentityShapes.read(path)
    np.testing.assert_array_equal(found.betas, shapes.betas)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ModelFileError, match="no shapes of identities"):
        IdentityShapes.read(path)
    with pytest.raises(ValueError, match="has no shape"):
        shapes.places(np.array([7, 8]))


def test_twins_place_meshes_alike(bodies, fakes, meshes, shapes):
    """The compiled passes and the float ones: bone rotations, root frame, and what is not finite;
    and the mesh comes back from its root frame."""
    skel, fake = bodies[0], fakes["smplx"]
    given = torch.as_tensor(fake.vertices(meshes).astype(np.float32)) + 3.0
    given[1, int(fake.map.columns[77, 0]), 2] = torch.inf
    source = Meshes(given, fake.map.columns, fake.map.weights)
    betas = torch.as_tensor(shapes.betas[shapes.places(IDENTITY)])
    compiled, plain = (
        solver_of(skel, None, FitConfig(recipe="surface", kernels=kernels))
        for kernels in ("numba", "torch")
    )
    found, wanted = (place_surfaces(skel, s, source, betas) for s in (compiled, plain))
    good = torch.arange(ROWS) != 1
    assert torch.equal(found.finite, good) and torch.equal(wanted.finite, good)
    for name in ("rotations", "orient", "seen", "home"):
        mine, theirs = getattr(found, name)[good], getattr(wanted, name)[good]
        torch.testing.assert_close(mine, theirs, rtol=0.0, atol=1e-9)
    rows = good.nonzero()[:, 0]
    mine, theirs = (wanted.goal(s)(rows).targets for s in (compiled, plain))
    torch.testing.assert_close(mine, theirs, rtol=0.0, atol=1e-6)
    back = mine.permute(2, 0, 1).double() - wanted.home[rows, None]
    back = back @ wanted.orient[rows].transpose(1, 2) + wanted.seen[rows, None]
    np.testing.assert_allclose(
        back.numpy(), fake.map.apply(given[rows].double().numpy()), atol=1e-6
    )


def test_few_vertices_count_for_their_neighbours(bodies):
    """All mass arrives, and none of it at vertices that count nothing."""
    skel = bodies[0]
    weights = surface_weights(skel)
    solver = solver_of(skel, None, FitConfig(recipe="surface"), weights)
    coarse, whole = (plan.vertices for plan in solver.plans)
    nothing = weights[coarse.indices] == 0.0
    assert coarse.masses[nothing].max() < 1e-6 < coarse.masses[~nothing].max()
    few, all_of_them = (v.masses @ skel.template.numpy()[v.indices] for v in (coarse, whole))
    own = weights[coarse.indices] / weights[coarse.indices].sum()
    alone = own @ skel.template.numpy()[coarse.indices]
    assert np.abs(few - all_of_them).max() < 0.5 * np.abs(alone - all_of_them).max()


@pytest.mark.parametrize("name", ["smplx", "mhr"])
def test_permuted_bodies_give_the_angles_of_smpl(bodies, fakes, meshes, rest, shapes, name):
    """Within 0.02 degrees and 0.01 mm, the shape found from the rest mesh of each body."""
    skel, fake = bodies[0], fakes[name]
    same = SurfaceMap.same_topology(skel.faces.numpy())
    wanted = fit_skel_to_surface(skel, meshes, same, IDENTITY, shapes)
    given = fake.vertices(meshes).astype(np.float32)
    moved = fake.map.apply(fake.vertices(rest))
    found = fit_skel_to_surface(skel, given, fake.map, IDENTITY, _shapes(bodies, moved))
    assert np.abs(found.poses - wanted.poses).max() <= POSE_TOLERANCE
    assert np.abs(found.vertex_error_mean - wanted.vertex_error_mean).max() <= 1e-5
    assert found.status == wanted.status


def test_a_stated_root_is_kept(bodies, fakes, smplx, people, shapes):
    """The frozen recipe: SKEL's pelvis is turned as the label says, and its skin is where SMPL-X
    has it, as the reported errors say."""
    skel = bodies[0]
    found = fit_skel_to_surface(
        skel, smplx.surface(people), fakes["smplx"].map, IDENTITY, shapes,
        FitConfig(recipe="hierarchical"), root=smplx.root(people),
        mask_weights=smplx.mask_weights(),
    )  # fmt: skip
    posed = skel(found.poses, found.betas, found.trans).skin_vertices.double()
    target = fakes["smplx"].map.apply(smplx.surface(people))
    distance = torch.linalg.vector_norm(posed - target, dim=2).mean(dim=1)
    np.testing.assert_allclose(distance, found.vertex_error_mean, atol=1e-5)
    still = {"global_orient": np.zeros((ROWS, 3)), "transl": np.zeros((ROWS, 3))}
    unturned = fit_skel_to_surface(
        skel, smplx.surface(people | still), fakes["smplx"].map, IDENTITY, shapes,
        FitConfig(recipe="hierarchical"), root=smplx.root(people | still),
        mask_weights=smplx.mask_weights(),
    )  # fmt: skip
    np.testing.assert_allclose(unturned.poses[:, :3], 0.0, atol=1e-6)
    np.testing.assert_allclose(unturned.poses[:, 3:], found.poses[:, 3:], atol=1e-4)
    with pytest.raises(ValueError, match="which states none"):
        fit_skel_to_surface(
            skel, smplx.surface(people), fakes["smplx"].map, IDENTITY, shapes,
            FitConfig(recipe="full"),
        )  # fmt: skip


def test_fingers_do_not_turn_the_arm(bodies, fakes, smplx, people, shapes):
    """A fist instead of a flat hand moves no angle from the elbow up by more than 0.1 degrees."""
    skel = bodies[0]
    fist = {name: np.tile((0.0, 0.0, sign * 0.9), (ROWS, 15)) for name, sign in
            (("left_hand_pose", -1.0), ("right_hand_pose", 1.0))}  # fmt: skip
    flat, closed = (
        fit_skel_to_surface(
            skel,
            smplx.surface(given),
            fakes["smplx"].map,
            IDENTITY,
            shapes,
            FitConfig(recipe="surface"),
            mask_weights=smplx.mask_weights(),
        )
        for given in (people, people | fist)
    )
    moved = smplx.surface(people | fist) - smplx.surface(people)
    assert moved.abs().max() > 0.05
    from skel_fit.anatomy import POSE_NAMES

    hands = ("wrist", "pro_sup")
    body = [k for k, name in enumerate(POSE_NAMES) if not name.startswith(hands)]
    assert torch.rad2deg((flat.poses - closed.poses)[:, body].abs().max()) <= 0.1
    weights = surface_weights(skel)
    assert (weights == 0.0).sum() > 400 and (weights == 1.0).sum() > 5000
