"""Keypoint body, loss terms on hand-made batches, recipes (docs/reference/regressor.md)."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import InputError, UsageError
from skel_fit import anatomy
from skel_fit.default_body import default_body_directory
from skel_fit.errors import ModelFileError
from skel_fit.keypoint_body import KeypointBody
from skel_fit.keypoints import MIRROR, keypoint_matrix
from skel_fit.model_files import load_skel
from stages.regressor.config import load_recipe
from stages.regressor.network import representation
from stages.regressor.network.heads import Estimates
from stages.regressor.network.mean_parameters import Parameters, mean_parameters
from stages.regressor.network.model import Regressor
from stages.regressor.network.view import View, crop_keypoints
from stages.regressor.training.bodies import shape_map
from stages.regressor.training.losses import Labels, Loss

BATCH = 3


@pytest.fixture(scope="module")
def models() -> Path:
    return default_body_directory()


@pytest.fixture(scope="module")
def body(models: Path) -> KeypointBody:
    return KeypointBody(load_skel(models, "male"), keypoint_matrix(models))


def view() -> View:
    """Boxes of 400 px on 1280 x 720 pictures, focal length 900."""
    center = torch.tensor([[600.0, 300.0], [700.0, 400.0], [300.0, 360.0]])
    scale = 256 / 400
    affine = torch.zeros(BATCH, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = scale
    affine[:, :, 2] = 128 - scale * center
    cam_int = torch.tensor([[900.0, 0, 640], [0, 900, 360], [0, 0, 1]]).expand(BATCH, 3, 3)
    return View(center, torch.full((BATCH,), 400.0), cam_int, affine)


def truth(body: KeypointBody, recipe) -> tuple[Parameters, Labels]:  # type: ignore[no-untyped-def]
    """Parameters, and labels that they fulfil exactly."""
    random = torch.Generator().manual_seed(7)
    poses = 0.3 * torch.randn(BATCH, 46, generator=random)
    poses[:, 0] += 3.0
    betas = torch.randn(BATCH, 10, generator=random)
    camera = torch.tensor([[0.9, 0.05, -0.1], [0.7, 0.0, 0.2], [1.1, -0.1, 0.0]])
    points = body(poses, betas).keypoints
    seen = crop_keypoints(recipe.model, points, camera, view())
    confidence = torch.rand(BATCH, 44, 1, generator=random)
    confidence[:, 5] = 0
    labels = Labels(
        torch.cat((seen, confidence), -1), points, poses, betas, torch.ones(BATCH),
        torch.zeros(BATCH, dtype=torch.bool),
    )  # fmt: skip
    return Parameters(representation.encode(poses), betas, camera), labels


def estimates(coarse: Parameters | None, *layers: Parameters) -> Estimates:
    return Estimates(
        coarse, Parameters(*(torch.stack(parts) for parts in zip(*layers, strict=True)))
    )


# ---- keypoints ----------------------------------------------------------------------------------


def test_keypoints_are_those_of_the_posed_skin(models: Path, body: KeypointBody) -> None:
    """The moment form is exact: compare with all 6890 vertices."""
    random = torch.Generator().manual_seed(1)
    poses, betas = torch.randn(6, 46, generator=random), torch.randn(6, 10, generator=random)
    posed = body.skel(poses, betas)
    weights = torch.from_numpy(keypoint_matrix(models)).float()
    wanted = weights @ posed.skin_vertices
    found = body(poses, betas)
    assert (found.keypoints - wanted).abs().max() < 2e-6
    assert (found.joints - posed.joints).abs().max() < 1e-6
    turns = body.skel.joint_rotations(poses)
    assert torch.allclose(body(poses, betas, turns).keypoints, found.keypoints, atol=1e-6)
    # In the flesh: the nose is in front of the ears, toes below heels' height of the head.
    rest = body(torch.zeros(1, 46), torch.zeros(1, 10)).keypoints[0]
    assert rest[0, 2] > rest[17, 2] and rest[38, 1] > rest[0, 1] > rest[8, 1] > rest[22, 1]
    assert rest[2, 0] < 0 < rest[5, 0]  # the right shoulder is at negative x (body frame)


def test_keypoint_gradients_agree_with_the_skin(models: Path, body: KeypointBody) -> None:
    random = torch.Generator().manual_seed(2)
    weights = torch.from_numpy(keypoint_matrix(models)).float()
    pull = torch.randn(2, 44, 3, generator=random)
    grads = []
    for function in (
        lambda q, b: body(q, b).keypoints,
        lambda q, b: weights @ body.skel(q, b).skin_vertices,
    ):
        poses = (0.5 * torch.randn(2, 46, generator=random.manual_seed(3))).requires_grad_()
        betas = torch.randn(2, 10, generator=random).requires_grad_()
        (function(poses, betas) * pull).sum().backward()
        grads.append((poses.grad, betas.grad))
    for one, two in zip(*grads, strict=True):
        assert torch.allclose(one, two, rtol=1e-3, atol=2e-5)


def test_mirrored_poses_give_mirrored_keypoints(body: KeypointBody) -> None:
    """regressor.md#flip: with small ankle angles, to the asymmetry of the body (the stand-in
    mirrors to 1 mm)."""
    poses = 0.3 * torch.randn(4, 46, generator=torch.Generator().manual_seed(4))
    poses[:, [7, 14]] = 0
    betas = torch.zeros(4, 10)
    points = body(poses, betas).keypoints
    other = body(representation.mirror_poses(poses), betas).keypoints
    wanted = points[:, list(MIRROR)] * torch.tensor([-1.0, 1, 1])
    error = (other - other[:, 39:40] - wanted + wanted[:, 39:40]).norm(dim=-1)
    assert error.max() < 0.003


def test_missing_regressor_says_which(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"J_regressor_SKEL_mix_MALE.pkl is missing.*copy it"):
        keypoint_matrix(tmp_path)


def test_betas_of_the_other_gender_keep_the_shape(models: Path) -> None:
    male, female = (load_skel(models, gender) for gender in ("male", "female"))
    matrix, offset = shape_map(female, male)
    betas = torch.randn(5, 10, generator=torch.Generator().manual_seed(5))
    converted = (betas.double() @ matrix.T + offset).float()
    wanted = female.shape(betas).vertices

    def distance(guess: torch.Tensor) -> float:
        return float((male.shape(guess).vertices - wanted).norm(dim=-1).mean())

    assert distance(converted) < 0.6 * distance(betas)
    nudged = converted + 0.05 * torch.randn(5, 10, generator=torch.Generator().manual_seed(6))
    square = [(male.shape(guess).vertices - wanted).square().sum() for guess in (converted, nudged)]
    assert square[0] < square[1]  # least squares: any step away is worse


# ---- loss ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["published", "default"])
def test_the_truth_has_no_loss(name: str, body: KeypointBody) -> None:
    recipe = load_recipe(name, ["loss.limits_weight=0"])
    right, labels = truth(body, recipe)
    terms = Loss(recipe.loss, recipe.model, body)(estimates(right, right, right), labels, view())
    # Encoded labels have exact zeros in unused entries, so even the degenerate published layer loss
    # vanishes here; the next test has real outputs.
    for term, value in terms.terms.items():
        assert float(value) == pytest.approx(0, abs=2e-5), term


def test_the_published_layer_loss_has_the_floor_that_ours_has_not(body: KeypointBody) -> None:
    """regressor.md#layer-loss: any non-zero unused output costs at least 28/216 a layer; ours
    ignores it."""
    found = {}
    for kind in ("gram_schmidt", "well_defined", "raw"):
        recipe = load_recipe("published", [f"loss.layer_pose={kind}", "loss.layer_pose_weight=1.0"])
        right, labels = truth(body, recipe)
        unused = np.setdiff1d(np.arange(144), representation.MEANINGFUL)
        code = right.code.clone()
        code[:, unused] = 1e-3 * torch.randn(3, 56, generator=torch.Generator().manual_seed(8))
        noisy = right._replace(code=code)
        loss = Loss(recipe.loss, recipe.model, body)
        found[kind] = float(
            loss(estimates(right, noisy, noisy), labels, view()).terms["layer_pose"]
        )
    assert found["gram_schmidt"] >= 2 * 28 / 216
    assert found["well_defined"] < 1e-5
    assert 0 < found["raw"] < 1e-3 * 2


def test_the_layer_loss_sees_wrists_and_hinges(body: KeypointBody) -> None:
    """The published form only sees the direction of the two wrist angles; ours all of it."""
    for kind, blind in (("gram_schmidt", True), ("well_defined", False)):
        recipe = load_recipe("published", [f"loss.layer_pose={kind}"])
        right, labels = truth(body, recipe)
        code = right.code.clone().view(3, 24, 6)
        code[:, list(anatomy.HAND_JOINTS), :2] *= 0.1
        wrong = right._replace(code=code.flatten(1))
        loss = Loss(recipe.loss, recipe.model, body)
        value = float(loss(estimates(None, wrong), labels, view()).terms["layer_pose"])
        assert (value < 1e-5) == blind


def test_rotation_terms_by_hand(body: KeypointBody) -> None:
    """regressor.md#losses: sums of nine absolute (or squared) matrix differences, pelvis apart."""
    angle = math.radians(10)
    recipe = load_recipe("published", ["loss.layer_pose=none"])
    right, labels = truth(body, recipe)
    poses = labels.poses.clone()
    poses[:, 6] += angle  # right knee, about z: entries of the 2 x 2 block change
    wrong = right._replace(code=representation.encode(poses))
    before, after = labels.poses[:, 6], poses[:, 6]
    cos, sin = (f(after) - f(before) for f in (torch.cos, torch.sin))
    for kind, rows in (("l1", 2 * (cos.abs() + sin.abs())), ("l2", 2 * (cos**2 + sin**2))):
        config = recipe.loss.model_copy(update={"parameters": kind, "coarse": 0.0})
        terms = Loss(config, recipe.model, body)(estimates(right, wrong), labels, view()).terms
        assert float(terms["body"]) == pytest.approx(0.001 * float(rows.mean()), rel=1e-3)
        assert float(terms["orientation"]) == pytest.approx(0, abs=1e-6)
    # The published magnitude: 10 degrees on every angle is about 0.018 of L_body.
    every = right._replace(code=representation.encode(labels.poses + angle))
    terms = Loss(recipe.loss, recipe.model, body)(estimates(None, every), labels, view()).terms
    assert 0.012 < float(terms["body"]) < 0.026


