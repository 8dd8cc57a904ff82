"""Pixels, picture names and mixtures as published (docs/reference/checkpoints.md)."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipeline.errors import InputError, UsageError
from stages.cli import run as command_line
from stages.regressor.config import load_recipe
from stages.regressor.data.crops import Crop, cut
from stages.regressor.data.image_names import known_rule, resolved
from stages.regressor.data.images import TarImages, open_images
from stages.regressor.data.loader import Order
from stages.regressor.data.mixture import Mixture, mixture_weights
from stages.regressor.data.rows import Place, load_collection
from stages.regressor.network.model import Regressor
from stages.regressor.network.vit import ViT
from stages.regressor.training.schedule import parameter_groups
from tests.regressor_files import MICRO, demo
from tests.test_regressor_networks import SMALL

# ---- pixels -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photo() -> tuple[np.ndarray, bytes]:
    """A picture with detail at every scale, (700, 900, 3) RGB, and its PNG."""
    random = np.random.default_rng(0)
    layers = [
        cv2.resize(random.integers(0, 256, (700 // k, 900 // k, 3), np.uint8), (900, 700))
        for k in (1, 5, 30)
    ]
    picture = np.mean(layers, 0).astype(np.uint8)
    return picture, cv2.imencode(".png", picture[..., ::-1])[1].tobytes()


def literal_warp(picture: np.ndarray, center: np.ndarray, side: float) -> np.ndarray:
    """The public code's steps, written out: three float32 points, full decoding, BGR."""
    source, target = np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32)
    source[0] = center
    source[1] = source[0] + np.array([0, side * 0.5], np.float32)
    source[2] = source[0] + np.array([side * 0.5, 0], np.float32)
    target[:] = (128, 128), (128, 256), (256, 128)
    matrix = cv2.getAffineTransform(np.float32(source), np.float32(target))
    bgr = np.ascontiguousarray(picture[..., ::-1])
    crop = cv2.warpAffine(bgr, matrix, (256, 256), flags=cv2.INTER_LINEAR,
                          borderMode=cv2.BORDER_CONSTANT)  # fmt: skip
    return crop[:, 32:224, ::-1]


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.5, 2.1, 3.0, 5.0])
def test_published_pixels(photo: tuple[np.ndarray, bytes], factor: float) -> None:
    picture, data = photo
    random = np.random.default_rng(int(10 * factor))
    for _ in range(3):
        center, side = random.uniform((100, 100), (800, 600)), 256 * factor
        crop = Crop(center, side, center, 256, pixels="published")
        found, wanted = cut(data, "x", crop), literal_warp(picture, center, side)
        assert np.array_equal(found, wanted)
        ours = cut(data, "x", replace(crop, pixels="continuous"))
        away = np.abs(ours.astype(int) - wanted).mean()
        assert away > 1 or factor == 1.0, "the switch would do nothing"


def test_published_pixels_of_a_turned_row(photo: tuple[np.ndarray, bytes]) -> None:
    """A flip is the mirrored picture with its centre mirrored, index by index."""
    picture, data = photo
    center, side = np.array([400.25, 300.5]), 333.0
    principal = np.array([450.0, 350.0])
    flipped = np.array([900 - center[0], center[1]])
    crop = Crop(flipped, side, principal, 256, flip=True, pixels="published")
    index = np.array([900 - center[0] - 1, center[1]])
    wanted = literal_warp(np.ascontiguousarray(picture[:, ::-1]), index, side)
    away = np.abs(cut(data, "x", crop).astype(int) - wanted)
    assert away.max() <= 1 and (away > 0).mean() < 1e-3


@pytest.mark.parametrize(
    ("center", "side"), [((400.3, 300.7), 301.5), ((10.2, 20.9), 180.0), ((850.0, 690.0), 700.0)]
)
def test_published_cut_at_whole_pixels(
    photo: tuple[np.ndarray, bytes], center: tuple[float, float], side: float
) -> None:
    picture, data = photo
    half = side / 2
    left, up, right, down = map(
        int, (center[0] - half, center[1] - half, center[0] + half, center[1] + half)
    )
    margin = 800
    padded = np.pad(picture, ((margin, margin), (margin, margin), (0, 0)))
    part = padded[up + margin : down + margin, left + margin : right + margin]
    wanted = cv2.resize(np.ascontiguousarray(part), (256, 256))[:, 32:224]
    crop = Crop(np.array(center), side, np.array(center), 256, pixels="integer")
    assert np.array_equal(cut(data, "x", crop), wanted)


