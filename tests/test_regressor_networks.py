"""Sizes and conventions of the networks (docs/reference/regressor.md)."""

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from stages.regressor.config import (
    BackboneConfig,
    CoarseToFineConfig,
    DecoderConfig,
    ModelConfig,
    load_recipe,
)
from stages.regressor.network.checkpoints import load_checkpoint, save_checkpoint
from stages.regressor.network.foreign_files import read_foreign
from stages.regressor.network.heads import CoarseToFineHead, PooledHead, SingleTokenHead
from stages.regressor.network.hrnet import HRNet, HumanFOV
from stages.regressor.network.lifter import found_depths, found_keypoints
from stages.regressor.network.mean_parameters import mean_parameters
from stages.regressor.network.model import Regressor
from stages.regressor.network.official import load_human_fov, load_vitpose
from stages.regressor.network.vit import DropPath, ViT, token_grid

SMALL = BackboneConfig(
    width=32, depth=2, heads=4, mlp_width=64, drop_path=0.0, stem="patch", weights=None
)
SMALL_DECODER = DecoderConfig(layers=3, width=32, heads=2, head_width=16, mlp_width=32)
PUBLISHED = load_recipe("published").model


def options(**changes: object) -> CoarseToFineConfig:
    """The published switches with some changed."""
    return CoarseToFineConfig(**(PUBLISHED.coarse_to_fine.model_dump() | changes))


def with_backbone(**changes: object) -> BackboneConfig:
    return BackboneConfig(**(SMALL.model_dump() | changes))


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def tokens(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 48, 32, generator=torch.Generator().manual_seed(1))


def box(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, generator=torch.Generator().manual_seed(2))


# ---- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"),
    [("vit-s", 21_663_744), ("vit-b", 85_794_816), ("vit-l", 303_296_512), ("vit-h", 630_912_000)],
)
def test_vit_sizes_to_the_unit(name: str, count: int) -> None:
    with torch.device("meta"):
        recipe = load_recipe("default", [f"changes/{name}"])
        assert parameters(ViT(recipe.model.backbone)) == count


def test_stem_of_convolutions_has_the_grid_of_the_patches() -> None:
    """A token sees 31 x 31 pixels about the first one of its cell; far ones only the norms."""
    torch.manual_seed(0)
    vit = ViT(with_backbone(width=64, stem="convolutions"), 128, 96)
    image = torch.randn(1, 3, 128, 96)
    stem = vit.patch_embed
    plain = stem(image)
    assert plain.shape == (1, 48, 64) and vit(image).shape == (1, 48, 64)
    image[:, :, 5 * 16, 16] += 5.0
    moved = (stem(image) - plain).norm(dim=-1)[0]
    assert int(moved.argmax()) == 5 * 6 + 1


def test_heatmaps_are_made_only_while_training() -> None:
    network = Regressor(load_recipe("tiny").model)
    image = torch.zeros(2, 3, 128, 96)
    assert network.train()(image, box()).heatmaps.shape == (2, 48, 44)
    assert network.eval()(image, box()).heatmaps is None
    assert not hasattr(
        Regressor(load_recipe("tiny", ["model.heatmaps=false", "loss.heatmaps=0"]).model),
        "heatmaps",
    )


def pyramid() -> Regressor:
    torch.manual_seed(0)
    return Regressor(load_recipe("pyramid").model).eval()


