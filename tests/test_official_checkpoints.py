"""Official checkpoints in and out, on fake files with their names and containers
(docs/reference/checkpoints.md)."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from stages.cli import run as command_line
from stages.regressor.config import load_recipe
from stages.regressor.data.rows import Place, load_collection
from stages.regressor.evaluation.trained import TrainedNetwork, fov_input
from stages.regressor.network.checkpoints import load_checkpoint, save_checkpoint
from stages.regressor.network.model import Regressor
from stages.regressor.network.official import load_human_fov, official_name, wanted_tensors
from stages.regressor.training.distributed import Process
from stages.regressor.training.reporting import Reporter
from stages.regressor.training.trainer import Trainer
from tests import official_files as fake
from tests.regressor_files import MICRO, demo

SETS = [word for change in fake.SIZE for word in ("--set", change)]


def same(network: dict[str, torch.Tensor], source: Regressor) -> None:
    wanted = source.state_dict()
    assert network.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(network[name], tensor), name


def imported(path: Path, out: Path, *words: str) -> dict:
    assert command_line(["import-checkpoint", str(path), "--out", str(out), *words]) == 0
    return load_checkpoint(out)


@pytest.fixture(scope="module")
def skel_cf() -> Regressor:
    return fake.random_network(fake.recipe("skel-cf"), 1)


@pytest.fixture(scope="module")
def hsmr() -> Regressor:
    recipe = load_recipe("published-baseline", [*fake.SIZE, "model.decoder.width=48"])
    return fake.random_network(recipe, 2)


@pytest.fixture
def skel_cf_file(skel_cf: Regressor, tmp_path: Path) -> Path:
    return fake.save(tmp_path / "SKEL-CF.pth", fake.skel_cf_content(skel_cf))


# ---- names --------------------------------------------------------------------------------------


def test_names_and_shapes_are_those_of_the_official_files() -> None:
    skel_cf = wanted_tensors("skel-cf", load_recipe("published").model)
    hsmr = wanted_tensors("hsmr", load_recipe("published-baseline").model)
    assert len(skel_cf) == 389 + 124 and len(hsmr) == 389 + 114
    assert sum(t.numel() for t in skel_cf.values()) == 679_415_098
    assert skel_cf["decoder.mean_poses"].shape == (1, 144)
    assert skel_cf["decoder.to_pose_embedding.weight"].shape == (1280, 147)
    assert skel_cf["decoder.transformer.layers.5.1.fn.to_kv.weight"].shape == (1024, 1280)
    assert hsmr["head.transformer.transformer.layers.0.2.fn.net.3.weight"].shape == (1024, 1024)
    assert hsmr["head.cam_decoder.weight"].shape == (3, 1024)
    fov = wanted_tensors("human-fov", load_recipe("published").model)
    assert len(fov) == 1874
    flat = {n for n in fov if n.startswith("backbone.downsample_stage_")}
    assert len(flat) == 36 and "backbone.downsample_stage_1.7.running_var" in flat
    assert not any("downsample_stage_1.0.0" in name for name in flat)
    with pytest.raises(KeyError):
        official_name("skel-cf", "heatmaps.weight")


# ---- in -----------------------------------------------------------------------------------------


def test_skel_cf_with_its_configuration(
    skel_cf: Regressor, skel_cf_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    content = imported(skel_cf_file, tmp_path / "a.pt", *SETS)
    same(content["network"], skel_cf)
    assert content["imported"]["averaged"] and not content["standin"]
    said = capsys.readouterr().out
    for left in ("model", "optimizer", "cfg", "updates", "cam_model.* (2)", "skel_model.* (3)"):
        assert left in said
    assert "omegaconf" not in sys.modules
    raw = imported(skel_cf_file, tmp_path / "b.pt", "--weights", "raw", *SETS)
    name = "head.embed.code.bias"
    assert torch.equal(raw["network"][name], skel_cf.state_dict()[name] + 1)


@pytest.mark.parametrize("variant", ["without cfg", "only ema_model", "not zipped"])
def test_variants_of_skel_cf(skel_cf: Regressor, tmp_path: Path, variant: str) -> None:
    content = fake.skel_cf_content(skel_cf)
    if variant != "not zipped":
        content.pop("cfg")
    if variant == "only ema_model":
        content = {"ema_model": content["ema_model"]}
    path = fake.save(tmp_path / "x.pth", content, zipped=variant != "not zipped")
    same(imported(path, tmp_path / "x.pt", *SETS)["network"], skel_cf)


def test_hsmr_and_vitpose(hsmr: Regressor, tmp_path: Path) -> None:
    path = fake.save(tmp_path / "hsmr.ckpt", fake.hsmr_content(hsmr))
    content = imported(path, tmp_path / "hsmr.pt", "--recipe", "published-baseline", *SETS,
                       "--set", "model.decoder.width=48")  # fmt: skip
    same(content["network"], hsmr)
    backbone = hsmr.backbone.state_dict()
    original = {f"backbone.{name}": value for name, value in backbone.items()}
    original |= {"backbone.cls_token": torch.zeros(1, 1, 32), "keypoint_head.a": torch.zeros(2)}
    for k, state in enumerate((backbone, original)):
        path = fake.save(tmp_path / f"{k}.pth", {"state_dict": state})
        content = imported(path, tmp_path / f"{k}.pt", *SETS)
        assert content["kind"] == "backbone" and len(content["network"]) == len(backbone)
        for name, value in backbone.items():
            assert torch.equal(content["network"][f"backbone.{name}"], value)
    with pytest.raises(InputError, match=r"1.pt: holds backbone weights alone"):
        TrainedNetwork(tmp_path / "1.pt")


def test_human_fov(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, skel_cf: Regressor) -> None:
    network = fake.small_human_fov(monkeypatch)
    state = network.state_dict()
    assert len(state) == 1874
    content = {"state_dict": state, "optimizer_states": [{}], "cfg": fake.foreign_config()}
    published = fake.save(tmp_path / "cam.ckpt", content)
    imported(published, tmp_path / "fov.pt")
    content = fake.skel_cf_content(skel_cf)
    for weights, prefix in ((content["model"], ""), (content["ema_model"], "model.")):
        for name in [n for n in weights if "cam_model." in n]:
            weights.pop(name)
        weights |= {f"{prefix}cam_model.{name}": value for name, value in state.items()}
    whole = fake.save(tmp_path / "SKEL-CF.pth", content)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for path in (published, tmp_path / "fov.pt", whole):
        assert torch.equal(load_human_fov(path)(image), network(image)), path
    words = ["export-checkpoint", str(tmp_path / "fov.pt"), "--out", str(tmp_path / "back.ckpt")]
    assert command_line(words) == 0
    back = torch.load(tmp_path / "back.ckpt", weights_only=True)["state_dict"]
    assert back.keys() == state.keys() and all(torch.equal(back[n], state[n]) for n in state)


# ---- out, and the whole way ---------------------------------------------------------------------


def test_a_network_of_ours_comes_back_and_sees_the_same_everywhere(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture,
) -> None:
    """train -> export -> import -> predict, evaluate, start, backbone: bit for bit."""
    files = demo(tmp_path_factory.getbasetemp())
    recipe = load_recipe("published", [*MICRO, "train.epochs=1"])
    rows = load_collection([Place(files.shards)], recipe.data)
    here = Process(0, 1, torch.device("cpu"))

    def trainer(out: str, *changes: str) -> Trainer:
        chosen = load_recipe("published", [*MICRO, "train.epochs=1", *changes])
        quiet = Reporter(None, quiet=True)
        return Trainer(chosen, rows, files.models, tmp_path / out, here, quiet)

    trainer("run").run()
    best = tmp_path / "run" / "best.pt"
    network = fake.small_human_fov(monkeypatch)
    fov = fake.save(tmp_path / "cam.ckpt", {"state_dict": network.state_dict()})
    official, again = tmp_path / "official.pth", tmp_path / "again.pth"
    own = tmp_path / "own.pt"
    words = ["export-checkpoint", str(best), "--out", str(official), "--fov-checkpoint", str(fov)]
    assert command_line(words) == 0
    content = imported(official, own, *SETS)
    assert content["standin"], "the exported file says on which bodies it was made"
    same(content["network"], TrainedNetwork(best).network)
    assert command_line(["export-checkpoint", str(own), "--out", str(again)]) == 0
    first, second = (torch.load(path, weights_only=True)["ema_model"] for path in (official, again))
    assert all(
        torch.equal(first[name], value) for name, value in second.items() if name != "updates"
    )
    assert len(first) - len(second) == 1874

    picture = sorted((files.data / "demo").rglob("*.jpg"))[0]
    for path, fov_file in ((best, fov), (own, official)):
        out = tmp_path / f"predicted-{path.stem}"
        words = ["predict", str(picture), "--checkpoint", str(path), "--out", str(out),
                 "--save", "npz,json", "--fov-checkpoint", str(fov_file)]  # fmt: skip
        assert command_line(words) == 0
        words = ["evaluate", "demo", "--shards", str(files.shards), "--worst", "0", "--quiet",
                 "--limit", "2", "--checkpoint", str(path), "--focal", "predicted",
                 "--fov-checkpoint", str(fov_file), "--out", str(out)]  # fmt: skip
        assert command_line(words) == 0
    assert "HumanFOV" in capsys.readouterr().out
    folders = [tmp_path / "predicted-best", tmp_path / "predicted-own"]
    for name in ("predictions.npz", "rows-demo.npz"):
        one, two = (dict(np.load(folder / name)) for folder in folders)
        for key, value in one.items():
            if key.startswith("official") or key not in two:
                continue
            assert np.array_equal(value, two[key], equal_nan=value.dtype.kind == "f"), (name, key)
    document = json.loads((folders[1] / "predictions.json").read_text())
    assert document["focal_length"] == "HumanFOV"

    started = trainer("start", f"model.weights={own}").network.state_dict()
    same(started, TrainedNetwork(best).network)
    for path in (own, official):
        start = trainer("backbone", f"model.backbone.weights={path}").network
        for name, value in start.backbone.state_dict().items():
            assert torch.equal(value, content["network"][f"backbone.{name}"])
    with pytest.raises(InputError, match="import-checkpoint makes one"):
        trainer("bad", f"model.weights={official}")


def test_only_published_networks_are_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for recipe, said in (("default", "conditioned_coarse: True"), ("tiny", "stem: convolutions")):
        chosen = load_recipe(recipe)
        save_checkpoint(
            tmp_path / "x.pt", {"recipe": chosen.model_dump(mode="json"), "network": {}}
        )
        words = ["export-checkpoint", str(tmp_path / "x.pt"), "--out", str(tmp_path / "y.pth")]
        assert command_line(words) == 5
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not (tmp_path / "y.pth").exists()


# ---- bad input ----------------------------------------------------------------------------------


def refused(path: Path, capsys: pytest.CaptureFixture, *words: str) -> str:
    out = path.with_suffix(".out")
    capsys.readouterr()
    assert command_line(["import-checkpoint", str(path), "--out", str(out), *words]) in (2, 5)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(path) in said and not out.exists()
    return said


def test_what_is_wrong_with_a_file_is_one_line(
    skel_cf: Regressor, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def variant(name: str, change: object) -> Path:
        content = fake.skel_cf_content(skel_cf)
        change(content)  # type: ignore[operator]
        return fake.save(tmp_path / name, content)

    wrong = variant(
        "a", lambda c: c["ema_model"].update({"model.decoder.mean_cam": torch.zeros(1, 4)})
    )
    assert "looks like SKEL-CF" in refused(wrong, capsys, *SETS)
    assert "decoder.mean_cam: expected (1, 3), found (1, 4)" in refused(wrong, capsys, *SETS)
    missing = variant("b", lambda c: c["ema_model"].pop("model.decoder.to_pose_embedding.bias"))
    assert "1 missing (decoder.to_pose_embedding.bias)" in refused(missing, capsys, *SETS)
    unknown = variant("c", lambda c: c["ema_model"].update({"model.decoder.new": torch.zeros(1)}))
    assert "1 unexpected (decoder.new)" in refused(unknown, capsys, *SETS)
    raw = variant("d", lambda c: c.pop("ema_model"))
    assert "raw weights only" in refused(raw, capsys, *SETS)
    inert = variant("e", lambda c: c["ema_model"].update({"model.decoder.mean_cam": c["cfg"]}))
    assert "'decoder.mean_cam' among the weights is no dense tensor" in refused(
        inert, capsys, *SETS
    )
    number = variant("f", lambda c: c["ema_model"]["model.decoder.mean_cam"].fill_(np.nan))
    assert "not finite" in refused(number, capsys, *SETS)
    whole = variant("g", lambda c: None)
    width = refused(whole, capsys)
    assert "its width is 32, the recipe's 1280" in width and "of another shape" in width
    other = refused(whole, capsys, "--recipe", "published-baseline")
    assert "coarse_to_fine" in other and "published-baseline has single_token" in other
    whole_numbers = variant(
        "i", lambda c: c["ema_model"].update(
            {"model.decoder.mean_cam": torch.ones(1, 3, dtype=torch.int8)}
        )
    )  # fmt: skip
    assert "found (1, 3) integers" in refused(whole_numbers, capsys, *SETS)
    cut = tmp_path / "h"
    cut.write_bytes(whole.read_bytes()[:-3000])
    assert "damaged" in refused(cut, capsys)
    foreign = fake.save(tmp_path / "i", {"state_dict": {"encoder.a": torch.zeros(2)}})
    said = refused(foreign, capsys)
    assert "no official checkpoint known here" in said and "1 unexpected (encoder.a)" in said
    assert "holds no weights" in refused(fake.save(tmp_path / "j", {"epoch": 3}), capsys)
    own = tmp_path / "k"
    save_checkpoint(own, {"network": {}})
    assert "is a file of hmr-skel (regressor) already" in refused(own, capsys)
    cut.write_bytes(b"text")
    assert "damaged" in refused(cut, capsys)


class Hostile:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_of_a_file_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skel_cf: Regressor, zipped: bool
) -> None:
    import os

    class System:
        def __reduce__(self) -> tuple:
            return os.system, ("touch ran",)

    monkeypatch.chdir(tmp_path)
    for hostile in (Hostile(), System()):
        content = {**fake.skel_cf_content(skel_cf), "cfg": hostile}
        path = fake.save(tmp_path / "evil.pth", content, zipped=zipped)
        command_line(["import-checkpoint", str(path), "--out", str(tmp_path / "o.pt"), *SETS])
        assert not (tmp_path / "ran").exists()


def test_the_picture_of_the_field_of_view_has_the_published_sizes() -> None:
    """docs/reference/regressor.md#human-fov: computed in floating point."""
    for width, height, rows in ((2048, 1872, 233), (640, 480, 192), (256, 256, 256)):
        black = fov_input(np.zeros((height, width, 3), np.uint8))[0] < 0
        assert black.any(1).sum() == rows