def test_keypoint_and_shape_terms_by_hand(body: KeypointBody) -> None:
    recipe = load_recipe("published", ["loss.layer_pose=none", "loss.coarse=0"])
    right, labels = truth(body, recipe)
    loss = Loss(recipe.loss, recipe.model, body)
    shifted = labels._replace(
        keypoints_2d=labels.keypoints_2d + torch.tensor([0.03, -0.02, 0]),
        keypoints_3d=labels.keypoints_3d.clone(),
        betas=labels.betas + 0.5,
    )
    shifted.keypoints_3d[:, 4] += torch.tensor([0.07, 0, -0.01])  # one wrist
    terms = loss(estimates(right, right), shifted, view()).terms
    confidence = labels.keypoints_2d[..., 2].sum(1).mean()
    assert float(terms["keypoints_2d"]) == pytest.approx(0.05 * 0.05 * float(confidence), rel=1e-3)
    assert float(terms["keypoints_3d"]) == pytest.approx(0.05 * 0.08, rel=1e-3)
    assert float(terms["betas"]) == pytest.approx(0.0005 * 10 * 0.5, rel=1e-3)
    # 3D keypoints are compared relative to keypoint 39: a common shift is free.
    moved = labels._replace(keypoints_3d=labels.keypoints_3d + 0.3)
    assert float(loss(estimates(right, right), moved, view()).terms["keypoints_3d"]) < 1e-6