def test_pyramid_gives_tokens_and_a_map_row_by_row() -> None:
    backbone = pyramid().backbone
    for places, count, cell in ((0, 48, 16), (1, 32 * 24, 4)):
        image = torch.randn(1, 3, 128, 96, requires_grad=True)
        seen = backbone(image)[places]
        assert seen.shape == (1, count, (192, 32)[places])
        row, column = 80 // cell, 16 // cell
        seen[0, row * (96 // cell) + column].square().sum().backward()
        assert image.grad is not None
        felt = image.grad.square().sum((0, 1))
        # The middle of the pixels it depends on; norms let it see a little of all others.
        for axis, where in ((1, 80 + cell / 2), (0, 16 + cell / 2)):
            line = felt.sum(axis)
            middle = float((line * (torch.arange(len(line)) + 0.5)).sum() / line.sum())
            assert middle == pytest.approx(where, abs=8)


def test_a_row_of_the_pyramid_does_not_depend_on_its_batch_in_training_either() -> None:
    backbone, image = pyramid().train().backbone, torch.randn(3, 3, 128, 96)
    with torch.no_grad():
        together, alone = backbone(image), backbone(image[:1])
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one[:1], other, atol=1e-4) and one.std() > 0.01


def test_a_keypoint_is_the_mean_of_its_heatmap_with_its_spread() -> None:
    logits = torch.zeros(1, 8 * 6, 44)
    logits[0, 5 * 6 + 1, 0] = 60.0  # one cell
    logits[0, [5 * 6 + 1, 5 * 6 + 3], 1] = 60.0  # two, two columns apart
    found, share = found_keypoints(logits, (8, 6))
    first, second, even = found[0, 0], found[0, 1], found[0, 2]
    place = torch.tensor([(1.5 / 6 - 0.5) * 0.75, 5.5 / 8 - 0.5])
    assert torch.allclose(first[:2], place, atol=1e-6) and float(first[2]) == pytest.approx(1e-3)
    step = 0.75 / 6
    assert torch.allclose(second[:2], place + torch.tensor([step, 0.0]), atol=1e-6)
    assert float(second[2]) == pytest.approx(step, rel=1e-3)
    assert torch.allclose(even[:2], torch.zeros(2), atol=1e-6) and float(even[2]) > 0.3
    assert torch.allclose(share.sum(1), torch.ones(1, 44))


def test_a_depth_is_what_the_map_says_where_the_heatmap_is() -> None:
    share = torch.zeros(1, 3, 44)
    share[0, :2] = torch.tensor((0.25, 0.75))[:, None]
    depths = torch.zeros(1, 3, 44)
    depths[0, :, 5] = torch.tensor((-0.4, 0.2, 9.0))
    read = found_depths(share, depths)
    assert read.shape == (1, 44, 1) and float(read[0, 5]) == pytest.approx(0.05, abs=1e-6)
    assert float(read.abs().sum()) == pytest.approx(0.05, abs=1e-6)


def test_a_network_that_only_looks_finds_the_same_and_estimates_the_mean() -> None:
    network, image = pyramid().train(), torch.randn(2, 3, 128, 96)
    torch.nn.init.normal_(network.head.get_submodule("coarse_read_out").code[-1].weight, std=0.01)  # type: ignore[union-attr]
    whole, looked = network(image, box()), network(image, box(), look_only=True)
    assert torch.equal(whole.found, looked.found) and torch.equal(whole.heatmaps, looked.heatmaps)
    assert looked.found.shape == (2, 44, 4) and looked.coarse is None
    mean = network.head.start(2)  # type: ignore[operator]
    assert torch.equal(looked.final.code, mean.code)
    assert not torch.allclose(whole.final.code, mean.code)


def test_a_picture_adds_nothing_to_the_lifter_before_it_is_trained() -> None:
    """So that what generated labels taught it is where training with pictures starts."""
    network, image = pyramid(), torch.randn(2, 3, 128, 96)
    torch.nn.init.normal_(network.head.get_submodule("coarse_read_out").code[-1].weight, std=0.01)  # type: ignore[union-attr]
    with torch.no_grad():
        seen = network(image, box())
        assert seen.coarse is not None and seen.found is not None
        lifted = network.lifted(seen.found, box()).final
        mean = network.head.start(2)  # type: ignore[operator]
    assert torch.equal(seen.coarse.code, lifted.code)
    assert not torch.allclose(lifted.code, mean.code)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model.head=pooled", "coarse stage"),
        ("model.heatmaps=false", "model.heatmaps"),
        ("loss.found_depths=0", "go together"),
        ("model.lifter.depths=false", "go together"),
        ("optimiser.layer_decay=0.8", "model.pyramid has none"),
        ("model.pyramid.blocks=[1, 1]", "pyramid.blocks"),
    ],
)
def test_what_a_lifter_or_a_pyramid_cannot_be_is_refused(change: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_recipe("pyramid", [change])


def test_a_checkpoint_of_ours_gives_its_backbone(tmp_path: Path) -> None:
    recipe = load_recipe("tiny")
    network = Regressor(recipe.model)
    save_checkpoint(tmp_path / "last.pt", {"network": network.state_dict(), "optimiser": {}})
    other = Regressor(recipe.model).backbone
    load_vitpose(other, tmp_path / "last.pt")
    for name, tensor in network.backbone.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_head_sizes_to_the_unit() -> None:
    with torch.device("meta"):
        head = CoarseToFineHead(1280, PUBLISHED.decoder, options())
        single = SingleTokenHead(1280, load_recipe("published-baseline").model.decoder)
        looped = CoarseToFineHead(1280, PUBLISHED.decoder, options(looped=True))
    assert parameters(head) == 48_502_941
    assert parameters(head.layers[0]) == 7_876_864
    assert [parameters(mlp) for mlp in head.read_out.children()] == [364_944, 330_506, 328_707]
    assert [parameters(e) for e in head.embed.values()] == [189_440, 17_920, 8_960]
    assert parameters(single) == 39_547_037
    assert parameters(head) - parameters(looped) == 5 * 7_876_864


def test_human_fov_size_to_the_unit() -> None:
    with torch.device("meta"):
        network = HumanFOV()
        assert parameters(network) == 67_677_178
        assert parameters(network.backbone) == 65_887_224
        assert parameters(network.backbone.final_layer) == 1_176
        assert HRNet()(torch.empty(1, 3, 256, 256)).shape == (1, 720, 8, 8)
        assert network(torch.empty(2, 3, 256, 256)).shape == (2, 2)


def test_published_recipe_is_the_published_network() -> None:
    with torch.device("meta"):
        network = Regressor(load_recipe("published").model)
        baseline = Regressor(load_recipe("published-baseline").model)
    assert parameters(network) == 630_912_000 + 48_502_941
    assert parameters(baseline) == 630_912_000 + 39_547_037


# ---- ViT ----------------------------------------------------------------------------------------


def test_vit_tokens_are_a_row_major_grid_with_the_class_position_added() -> None:
    assert token_grid(256, 192) == (16, 12)
    assert token_grid(128, 96) == (8, 6)
    vit = ViT(SMALL, 128, 96).eval()
    positions = vit.positions(vit.grid)
    assert torch.equal(positions, vit.pos_embed[:, 1:] + vit.pos_embed[:, :1])
    # A change in the pixels of patch row 2, column 3 changes exactly that token's embedding.
    image = torch.zeros(1, 3, 128, 96)
    other = image.clone()
    other[..., 2 * 16 + 4, 3 * 16 + 4] = 1.0
    changed = (vit.patch_embed(image) != vit.patch_embed(other)).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [2 * 6 + 3]


def test_vit_interpolates_positions_at_another_size() -> None:
    vit = ViT(SMALL, 128, 96).eval()
    with torch.no_grad():
        assert vit(torch.zeros(1, 3, 192, 144)).shape == (1, 12 * 9, 32)
        vit.pos_embed[:] = vit.pos_embed[:, 5:6]
        # Constant positions stay constant under any interpolation.
        spread = vit.positions((12, 9)) - 2 * vit.pos_embed[:, :1]
    assert spread.abs().max() < 1e-6


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone.", "model.backbone."])
@pytest.mark.parametrize("container", ["state_dict", "model", None])
def test_vitpose_files_load_with_and_without_prefixes(
    tmp_path: Path, prefix: str, container: str | None
) -> None:
    source, target = ViT(SMALL, 128, 96), ViT(SMALL, 128, 96)
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    state[prefix + "cls_token"] = torch.zeros(1, 1, 32)
    if prefix:
        head = prefix.removesuffix("backbone.") + "keypoint_head.final_layer.weight"
        state[head] = torch.zeros(17, 32)
    path = tmp_path / "vitpose.pth"
    torch.save({container: state, "meta": {"epoch": 3}} if container else state, path)
    load_vitpose(target, path)
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name]), name