def test_which_recipes_see_published_pixels() -> None:
    for name, pixels in (("published", "published"), ("published-baseline", "published"),
                         ("default", "continuous"), ("tiny", "continuous")):  # fmt: skip
        assert load_recipe(name).data.pixels == pixels


# ---- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "stored", "path"),
    [
        ("coco", "train2014/COCO_1.jpg", "COCO_1.jpg"),
        ("mpii", "images/015601864.jpg", "015601864.jpg"),
        ("aic", "aic-train/a/b.jpg", "a/b.jpg"),
        ("insta1", "insta-train/A/12_3456_78901_xyz_0/37.jpg", "A/12_34_78_0/0037.jpg"),
        ("insta2", "insta-train/A/12_3456_78901_xyz_0/12345.png", "A/12_34_78_0/12345.png"),
        ("h36m", "S1/Directions/0001", "S1/Directions/0001.jpg"),
        ("mpi-inf", "S1/Seq1/0001", "S1/Seq1/0001.jpg"),
        ("3dpw", "imageFiles/a/image_0.jpg", "imageFiles/a/image_0.jpg"),
    ],
)
def test_picture_names(dataset: str, stored: str, path: str) -> None:
    assert resolved(known_rule(dataset), np.array([stored])).tolist() == [path]


def test_a_data_set_without_pictures_is_named(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture
) -> None:
    files, config = demo(tmp_path_factory.getbasetemp()), load_recipe("tiny", MICRO).data
    name = str(load_collection([Place(files.shards)], config).rows.image[0])
    (tmp_path / "x").mkdir()
    message = rf"{files.shards}: .*looked for in {tmp_path / 'x'}.*demo/.*names 'plain'"
    with pytest.raises(InputError, match=message):
        load_collection([Place(files.shards), Place(files.shards, tmp_path / "x")], config)
    # Under their base names they are there.
    folder = (files.data / name).parent
    rows = load_collection([Place(files.shards, folder, "basename")], config).rows
    assert str(rows.image[0]) == Path(name).name
    with pytest.raises(UsageError, match="picture names 'x': expected plain, basename"):
        load_collection([Place(files.shards, folder, "x")], config)
    words = ["train", str(files.shards), "--out", str(tmp_path / "o"), "--image-names", "plain",
             "--image-names", "plain"]  # fmt: skip
    assert command_line(words) == 2
    assert "2 given for 1 datasets" in capsys.readouterr().err


# ---- mixtures -----------------------------------------------------------------------------------


def test_a_mixture_draws_sets_by_weight_and_walks_each_in_turn() -> None:
    source = np.repeat([0, 1, 2], (10, 1000, 50))
    mixture = Mixture(source, np.array([0.5, 0.3, 0.2]), 2000, seed=3)
    epochs = [mixture.epoch(k) for k in range(3)]
    assert np.array_equal(Mixture(source, np.array([0.5, 0.3, 0.2]), 2000, 3).epoch(2), epochs[2])
    for order in epochs:
        shares = np.bincount(source[order], minlength=3) / 2000
        assert np.abs(shares - (0.5, 0.3, 0.2)).max() < 0.04  # four deviations of a binomial
    taken = np.concatenate(epochs)
    for k, size in enumerate((10, 1000, 50)):
        mine = taken[source[taken] == k]
        rounds = [mine[i : i + size] for i in range(0, len(mine) - size + 1, size)]
        assert rounds and all(len(set(part.tolist())) == size for part in rounds)
        assert len(rounds) == 1 or not np.array_equal(rounds[0], rounds[1])


def test_processes_share_a_mixture() -> None:
    mixture = Mixture(np.repeat([0, 1], (30, 40)), np.array([0.9, 0.1]), 64, seed=1)
    parts = [list(Order(70, 4, 1, 2, rank, mixture).epoch(1)) for rank in (0, 1)]
    alone = list(Order(70, 8, 1, 1, 0, mixture).epoch(1))
    assert len(alone) == 8
    keys = [key for batch in alone for key in batch]
    # The set of 30 is walked twice: no row is augmented alike twice in an epoch.
    assert len({row for _, row, _ in keys}) < len(keys) == len(set(keys))
    for one, two, both in zip(*parts, alone, strict=True):
        assert sorted(one + two) == sorted(both)


@pytest.mark.parametrize(
    ("mixture", "text"),
    [
        ({"a": 0.5, "b": 0.4}, "weights sum to 0.9, expected 1"),
        ({"a": 0.5, "c": 0.5}, "c too many, b missing"),
        ({"a": 0.5}, "none too many, b missing"),
    ],
)
def test_mixtures_that_cannot_be(mixture: dict[str, float], text: str) -> None:
    source = np.array([0, 1, 1])
    with pytest.raises(InputError, match=f"data.mixture: .*{text}"):
        mixture_weights(mixture, [Path("x/a"), Path("y/b")], source)
    with pytest.raises(InputError, match="no training rows in b"):
        mixture_weights({"a": 0.5, "b": 0.5}, [Path("a"), Path("b")], np.array([0]))
    with pytest.raises(InputError, match="called alike"):
        mixture_weights({"a": 1.0}, [Path("x/a"), Path("y/a")], source)