def test_found_depths_are_metres_behind_the_pelvis(body: KeypointBody) -> None:
    """By a person's own pelvis, wherever the camera is; one of 44 that is 0.22 m too far."""
    recipe = load_recipe("pyramid", [])
    _, labels = truth(body, recipe)
    points = labels.keypoints_3d
    behind = points[..., 2] - points[:, 39, None, 2]
    found = torch.cat((labels.keypoints_2d, behind[..., None]), -1)
    loss = Loss(recipe.loss, recipe.model, body)
    right = Parameters(*(part[None] for part in truth(body, recipe)[0]))
    for away in (0.0, 0.22, -0.22):
        found[:, 4, 3] = behind[:, 4] + away
        for shift in (0.0, 5.0):
            given = labels._replace(keypoints_3d=points + shift)
            terms = loss.looked(Estimates(None, right, found=found), given).terms
            expected = recipe.loss.found_depths * abs(away) / 44
            assert float(terms["found_depths"]) == pytest.approx(expected, abs=1e-6)


def test_rows_are_independent_and_weighted(body: KeypointBody) -> None:
    recipe = load_recipe("default", ["loss.limits_weight=0"])
    right, labels = truth(body, recipe)
    wrong = Parameters(*(x + 0.1 for x in right))
    loss = Loss(recipe.loss, recipe.model, body)
    rows = loss(estimates(wrong, wrong, wrong), labels, view()).rows
    alone = loss(
        estimates(*(Parameters(*(x[1:2] for x in wrong)) for _ in range(3))),
        Labels(*(x[1:2] for x in labels)), View(*(x[1:2] for x in view())),
    ).rows  # fmt: skip
    assert rows[1] == pytest.approx(float(alone[0]), rel=1e-5)
    unseen = labels._replace(weight=torch.tensor([1.0, 0.0, 1.0]))
    terms = loss(estimates(wrong, wrong, wrong), unseen, view())
    only_2d = loss(estimates(wrong, wrong, wrong), labels._replace(weight=torch.zeros(3)), view())
    assert terms.rows[1] == pytest.approx(float(only_2d.rows[1]), rel=1e-5)
    assert set(only_2d.terms) == set(terms.terms)
    assert [n for n, v in only_2d.terms.items() if float(v) > 0] == ["keypoints_2d"]