def test_vitpose_file_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vitpose.pth"
    torch.save({"state_dict": ViT(SMALL, 128, 96).state_dict()}, path)
    with pytest.raises(
        InputError, match=r"vitpose.pth: not this ViT \(3 blocks.* missing \(blocks.2"
    ):
        load_vitpose(ViT(with_backbone(depth=3), 128, 96), path)
    with pytest.raises(InputError, match=r"pos_embed: expected \(1, 193, 32\), found"):
        load_vitpose(ViT(SMALL), path)


class Hostile:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("hostile-file-ran"),)


def test_hostile_checkpoints_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": Hostile()}, path)
    for load in (
        lambda: load_vitpose(ViT(SMALL), path),
        lambda: load_human_fov(path),
        lambda: load_checkpoint(path),
    ):
        with pytest.raises(InputError, match=r"evil.pth: damaged, or holds more than tensors"):
            load()
    assert not Path("hostile-file-ran").exists()


def test_checkpoints_are_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"network": {"a": torch.arange(3.0)}, "progress": {"step": 2}})
    assert torch.equal(load_checkpoint(path)["network"]["a"], torch.arange(3.0))
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    for content in (path.read_bytes()[:-200], b"root:x:0:0:root:/root:/bin/bash\n"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"last.pt: damaged"):
            load_checkpoint(path)
    torch.save({"network": {}}, path)
    with pytest.raises(InputError, match="not a checkpoint of hmr-skel train"):
        load_checkpoint(path)


