"""Rows, pictures, order, augmentation and demo pictures, on real files."""

import hashlib
import io
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import open_dataset
from pipeline.columns import RESULT_COLUMNS
from pipeline.errors import InputError
from pipeline.receipts import receipt_path, shard_path
from pipeline.rundir import RunDirectory
from pipeline.shards import build_shard, read_columns, root_attributes
from stages.regressor.config import load_recipe
from stages.regressor.data import augment, crops, demo_pictures
from stages.regressor.data.crop_cache import CropCache
from stages.regressor.data.images import FolderImages, TarImages, decode, open_images
from stages.regressor.data.loader import CropDataset, Order, batches
from stages.regressor.data.rows import Place, load_collection
from stages.regressor.network import camera
from stages.regressor.training.bodies import RunBodies
from tests.faults.harness import forge
from tests.regressor_files import MICRO, ROWS, Demo, demo


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo(tmp_path_factory.getbasetemp())


def collection(files: Demo, *changes: str, images: Path | None = None):  # type: ignore[no-untyped-def]
    recipe = load_recipe("tiny", [*MICRO, *changes])
    return recipe, load_collection([Place(files.shards, images)], recipe.data)


def dataset(files: Demo, *changes: str, training: bool = True) -> CropDataset:
    recipe, rows = collection(files, *changes)
    return CropDataset(rows, recipe.data, recipe.model.crop_size, 7, training=training)


def same(one, other) -> bool:  # type: ignore[no-untyped-def]
    """Two batches, bit for bit."""
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else same(a, b)
        for a, b in zip(one, other, strict=True)
    )


# ---- rows ---------------------------------------------------------------------------------------


def test_rows_have_the_labels_own_split_and_cannot_be_written(files: Demo) -> None:
    _, found = collection(files)
    rows = found.rows
    assert len(rows) == ROWS and not found.skipped and found.standin
    assert found.models == files.models
    parts = [found.of(split).rows for split in ("train", "validation", "test")]
    assert sum(map(len, parts)) == ROWS and all(map(len, parts))
    for array in (rows.keypoints, rows.poses, parts[0].keypoints):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert 0 < rows.weight.min() < rows.weight.max() <= 1


def test_reading_a_row_twice_gives_equal_labels(files: Demo) -> None:
    """regressor.md#d14: the published loader overwrites its 2D labels on the first read."""
    rows = dataset(files)
    before = rows.rows.keypoints.copy()
    first, second = (rows[(3, 5)] for _ in range(2))
    for name, value in first.items():
        assert np.array_equal(value, second[name]), name
    first["keypoints"][:] = -1
    first["poses"][:] = -1
    third = rows[(3, 5)]
    assert np.array_equal(third["keypoints"], second["keypoints"])
    assert np.array_equal(third["poses"], second["poses"])
    assert np.array_equal(rows.rows.keypoints, before)
    other = rows[(4, 5)]  # another epoch looks different, and means the same person
    assert not np.array_equal(other["image"], second["image"])
    assert np.array_equal(other["poses"], second["poses"])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_what_the_shards_hold(files: Demo, workers: int) -> None:
    """Promise P23: an epoch has each row once, bit for bit as `open_dataset` gives it."""
    rows = dataset(files, training=False)
    stored = open_dataset(files.shards)
    seen = []
    for batch in batches(rows, Order(ROWS, 6, seed=1).epoch(0), workers):
        index = rows.rows.source_row[batch.row]
        seen += index.tolist()
        for name, values in (("skel_poses", batch.poses), ("skel_betas", batch.betas)):
            assert values.numpy().tobytes() == stored[name][index].tobytes(), name
        cameras = stored["cam_int"][index].astype(np.float32)
        assert batch.view.cam_int.numpy().tobytes() == cameras.tobytes()
    assert sorted(seen) == list(range(ROWS)) and seen != sorted(seen)