def test_labels_without_confidence_may_hold_anything(body: KeypointBody) -> None:
    recipe = load_recipe("default")
    right, labels = truth(body, recipe)
    right = Parameters(*(x.requires_grad_() for x in right))
    points = labels.keypoints_2d.clone()
    points[:, 5, :2] = float("nan")
    terms = Loss(recipe.loss, recipe.model, body)(
        estimates(right, right, right), labels._replace(keypoints_2d=points), view()
    )
    terms.total.backward()
    assert torch.isfinite(terms.rows).all()
    assert all(torch.isfinite(x.grad).all() for x in right)


def test_every_layer_camera_is_supervised_by_default(body: KeypointBody) -> None:
    """regressor.md#i2: published, only the last camera has a gradient; ours, all do."""
    for name, reached in (("published", [False, True]), ("default", [True, True])):
        recipe = load_recipe(name)
        right, labels = truth(body, recipe)
        early, last = (Parameters(*((x + 0.05).requires_grad_() for x in right)) for _ in "ab")
        loss = Loss(recipe.loss, recipe.model, body)
        loss(estimates(right, early, last), labels, view()).total.backward()
        grads = [x.camera.grad is not None and float(x.camera.grad.abs().sum()) > 0
                 for x in (early, last)]  # fmt: skip
        assert grads == reached
        assert early.code.grad.abs().sum() > 0


def test_full_supervision_puts_the_whole_loss_on_every_layer(body: KeypointBody) -> None:
    recipe = load_recipe("published-full-supervision")
    right, labels = truth(body, recipe)
    wrong = right._replace(betas=right.betas + 1)
    loss = Loss(recipe.loss, recipe.model, body)
    values = [
        float(loss(estimates(right, *layers), labels, view()).terms["betas"])
        for layers in ((right, wrong), (wrong, right), (wrong, wrong))
    ]
    assert values == pytest.approx([0.005, 0.005, 0.01], rel=1e-4)


def test_limits_have_a_dead_zone(body: KeypointBody) -> None:
    """regressor.md#i7: the straight knee (its limit is 0) costs nothing; 0.3 rad beyond does."""
    recipe = load_recipe("default", ["loss.limits=published", "loss.limits_weight=1"])
    right, labels = truth(body, recipe)
    loss = Loss(recipe.loss, recipe.model, body)

    def cost(knee: float) -> float:
        poses = torch.zeros(3, 46)
        poses[:, [27, 37]] = -0.2  # inside the published scapula range
        poses[:, 6] = knee
        guess = right._replace(code=representation.encode(poses))
        return float(loss(estimates(None, guess), labels, view()).terms["limits"])

    tolerance = recipe.loss.limits_tolerance
    assert cost(0.0) == 0 and cost(-tolerance / 2) == 0 and cost(2.0) == 0
    assert cost(-0.3) == pytest.approx((0.3 - tolerance) / 43, rel=1e-4)