def test_human_fov_loader_names_missing_and_unexpected_keys(tmp_path: Path) -> None:
    with torch.device("meta"):
        names = list(HumanFOV().state_dict())
    assert "backbone.conv1.weight" in names
    path = tmp_path / "cam_model_cleaned.ckpt"
    torch.save({"state_dict": {"encoder.conv1.weight": torch.zeros(2)}}, path)
    message = rf"{len(names)} missing \(.*\), 1 unexpected \(encoder.conv1.weight\)"
    with pytest.raises(InputError, match=message):
        load_human_fov(path)


def test_drop_path_keeps_the_mean_and_is_off_in_evaluation() -> None:
    drop = DropPath(0.3)
    ones = torch.ones(4000, 2, 3)
    torch.manual_seed(0)
    drawn = drop(ones)
    assert drawn[:, 0, 0].unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    assert abs(float(drawn.mean()) - 1) < 0.05
    assert torch.equal(drop.eval()(ones), ones)


# ---- heads --------------------------------------------------------------------------------------


def silence(head: nn.Module) -> None:
    """Zero every read-out."""
    for name, parameter in head.named_parameters():
        if "read_out" in name:
            nn.init.zeros_(parameter)


@pytest.mark.parametrize(
    "switches",
    [
        options(),
        options(coarse=False),
        options(conditioned=False),
        options(state="single_readout"),
        options(state="keep"),
        options(looped=True),
        options(conditioned_coarse=True, separate_heads=True, zero_init=True),
    ],
    ids=lambda switches: ",".join(f"{k}={v}" for k, v in vars(switches).items() if v)[:60],
)
def test_zeroed_heads_give_the_mean_in_every_variant(switches: CoarseToFineConfig) -> None:
    head = CoarseToFineHead(32, SMALL_DECODER, switches)
    if not switches.zero_init:
        assert not torch.allclose(head(tokens(), box()).final.code[0], mean_parameters().code)
        silence(head)
    found = head(tokens(), box())
    layers = 1 if switches.state == "single_readout" else 3
    assert found.layers.code.shape == (layers, 2, 144)
    assert (found.coarse is None) == (not switches.coarse)
    for part, mean in zip(found.final, mean_parameters(), strict=True):
        assert torch.equal(part, mean.expand(2, -1))


def test_zeroed_baselines_give_the_mean() -> None:
    for head in (SingleTokenHead(32, SMALL_DECODER), PooledHead(32)):
        silence(head)
        found = head(tokens(), box())
        assert found.coarse is None and found.layers.camera.shape == (1, 2, 3)
        assert torch.equal(found.final.camera, torch.tensor([0.9, 0, 0]).expand(2, -1))