def test_workers_do_not_change_a_row(files: Demo) -> None:
    keys = [[(0, 1), (0, 2)], [(1, 1), (0, 3)]]
    rows = dataset(files, "data.augment.photometric=1.0", "data.augment.extreme_crop=0.5")
    state = torch.get_rng_state()
    for one, two in zip(batches(rows, keys, 0), batches(rows, keys, 2), strict=True):
        assert same(one, two)
    assert torch.equal(torch.get_rng_state(), state)  # stochastic depth draws from it


def test_unusable_rows_are_left_out_and_counted(files: Demo, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(files.data / "demo", images / "demo")
    _, full = collection(files)
    gone = [str(full.rows.image[k]) for k in (0, 7, 31)]
    for name in gone:
        (images / name).unlink()
    _, found = collection(files, images=images)
    assert found.skipped == {"without a picture": 3}
    assert set(full.rows.image) - set(found.rows.image) == set(gone)
    _, men = collection(files, "data.other_gender=skip")
    count = int(full.rows.female.sum())
    assert men.skipped == {"of the other gender": count} and 0 < count < ROWS
    assert not men.rows.female.any()
    with pytest.raises(InputError, match=r"no usable row \(60 without a picture\).*looked for in"):
        collection(files, images=tmp_path)
    with pytest.raises(InputError, match="no such folder or tar file; give the pictures' place"):
        collection(files, images=tmp_path / "nowhere")


# What an edit of row k of a converted dataset makes of it when it is read for training.
_UNUSABLE = {
    "rejected by the conversion": (("status", (), "rejected:not finite"),),
    "with non-finite labels": (
        ("skel_poses", (5,), np.nan), ("skel_betas", (2,), np.inf), ("center", (1,), np.nan),
        ("scale", (), np.nan), ("cam_int", (0, 2), np.inf), ("gtkps", (3, 0), np.nan),
    ),
    "with a box below 1 pixel": (("scale", (), 0.004), ("scale", (), -1.0)),
    "with a focal length that is not positive": (
        ("cam_int", (0, 0), 0.0), ("cam_int", (0, 0), -900.0), ("cam_int", (1, 1), 0.0),
    ),
    "with a box far outside the picture": (("center", (0,), 9e4), ("center", (1,), -9e4)),
}  # fmt: skip


@pytest.mark.parametrize("reason", _UNUSABLE)
def test_rows_that_cannot_be_trained_on_are_counted(
    files: Demo, tmp_path: Path, reason: str
) -> None:
    """One row spoilt for each way of being unusable: those and no others are left out."""
    edits = _UNUSABLE[reason]

    def spoil(columns: dict[str, np.ndarray]) -> None:
        # A point of another row without a confidence must not hide what is wrong with this one.
        columns["gtkps"][40, 7, 2] = np.nan
        columns["gtkps"][:, 3, 2] = 1.0
        columns["gtkps"][41, 5] = (np.nan, np.nan, 0.0)
        for k, (column, place, value) in enumerate(edits):
            if isinstance(value, str):
                columns[column] = columns[column].astype("<U40")
            columns[column][(3 * k + 2, *place)] = value

    recipe = load_recipe("tiny", MICRO)
    found = load_collection([Place(edited(files.shards, tmp_path, spoil))], recipe.data)
    assert found.skipped == {reason: len(edits)}
    spoilt = [3 * k + 2 for k in range(len(edits))]
    assert found.rows.source_row.tolist() == [k for k in range(ROWS) if k not in spoilt]
    sent = CropDataset(found, recipe.data, 64, 0, training=False)
    row = found.rows.source_row.tolist().index(40)
    points = sent[(0, row)]["keypoints"]
    assert np.isfinite(points).all() and not points[7].any() and points[3, 2] == 1
    assert np.isfinite(sent[(0, row + 1)]["keypoints"]).all()


@pytest.mark.parametrize("column", ["cam_int", "gtkps"])
def test_a_missing_column_is_named(files: Demo, tmp_path: Path, column: str) -> None:
    shards = edited(files.shards, tmp_path, lambda columns: columns.pop(column))
    missing = rf"column '{column}' is missing; training needs shards of hmr-skel convert"
    with pytest.raises(InputError, match=missing) as caught:
        load_collection([Place(shards)], load_recipe("tiny", MICRO).data)
    assert str(shards) in str(caught.value) and "\n" not in str(caught.value)


def edited(shards: Path, folder: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> Path:
    """A copy of a converted dataset of one shard with other columns, sealed anew."""
    directory = folder / "edited"
    shutil.copytree(shards, directory)
    run = RunDirectory(directory)
    old = run.plan()
    assert old.shards == 1
    names = (*RESULT_COLUMNS, *(item.stored for item in old.fields))
    columns = read_columns(shard_path(directory, 0), names)
    edit(columns)
    plan = replace(old, fields=[f for f in old.fields if f.stored in columns])
    data = build_shard(columns, root_attributes(plan, 0), plan.compression)
    shard_path(directory, 0).write_bytes(data)
    forge(
        receipt_path(directory, 0), plan_id=plan.plan_id, bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(), status=dict(Counter(columns["status"].tolist())),
    )  # fmt: skip
    run.write_plan(plan)
    return directory


def test_a_damaged_picture_stops_with_its_name_and_row(files: Demo, tmp_path: Path) -> None:
    shutil.copytree(files.data / "demo", tmp_path / "demo")
    recipe, found = collection(files, images=tmp_path)
    name = str(found.rows.image[4])
    (tmp_path / name).write_bytes(b"\xff\xd8 not a jpeg")
    rows = CropDataset(found, recipe.data, 64, 0, training=False)
    expected = rf"row 4 \({name}\), pictures in {tmp_path}: image {name}: damaged or not a picture"
    with pytest.raises(InputError, match=expected):
        rows[(0, 4)]
    for workers in (0, 1):
        given = batches(rows, [[(0, 1), (0, 2)], [(0, 3), (0, 4)]], workers)
        assert next(given).row.tolist() == [1, 2]
        with pytest.raises(InputError, match="^" + expected) as caught:
            next(given)
        assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=rf"^row 4 \({name}\), pictures in .*cannot be read: No "):
        next(batches(rows, [[(0, 4)]], 1))


def test_rows_of_several_datasets_are_named_with_theirs(files: Demo) -> None:
    recipe, _ = collection(files)
    twice = load_collection([Place(files.shards), Place(files.shards)], recipe.data)
    rows = CropDataset(twice, recipe.data, 64, 0, training=False)
    name = str(twice.rows.image[3])
    assert rows.label(ROWS + 3) == f"row 3 ({name}) of {files.shards}"
    assert dataset(files).label(3) == f"row 3 ({name})"


def test_pictures_come_from_folders_and_tars_alike(files: Demo, tmp_path: Path) -> None:
    _, found = collection(files)
    names = [str(name) for name in found.rows.image]
    tar = tmp_path / "part-0.tar"
    with tarfile.open(tar, "w") as archive:
        archive.add(files.data / "demo", "./demo")
        link = tarfile.TarInfo("demo/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    folder, packed = open_images(files.data), open_images(tmp_path)
    assert isinstance(folder, FolderImages) and isinstance(packed, TarImages)
    for source in (folder, packed):
        assert source.has([*names, "demo/absent.jpg", "demo/link.jpg"]).tolist() == (
            [True] * ROWS + [False, False]
        )
        assert source.read(names[3]) == (files.data / names[3]).read_bytes()
        with pytest.raises(InputError):
            source.read("demo/absent.jpg")
    recipe, shards = collection(files, images=tar)
    one = CropDataset(shards, recipe.data, 64, 7, training=True)
    for a, b in zip(batches(dataset(files), [[(0, 1)]], 0), batches(one, [[(0, 1)]], 1),
                    strict=True):  # fmt: skip
        assert same(a, b)
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(InputError, match=r"part-0.tar: not a readable, uncompressed tar"):
        open_images(tar)


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.jpg", "a/../../secret.jpg", "", "a\0b"])
def test_no_image_name_leaves_its_root(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"x")
    images = FolderImages(root)
    assert not images.has([name])[0]
    with pytest.raises(InputError, match="leads out of the folder"):
        images.read(name)
    (root / "out").symlink_to(tmp_path)
    with pytest.raises(InputError, match="leads out of the folder"):
        images.read("out/secret.jpg")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_reduced_decoding_covers_the_same_pixels(suffix: str) -> None:
    """Pixel (i, j) of a picture read k times smaller is the mean of k x k pixels."""
    y, x = np.mgrid[0:203, 0:301]
    picture = np.stack([x * 0.8, y * 1.2, 255 - x * 0.8], 2).clip(0, 255).astype(np.uint8)
    _, data = cv2.imencode(suffix, picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
    for k in (1, 2, 4, 8):
        small = decode(data.tobytes(), "ramp", k).astype(float)
        assert small.shape == (-(-203 // k), -(-301 // k), 3)
        whole = picture[: 203 // k * k, : 301 // k * k].astype(float)
        means = whole.reshape(203 // k, k, 301 // k, k, 3).mean((1, 3))
        error = np.abs(small[: 203 // k, : 301 // k] - means)
        # Chroma of a JPEG is coarse; a shift by one small pixel would be 0.8 k to 1.2 k everywhere.
        assert error.max() < 5 and error.mean() < 0.7


# ---- order --------------------------------------------------------------------------------------


# ---- cached crops -------------------------------------------------------------------------------


CACHED = ("data.cached_crops=1.25", "data.augment.scale=0.1", "data.augment.shift=0.02")


def test_cached_crops_show_what_the_pictures_show(files: Demo, tmp_path: Path) -> None:
    """Also flipped, shifted and scaled; sampled twice, so a little softer."""
    plain, cached = dataset(files, *CACHED), dataset(files, *CACHED)
    cached.keep_crops(tmp_path / "crops.npy")
    flipped = []
    for k in range(0, len(plain), 7):
        one, two = plain[(1, k)], cached[(1, k)]
        assert all(np.array_equal(one[n], two[n]) for n in one if n != "image")
        away = np.abs(one["image"] - two["image"]) * crops.IMAGENET_STD.mean()
        assert away.mean() < 6, k  # grey levels; two rows differ by some 60
        flipped.append(bool(one["flip"]))
    assert {True, False} == set(flipped)
    order = [[(1, 0), (1, 3)]]
    one, two = (next(iter(batches(cached, order, workers))) for workers in (0, 1))
    assert same(one, two)


def test_cached_crops_are_made_anew_only_for_other_rows_or_pictures(
    files: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    make = CropCache.make
    monkeypatch.setattr(CropCache, "make", lambda self, cut: (made.append(1), make(self, cut)))
    path, rows = tmp_path / "crops.npy", dataset(files, *CACHED)
    for _ in range(2):
        rows.keep_crops(path)
    assert len(made) == 1
    held = np.load(path)
    dataset(files, "data.cached_crops=1.5").keep_crops(path)
    assert len(made) == 2 and np.load(path).shape != held.shape
    rows.keep_crops(path)
    assert len(made) == 3 and np.array_equal(np.load(path), held)
    other = shutil.copytree(files.data / "demo", tmp_path / "pictures" / "demo")
    for picture in other.rglob("*.jpg"):
        cv2.imwrite(str(picture), 255 - cv2.imread(str(picture)))
    recipe, changed = collection(files, *CACHED, images=tmp_path / "pictures")
    CropDataset(changed, recipe.data, recipe.model.crop_size, 7, training=True).keep_crops(path)
    assert len(made) == 4
    rows.keep_crops(path)
    path.write_bytes(path.read_bytes()[:-1])
    rows.keep_crops(path)
    assert len(made) == 6 and np.array_equal(np.load(path), held)
    moved, side = dataset(files, *CACHED), rows.rows.box_side.copy()
    side[1] *= 1.1  # none of the rows that are cut again and compared
    moved.rows = replace(moved.rows, box_side=side)
    moved.keep_crops(path)
    assert len(made) == 7


@given(st.integers(8, 200), st.integers(1, 8), st.integers(0, 3), st.integers(0, 9))
def test_an_epoch_is_a_permutation_and_resumes_anywhere(
    rows: int, batch: int, epoch: int, seed: int
) -> None:
    order = Order(rows, batch, seed)
    keys = list(order.epoch(epoch))
    flat = [row for key in keys for _, row in key]
    assert len(flat) == len(set(flat)) == rows // batch * batch and max(flat) < rows
    start = len(keys) // 2
    assert list(order.epoch(epoch, start)) == keys[start:]
    if rows > 40:
        assert list(order.epoch(epoch + 1)) != [[(epoch + 1, r) for _, r in k] for k in keys]


@given(st.integers(16, 100), st.integers(1, 4), st.sampled_from([1, 2, 4]))
def test_processes_share_the_global_batch(rows: int, batch: int, world: int) -> None:
    """However many processes, a global batch of the same size holds the same rows."""
    alone = list(Order(rows, 4 * batch, 3).epoch(0))
    shares = [list(Order(rows, 4 * batch // world, 3, world, rank).epoch(0))
              for rank in range(world)]  # fmt: skip
    for k, wanted in enumerate(alone):
        assert sorted(key for share in shares for key in share[k]) == sorted(wanted)


def test_too_few_rows_for_a_batch_is_said() -> None:
    with pytest.raises(InputError, match="7 training rows are fewer than one batch of 4 x 2"):
        Order(7, 4, 0, world=2)


# ---- labels -------------------------------------------------------------------------------------


def test_any_roll_takes_its_share_and_changes_no_other_draw() -> None:
    keypoints = np.ones((44, 3))
    recipe = load_recipe("default", [])
    plain = recipe.data.augment.model_copy(update={"roll_probability": 0.0})
    some = plain.model_copy(update={"any_roll": 0.3})
    pairs = [
        tuple(augment.draw(c, keypoints, np.random.default_rng(k)) for c in (plain, some))
        for k in range(400)
    ]
    rolled = [b.roll for _, b in pairs if b.roll]
    assert 80 < len(rolled) < 160 and min(rolled) < -2.5 and max(rolled) > 2.5
    assert all(a.scale == b.scale and a.flip == b.flip and a.shift == b.shift for a, b in pairs)


@pytest.mark.parametrize(
    ("rolls", "largest"),
    [(("data.augment.roll_probability=1", "data.augment.roll=30"), 0.8),
     (("data.augment.any_roll=1",), 2.8)],
)  # fmt: skip
def test_augmented_labels_fit_the_augmented_keypoints(
    files: Demo, rolls: tuple[str, ...], largest: float
) -> None:
    """Flips and rolls done right: after them the 3D label still projects onto the 2D label, under
    unchanged intrinsics, to the residual of the SKEL fit; the pose label still makes the 3D one.
    """
    recipe, found = collection(files, "data.augment.flip=0.5", *rolls)
    rows = CropDataset(found, recipe.data, 128, 7, training=True)
    batch = next(iter(batches(rows, [[(0, k) for k in range(ROWS)]], 0)))
    assert 10 < batch.flip.sum() < 50 and batch.roll.abs().max() > largest
    bodies = RunBodies(files.models, "male", ("female", "male"))
    labels = bodies.labels(batch)
    seen = _best_projection(labels.keypoints_3d, batch)
    confident = batch.keypoints[..., 2] > 0
    away = (seen - batch.keypoints[..., :2]).norm(dim=-1)
    error = 100 * (away * confident).sum(1) / confident.sum(1)
    assert error.mean() < 0.8 and error.max() < 2.0  # percent of the box; not done right: above 5
    posed = bodies.own(labels.poses, labels.betas).keypoints
    gap = (posed - posed[:, 39:40] - labels.keypoints_3d + labels.keypoints_3d[:, 39:40]).norm(
        dim=-1
    )
    men = ~batch.female
    assert gap[men & ~batch.flip].max() < 1e-5
    assert gap[men & batch.flip].mean() < 0.004  # the model's own asymmetry, ankles above all
    assert gap[batch.female].mean() < 0.03  # another body with the nearest shape
    # A network of the male body placed by its labels has its root where the label has it.
    root = bodies.own(labels.poses, labels.betas).joints[:, 0]
    assert torch.allclose(root, bodies.own.skel.shape(labels.betas).joints[:, 0], atol=1e-6)


def _best_projection(points: torch.Tensor, batch) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Crop coordinates of points moved by the translation that fits the 2D labels best."""
    size = 128
    pixels = (batch.keypoints[..., :2] + 0.5) * size
    pixels = (pixels - batch.view.affine[:, None, :, 2]) / batch.view.affine[:, :1, :1]
    cam_int = batch.view.cam_int
    rays = (pixels - cam_int[:, None, :2, 2]) / cam_int[:, :1, :1]
    weight = (batch.keypoints[..., 2] > 0).float()
    rows, right = [], []
    for axis in (0, 1):
        row = torch.zeros(*rays.shape[:2], 3)
        row[..., axis], row[..., 2] = weight, -rays[..., axis] * weight
        rows.append(row)
        right.append(weight * (rays[..., axis] * points[..., 2] - points[..., axis]))
    solution = torch.linalg.lstsq(torch.cat(rows, 1), torch.cat(right, 1)[..., None]).solution
    moved = points + solution.transpose(1, 2)
    return camera.to_crop(camera.project(moved, cam_int), batch.view.affine, size)


def test_focal_jitter_changes_what_the_network_is_told_and_nothing_else(files: Demo) -> None:
    keys = [[(epoch, k) for k in range(ROWS)] for epoch in (0, 1)]
    more = ("data.augment.photometric=1", "data.augment.extreme_crop=0.5")
    told = [next(batches(dataset(files, *more, f"data.augment.focal={share}"), keys, 0))
            for share in (0, 0.3)]  # fmt: skip
    assert torch.equal(told[0].focal, torch.ones(ROWS))
    assert same(told[0], told[1]._replace(focal=told[0].focal))  # camera and labels are the same
    spread = told[1].focal
    assert 0.7 <= spread.min() < 0.75 and 1.25 < spread.max() <= 1.3
    assert spread.unique().numel() > 30
    jittered = dataset(files, *more, "data.augment.focal=0.3")
    assert not torch.equal(list(batches(jittered, keys, 0))[1].focal, spread)  # another epoch
    assert jittered[(0, 5)]["focal"] == spread[5]
    held = next(batches(dataset(files, "data.augment.focal=0.3", training=False), keys, 0))
    assert torch.equal(held.focal, torch.ones(ROWS))
    with pytest.raises(InputError, match=r"data\.augment\.focal: .* less than 1"):
        load_recipe("tiny", ["data.augment.focal=1"])


def test_extreme_crops_cut_to_the_part(files: Demo) -> None:
    _, found = collection(files)
    keypoints = found.rows.keypoints[0].astype(float)
    unseen = keypoints[:, 2] == 0
    keypoints[unseen] = keypoints[~unseen].mean(0)
    random = np.random.default_rng(0)
    whole = keypoints[:, :2].max(0) - keypoints[:, :2].min(0)
    sides = []
    for _ in range(60):
        center, side = augment.extreme_crop(keypoints, random)
        sides.append(side / whole.max())
        low, high = center - side / 2, center + side / 2
        inside = ((keypoints[:, :2] > low) & (keypoints[:, :2] < high)).all(1)
        assert inside.sum() >= 4
    assert min(sides) < 0.4 < max(sides) <= 1.2 * 1.1 + 1e-9
    head = keypoints.copy()
    head[:, 2] = 0
    head[[0, 1, 2, 5], 2] = 1  # no legs seen, head and shoulders are
    assert augment.extreme_crop(head, random) is not None
    head[2:, 2] = 0
    head[[0, 10], 2] = 1  # a knee and the nose: neither case
    assert augment.extreme_crop(head, random) is None


def test_every_image_defect_gives_a_picture(files: Demo) -> None:
    _, found = collection(files)
    picture = decode(found.images[0].read(str(found.rows.image[0])), "x")[:128, :96]
    picture = np.ascontiguousarray(picture)
    for _, defect in (*augment._weathers(0.5), *augment._COLOURS):
        before = picture.copy()
        result = defect(picture, np.random.default_rng(1))
        assert result.shape == picture.shape and result.dtype == np.uint8, defect
        assert np.array_equal(picture, before), defect  # the input is left alone
        assert not np.array_equal(result, before), defect


# ---- demo pictures ------------------------------------------------------------------------------


def test_demo_pictures_show_the_person_where_the_labels_are(files: Demo) -> None:
    """The rendered body covers its keypoints and little else; the picture has the labels' size."""
    labels = files.data / "demo" / "demo-release.npz"
    columns = demo_pictures._columns(labels)
    keypoints = np.load(labels)["gtkps"]
    for k in (0, 20, 45):
        name = str(columns["imgname"][k])
        shown = decode((files.data / name).read_bytes(), name).astype(int)
        width, height = columns["image_size"][k]
        assert shown.shape == (height, width, 3)
        random = np.random.default_rng((0, demo_pictures.VERSION, k))
        empty = demo_pictures.background(height, width, random).astype(int)
        changed = np.abs(shown - empty).sum(2) > 40
        points = keypoints[k][keypoints[k][:, 2] > 0, :2].astype(int)
        assert np.mean([changed[y, x] for x, y in points]) > 0.8
        low, high = points.min(0), points.max(0)
        reach = 0.2 * (high - low).max()
        y, x = np.nonzero(changed)
        near = (x > low[0] - reach) & (x < high[0] + reach)
        near &= (y > low[1] - reach) & (y < high[1] + reach)
        assert near.mean() > 0.93


def test_demo_pictures_are_deterministic_and_cached(files: Demo, tmp_path: Path) -> None:
    labels = files.data / "demo" / "demo-release.npz"
    chosen = tmp_path / "labels.npz"
    with np.load(labels) as file:
        np.savez(chosen, **{name: file[name][:20] for name in file.files})
    job = demo_pictures.Job(chosen, files.models, tmp_path / "data")
    seen: list[tuple[int, int]] = []
    assert demo_pictures.render_demo(job, report=lambda *x: seen.append(x)) == (20, 20)
    assert seen[-1] == (20, 20)
    pictures = sorted((tmp_path / "data").rglob("*.jpg"))
    assert len(pictures) == 20
    for picture in pictures:  # the same as in a run over all rows, in other blocks
        name = picture.relative_to(tmp_path / "data")
        assert picture.read_bytes() == (files.data / name).read_bytes()
    stamps = [p.stat().st_mtime_ns for p in pictures]
    assert demo_pictures.render_demo(job) == (0, 20)
    pictures[3].unlink()
    assert demo_pictures.render_demo(job) == (1, 20)
    assert [p.stat().st_mtime_ns for p in pictures if p != pictures[3]] == (stamps[:3] + stamps[4:])
    other = replace(job, seed=1)
    assert demo_pictures.render_demo(other) == (20, 20)
    assert pictures[0].stat().st_mtime_ns != stamps[0]


def test_only_demo_labels_are_rendered(tmp_path: Path, files: Demo) -> None:
    np.savez(tmp_path / "coco-release.npz", imgname=np.array(["a.jpg"]))
    job = demo_pictures.Job(tmp_path / "coco-release.npz", files.models, tmp_path)
    with pytest.raises(InputError, match="column 'pose_cam' is missing; only the generated demo"):
        demo_pictures.render_demo(job)
    with np.load(files.data / "demo" / "demo-release.npz") as file:
        columns = {name: file[name][:1] for name in file.files}
    columns["imgname"] = np.array(["demo/../../escape.jpg"])
    buffer = io.BytesIO()
    np.savez(buffer, **columns)
    (tmp_path / "bad.npz").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="leads out of the data root"):
        demo_pictures.render_demo(replace(job, labels=tmp_path / "bad.npz"))
    assert not (tmp_path.parent / "escape.jpg").exists()