def test_flipped_rows_leave_the_ankles_alone(body: KeypointBody) -> None:
    recipe = load_recipe("default", ["loss.coarse=0"])
    right, labels = truth(body, recipe)
    poses = labels.poses.clone()
    poses[:, [7, 14]] += 0.4
    wrong = right._replace(code=representation.encode(poses))
    flipped = labels._replace(flipped=torch.tensor([True, True, True]))
    loss = Loss(recipe.loss, recipe.model, body)
    costs, masked = (loss(estimates(None, wrong), x, view()).terms for x in (labels, flipped))
    for name in ("body", "layer_pose"):
        assert float(costs[name]) > 1e-4 > 1e-6 > float(masked[name]), name


def test_heatmaps_want_the_cells_around_a_keypoint(body: KeypointBody) -> None:
    recipe = load_recipe("tiny", ["loss.heatmaps=1"])
    right, labels = truth(body, recipe)
    points = torch.zeros(3, 44, 3)
    # Column 1, row 5 of 6 x 8 cells; half way between columns 1 and 2; unseen; not in the crop.
    points[:, 0] = torch.tensor([(1.5 / 6 - 0.5) * 0.75, 5.5 / 8 - 0.5, 0.4])
    points[:, 1] = torch.tensor([(2.0 / 6 - 0.5) * 0.75, 5.5 / 8 - 0.5, 1.0])
    points[:, 2] = torch.tensor([0.1, 0.1, 0.0])
    points[:, 3] = torch.tensor([0.45, 0.0, 1.0])
    labels = labels._replace(keypoints_2d=points)
    loss = Loss(recipe.loss, recipe.model, body)

    def cost(logits: torch.Tensor) -> float:
        guess = estimates(None, right)._replace(heatmaps=logits)
        return float(loss(guess, labels, view()).terms["heatmaps"]) * 44

    logits = torch.zeros(3, 48, 44)
    assert cost(logits) == pytest.approx(2 * math.log(48), rel=1e-5)
    logits[:, 5 * 6 + 1, :] = logits[:, 5 * 6 + 2, 1] = 60.0
    assert cost(logits) == pytest.approx(math.log(2), rel=1e-5)
    assert "heatmaps" not in loss(estimates(None, right), labels, view()).terms


# ---- recipes ------------------------------------------------------------------------------------


def test_every_recipe_in_the_repository_is_valid() -> None:
    names = [p.stem for p in sorted(Path("stages/regressor/recipes").glob("*.yaml"))]
    assert {"published", "default", "tiny"} <= set(names)
    assert [load_recipe(name).name for name in names] == names
    for change in sorted(Path("stages/regressor/recipes/changes").glob("*.yaml")):
        size = ["model.decoder.width=192"] if change.stem == "baseline" else []
        if not change.stem.startswith("vit"):
            assert load_recipe("tiny", [f"changes/{change.stem}", *size]).name == "tiny"


@pytest.mark.parametrize(
    ("row", "differs"),
    [
        ("baseline", {"model.head", "model.camera", "model.decoder.width", "loss.layer_pose"}),
        ("without-camera", {"model.camera", "model.coarse_to_fine.conditioned"}),
        ("without-coarse", {"model.coarse_to_fine.coarse", "loss.coarse"}),
        ("without-refinement", {"model.coarse_to_fine.state", "loss.layer_pose"}),
        ("full-supervision", {"loss.all_layers", "loss.layer_pose"}),
        ("looped", {"model.coarse_to_fine.looped"}),
    ],
)
def test_ablation_rows_change_what_table_4_4_says(row: str, differs: set[str]) -> None:
    from pipeline.plan import differences

    one, two = (load_recipe(n).model_dump(mode="json") for n in ("published", f"published-{row}"))
    assert set(differences(one, two)) - {"name"} == differs