def test_rebuilt_tokens_carry_information_through_the_estimate_only() -> None:
    """regressor.md#update-rule: with read-outs silenced, what a layer saw is lost; kept states pass
    it on."""
    torch.manual_seed(3)
    for state, passes in (("rebuild", False), ("keep", True)):
        head = CoarseToFineHead(32, SMALL_DECODER, options(state=state))
        silence(head)
        first = head.layers[0]
        seen: list[torch.Tensor] = []
        head.layers[1].register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0]))
        head(tokens(), box())
        nn.init.normal_(first.feed_forward[3].weight)
        head(tokens(), box())
        assert torch.equal(seen[0], seen[1]) != passes


def test_box_numbers_reach_the_estimate_only_where_conditioned() -> None:
    torch.manual_seed(4)
    for switches, coarse, final in (
        (options(), False, True),
        (options(conditioned=False), False, False),
        (options(conditioned_coarse=True), True, True),
    ):
        head = CoarseToFineHead(32, SMALL_DECODER, switches)
        one, two = head(tokens(), box()), head(tokens(), box() + 1)
        assert torch.equal(one.coarse.camera, two.coarse.camera) != coarse
        assert torch.equal(one.final.camera, two.final.camera) != final


def test_gradients_run_through_the_whole_chain() -> None:
    """regressor.md#update-rule: nothing is detached; the last loss reaches all that came before."""
    head = CoarseToFineHead(32, SMALL_DECODER, options(separate_heads=True))
    head(tokens(), box()).final.code.square().sum().backward()
    assert head.coarse_read_out.code[0].weight.grad.abs().max() > 0
    assert head.layers[0].cross_attention.to_q.weight.grad.abs().max() > 0


def test_shared_heads_need_equal_widths() -> None:
    with pytest.raises(ValueError, match=r"decoder.width 64 must equal backbone.width 1280"):
        wide = PUBLISHED.decoder.model_dump() | {"width": 64}
        ModelConfig.model_validate(PUBLISHED.model_dump() | {"decoder": wide})


def test_scale_floor_keeps_the_camera_in_front_and_leaves_the_mean() -> None:
    config = load_recipe("tiny").model
    network = Regressor(config).eval()
    estimate = network.head.start(3)
    camera = torch.tensor([[0.9, 0, 0], [0.0, 1, 2], [-5.0, 0, 0]])
    floored = network._floored(estimate._replace(camera=camera)).camera
    assert (floored[:, 0] >= config.scale_floor).all()
    assert abs(float(floored[0, 0]) - 0.9) < 1e-3
    assert torch.equal(floored[:, 1:], camera[:, 1:])


def test_a_flipped_bit_of_a_checkpoint_is_refused(tmp_path: Path) -> None:
    """torch reads damaged tensors without a word; the digest behind the file does not."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"network": {"a": torch.arange(64.0)}, "progress": {"step": 2}})
    assert torch.load(path, weights_only=True)["progress"] == {"step": 2}  # by stock torch
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        for load in (load_checkpoint, read_foreign):
            if load is read_foreign and place >= len(whole) - 48:
                continue  # a file without our digest is one of others: its members are intact
            with pytest.raises(InputError, match=r"last\.pt"):
                load(path)


def test_checkpoints_of_version_1_and_of_others_are_checked_by_their_members(
    tmp_path: Path,
) -> None:
    path = tmp_path / "old.pt"
    weights = torch.arange(64.0)
    content = {"format": "hmr-skel-regressor", "version": 1, "network": {"a": weights}}
    torch.save(content, path)
    assert torch.equal(load_checkpoint(path)["network"]["a"], weights)
    data = path.read_bytes()
    at = data.index(weights.numpy().tobytes()) + 10
    path.write_bytes(data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :])
    for load in (load_checkpoint, read_foreign):
        with pytest.raises(InputError, match="does not have its checksum"):
            load(path)