def test_hsmr_mixtures_sum_to_one() -> None:
    for name in ("mixture-hsmr", "mixture-hsmr-four"):
        weights = load_recipe("published-baseline", [f"changes/{name}"]).data.mixture
        assert sum(weights.values()) == pytest.approx(1)


# ---- tars ---------------------------------------------------------------------------------------


def test_the_index_of_tars_is_one_for_all_processes(tmp_path: Path) -> None:
    content = {f"a/{k}.jpg": bytes([k % 256]) * (k + 1) for k in range(300)}
    for part in range(2):
        with tarfile.open(tmp_path / f"{part}.tar", "w") as archive:
            for name, data in content.items():
                member = tarfile.TarInfo(f"./{name}")
                member.size = len(data) if part == 0 else 0
                archive.addfile(member, io.BytesIO(data) if part == 0 else None)
    images = open_images(tmp_path)
    assert isinstance(images, TarImages) and len(images.index) == 300
    assert images.index.nbytes <= 40 * 300  # a dict of names takes 600 bytes a member
    for name, data in content.items():
        assert images.read(name) == data  # the first tar wins
    assert images.has(["a/0.jpg", "a/300.jpg"]).tolist() == [True, False]
    # What travels to a loader process is a handle, and both ends map the same bytes.
    make, (shared,) = images.index.__reduce__()
    again = make(shared)
    assert again.find("a/7.jpg") == images.index.find("a/7.jpg")
    assert np.shares_memory(again._columns, make(images.index.__reduce__()[1][0])._columns)
    assert images.index._first.flags.c_contiguous  # else each search would copy the column


def test_no_picture_of_a_damaged_tar_is_lost_in_silence(tmp_path: Path) -> None:
    """Python's tarfile takes a header that is damaged or cut for the end of the file."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 10
            archive.addfile(member, io.BytesIO(b"0123456789"))
    data = whole.getvalue()
    flipped = bytearray(data)
    flipped[1024 + 3] ^= 1
    path = tmp_path / "x.tar"
    for bad in (data[:300], data[:900], data[: 3 * 1024], data[: 3 * 1024 + 100], bytes(flipped)):
        path.write_bytes(bad)
        with pytest.raises(InputError, match=r"x\.tar: not a readable, uncompressed tar"):
            open_images(path).has(["a.jpg"])
    path.write_bytes(data)
    assert open_images(path).has(["a.jpg", "e.jpg"]).all()


# ---- training for many GPUs ---------------------------------------------------------------------


def test_recomputed_blocks_have_the_same_gradients() -> None:
    """Stochastic depth included: what was dropped stays dropped."""
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        size = SMALL.model_copy(update={"drop_path": 0.5, "depth": 4, "recompute": recompute})
        vit = ViT(size, 64, 48).train()
        image = torch.randn(6, 3, 64, 48, generator=torch.Generator().manual_seed(1))
        torch.manual_seed(7)
        vit(image).square().sum().backward()
        found.append([p.grad.clone() for p in vit.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_parameter_groups() -> None:
    recipe = load_recipe("published", MICRO)
    network = Regressor(recipe.model)
    every = list(network.parameters())
    (plain,) = parameter_groups(network, recipe.optimiser, 2)
    assert plain["params"] == every and plain["share"] == 1.0
    config = recipe.optimiser.model_copy(update={"layer_decay": 0.5, "decay_all": False})
    groups = parameter_groups(network, config, 2)
    assert sum(len(group["params"]) for group in groups) == len(every)
    of = {id(p): group for group in groups for p in group["params"]}
    named = dict(network.named_parameters())
    for name, share, decay in (
        ("backbone.pos_embed", 0.125, 0.0), ("backbone.patch_embed.proj.weight", 0.125, 1e-4),
        ("backbone.blocks.0.mlp.fc1.weight", 0.25, 1e-4),
        ("backbone.blocks.1.norm1.bias", 0.5, 0.0), ("backbone.last_norm.weight", 1.0, 0.0),
        ("head.embed.code.weight", 1.0, 1e-4), ("head.position", 1.0, 0.0),
    ):  # fmt: skip
        group = of[id(named[name])]
        assert (group["share"], group["weight_decay"]) == (share, decay), name