def test_published_values_of_the_reference() -> None:
    recipe = load_recipe("published")
    assert (recipe.optimiser.rate, recipe.optimiser.weight_decay) == (1e-5, 1e-4)
    assert (recipe.optimiser.ema.decay, recipe.optimiser.ema.steps) == (0.9995, 6000)
    assert recipe.optimiser.clip == 1.0 and recipe.optimiser.schedule == "constant"
    loss = recipe.loss
    weights = (loss.keypoints_2d, loss.keypoints_3d, loss.betas, loss.body, loss.orientation)
    assert weights == (0.05, 0.05, 0.0005, 0.001, 0.002)
    assert (loss.layer_pose_weight, recipe.train.epochs, recipe.train.batch_size) == (0.1, 30, 64)
    assert not recipe.data.enlarge_box and not recipe.data.augment.flip


def test_bad_recipes_are_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: tiny\nloss: {keypoint_2d: 1.0}\n")
    with pytest.raises(InputError, match=r"mine.yaml: unknown key 'loss.keypoint_2d'"):
        load_recipe(file)
    file.write_text("base: tiny\ntrain: {seed: -1}\n")
    with pytest.raises(InputError, match=r"mine.yaml: train.seed: .*greater than or equal to 0"):
        load_recipe(file)
    file.write_text(f"base: {file}\n")
    with pytest.raises(InputError, match="is there a circle"):
        load_recipe(file)
    file.write_text("base: [tiny\n")
    with pytest.raises(InputError, match=r"mine.yaml: not YAML"):
        load_recipe(file)
    with pytest.raises(UsageError, match=r"no recipe 'huge'; known: .*default"):
        load_recipe("huge")
    file.write_text("base: [default, changes/tiny]\ntrain: {epochs: 2}\n")
    assert load_recipe(file, ["train.seed=5"]).train.seed == 5
    assert load_recipe(file).name == "mine" and load_recipe(file).train.epochs == 2


# ---- Euler targets ------------------------------------------------------------------------------


def test_the_loss_on_angles_counts_degrees_the_shorter_way_round(body: KeypointBody) -> None:
    """checkpoints.md#euler-target: the sum of the angles' distances, not of rotation matrices."""
    recipe = load_recipe("published-baseline", ["changes/euler-target"])
    assert (recipe.model.pose, recipe.loss.pose) == ("angles", "angles")
    exact, labels = truth(body, recipe)
    loss = Loss(recipe.loss, recipe.model, body)
    off = labels.poses.clone()
    off[:, 6] += 0.1  # a knee
    off[:, 0] += 2 * math.pi - 0.2  # nearly a whole turn of the pelvis
    found = loss(
        estimates(None, exact._replace(code=representation.encode(off))), labels, view()
    ).terms
    weights = recipe.loss  # squared distances, HSMR's
    assert weights.parameters == "l1"  # of the recipe below; changes/baseline keeps it
    assert found["body"] == pytest.approx(weights.body * 0.1, rel=1e-3)
    assert found["orientation"] == pytest.approx(weights.orientation * 0.2, rel=1e-3)


def test_a_head_of_angles_has_46_of_them_and_starts_at_the_same_mean() -> None:
    both = [
        Regressor(load_recipe("tiny", [f"changes/{name}", "changes/euler-target"]).model)
        for name in ("baseline", "keep-state")
    ]
    for network in both:
        assert network.head.mean_code.shape == (46,)
        for module in network.head.read_out.values():
            last = module[-1] if isinstance(module, torch.nn.Sequential) else module
            torch.nn.init.zeros_(last.weight)
            torch.nn.init.zeros_(last.bias)
        for name, module in network.head.named_modules():
            if name.startswith("coarse_read_out") and isinstance(module, torch.nn.Linear):
                torch.nn.init.zeros_(module.weight)
                torch.nn.init.zeros_(module.bias)
        found = network.eval()(torch.zeros(2, 3, 128, 96), torch.zeros(2, 3)).final
        assert torch.allclose(found.code, mean_parameters().code.expand(2, -1), atol=1e-6)
    # The gradient passes from the rotations to the 46 numbers.
    network = both[0].train()
    network(torch.zeros(2, 3, 128, 96), torch.zeros(2, 3)).final.code.sum().backward()
    assert network.head.read_out["code"].weight.grad.shape[0] == 46
    assert network.head.read_out["code"].weight.grad.abs().sum() > 0
