"""Training runs on real files: the same weights after kill -9, in one process or two; refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from pipeline.errors import InputError, Locked, PlanMismatch, UsageError
from skel_fit.keypoints import ROOT_KEYPOINT
from stages.cli import run as command_line
from stages.regressor.config import EmaConfig, load_recipe
from stages.regressor.data.images import open_images
from stages.regressor.data.loader import CropDataset, batches
from stages.regressor.data.rows import Place, TrainingRows, load_collection
from stages.regressor.evaluation.bodies import EvaluationBodies
from stages.regressor.evaluation.eval_readers import read_eval_rows
from stages.regressor.evaluation.predictors import CheckpointPredictor
from stages.regressor.evaluation.protocols import load_protocol
from stages.regressor.evaluation.scoring import run_protocol
from stages.regressor.evaluation.trained import ReadyNetwork
from stages.regressor.network import camera, representation
from stages.regressor.network.checkpoints import load_checkpoint, save_checkpoint
from stages.regressor.network.heads import Estimates
from stages.regressor.network.mean_parameters import Parameters
from stages.regressor.network.model import Regressor
from stages.regressor.training import refining
from stages.regressor.training import trainer as training
from stages.regressor.training.benchmarks import Places, open_benchmarks
from stages.regressor.training.bodies import RunBodies
from stages.regressor.training.distributed import Process
from stages.regressor.training.ema import Ema
from stages.regressor.training.generated import Generator, generated_loss
from stages.regressor.training.losses import Loss
from stages.regressor.training.reporting import Reporter, prediction_sheet
from stages.regressor.training.run_folder import Result, describe
from stages.regressor.training.schedule import learning_rate
from stages.regressor.training.trainer import Diverged, Trainer
from stages.regressor.training.validation import mean_pose_scores
from tests import official_files as fake
from tests.regressor_files import MICRO, ROWS, Demo, demo

HERE = Process(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return demo(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Runs in this process and in others must add up in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trainer(  # type: ignore[no-untyped-def]
    files: Demo, out: Path, *changes: str, log: bool = False, edit=None, places: int = 1,
    fov: Path | None = None,
) -> Trainer:  # fmt: skip
    recipe = load_recipe("tiny", [*MICRO, *changes])
    found = load_collection([Place(files.shards)] * places, recipe.data)
    if edit is not None:
        found = edit(found)
    reporter = Reporter(out / "tensorboard" if log else None, quiet=True)
    there = Places({}, {}, files.data, files.shards, fov, "bgr")
    benchmarks = open_benchmarks(recipe, there, files.models, found.standin)
    return Trainer(recipe, found, files.models, out, HERE, reporter, benchmarks=benchmarks)


def weights(out: Path, name: str = "last.pt") -> dict[str, torch.Tensor]:
    content = load_checkpoint(out / name)
    parts = {part: content.get(part, {}) for part in ("network", "ema")}
    return {f"{part}.{name}": v for part, found in parts.items() for name, v in found.items()}


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.fixture(scope="module")
def finished(files: Demo, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """An uninterrupted run of three epochs, with TensorBoard."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "whole"
    result = trainer(files, out, "train.pictures=2", log=True).run()
    return out, result


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def train_command(files: Demo, out: Path, *changes: str) -> list[str]:
    sets = [word for change in (*MICRO, *changes) for word in ("--set", change)]
    return ["-m", "stages.cli", "train", str(files.shards), "--recipe", "tiny", "--out", str(out),
            "--models", str(files.models), *sets]  # fmt: skip


# ---- the same trajectory ------------------------------------------------------------------------


def test_killed_and_resumed_gives_the_same_weights(
    files: Demo, finished: tuple[Path, Result], tmp_path: Path
) -> None:
    """kill -9 in a real process; resumed here; bit for bit the weights of the whole run."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, *train_command(files, out)], env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    end = time.monotonic() + 120
    while not (out / "last.pt").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    stopped = load_checkpoint(out / "last.pt")["progress"]["step"]
    whole, result = finished
    assert 0 < stopped < result.steps
    again = trainer(files, out).run()
    assert again.steps == result.steps == 3 * (again.rows // 8)
    assert equal(weights(out), weights(whole))
    one, two = (load_checkpoint(x / "last.pt")["optimiser"]["state"] for x in (out, whole))
    assert all(torch.equal(one[k][n], two[k][n]) for k in one for n in one[k])
    assert again.scores == result.scores and again.best_step == result.best_step
    assert not list(out.glob(".*.tmp"))


def test_every_checkpoint_resumes_to_the_same_weights(
    files: Demo, finished: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also around the ends of epochs, where validation and EMA come in."""
    whole, result = finished
    for stop in sorted({2, result.steps // 3, result.steps - 1}):
        out = tmp_path / f"run-{stop}"
        first = trainer(files, out, f"train.checkpoint_every={stop}")
        step = Trainer._step

        def stopping(self: Trainer, *rest, stop: int = stop, step=step) -> None:  # type: ignore[no-untyped-def]
            if self.progress.step == stop:
                raise KeyboardInterrupt
            step(self, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_step", stopping)
            with pytest.raises(KeyboardInterrupt):
                first.run()
        assert load_checkpoint(out / "last.pt")["progress"]["step"] == stop
        assert trainer(files, out).run().scores == result.scores
        assert equal(weights(out), weights(whole))


def test_two_processes_train_as_one(files: Demo, tmp_path: Path) -> None:
    """torchrun with two processes of 4 rows takes the steps of one process with 8."""
    changes = ("model.backbone.drop_path=0", "train.epochs=1")
    out = tmp_path / "two"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
         "--master-port=0", "--standalone",
         *train_command(files, out, *changes, "train.batch_size=4")],
        env=environment(), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    alone = trainer(files, tmp_path / "one", *changes).run()
    one, two = weights(tmp_path / "one"), weights(out)
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], rtol=1e-3, atol=2e-5), name
    assert load_checkpoint(out / "last.pt")["scores"]["rows"] == alone.scores.rows
    assert done.stdout.count("stopped") == 1  # only the first process speaks


def test_accumulated_batches_make_the_step_of_a_large_one(files: Demo, tmp_path: Path) -> None:
    changes = ("model.backbone.drop_path=0", "train.epochs=1", "optimiser.clip=0")
    small = ("train.batch_size=4", "optimiser.accumulate=2")
    moments, logged = [], []
    for name, more in (("one", ()), ("two", small)):
        trainer(files, tmp_path / name, *changes, *more, log=True).run()
        logged.append(scalars(tmp_path / name))
        state = load_checkpoint(tmp_path / name / "last.pt")["optimiser"]["state"]
        moments.append(torch.cat([entry["exp_avg"].flatten() for entry in state.values()]))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        assert torch.allclose(one[name], two[name], rtol=1e-3, atol=1e-4), name
    # AdamW forgives a wrong scale of the gradient; its moments do not.
    assert (moments[0] - moments[1]).norm() < 1e-2 * moments[0].norm()
    # What is logged is the loss of the whole step, not of the last batch that went into it.
    losses = [name for name in logged[0] if name.startswith("loss/")]
    assert len(losses) > 5 and logged[0].keys() == logged[1].keys()
    for name in losses:
        assert logged[0][name] == pytest.approx(logged[1][name], rel=1e-2), name


def test_the_network_is_told_the_jittered_focal_length(files: Demo, tmp_path: Path) -> None:
    """Box numbers as if the picture had been taken with it; the loss has the label's camera."""
    run = trainer(files, tmp_path / "run", "data.augment.focal=0.3")
    batch = next(batches(run.train_set, [[(0, k) for k in range(8)]], 0))
    cam_int = batch.view.cam_int.clone()
    cam_int[:, (0, 1), (0, 1)] *= batch.focal[:, None]
    told = camera.box_conditioning(batch.view.box_center, batch.view.box_side, cam_int)
    given: list[torch.Tensor] = []
    views: list[torch.Tensor] = []
    run.network.register_forward_pre_hook(lambda _, inputs: given.append(inputs[1]))
    run.loss.register_forward_pre_hook(lambda _, inputs: views.append(inputs[2].cam_int))
    run._loss(run.network, batch)
    assert torch.allclose(given[0], told) and (batch.focal - 1).abs().min() > 1e-4
    assert torch.equal(views[0], batch.view.cam_int)


def scalars(out: Path) -> dict[str, float]:
    """The last value of each TensorBoard scalar of a run."""
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return {name: events.Scalars(name)[-1].value for name in events.Tags()["scalars"]}


def test_bf16_layers_with_fp32_geometry(files: Demo, tmp_path: Path) -> None:
    run = trainer(files, tmp_path / "run", "train.precision=bf16", "train.epochs=1")
    layer: set[torch.dtype] = set()
    geometry: set[torch.dtype] = set()
    run.network.backbone.blocks[0].mlp.fc1.register_forward_hook(
        lambda _, inputs, output: layer.add(output.dtype)
    )
    run.loss.body.register_forward_hook(
        lambda _, inputs, output: geometry.update((inputs[0].dtype, output.keypoints.dtype))
    )
    result = run.run()
    assert layer == {torch.bfloat16} and geometry == {torch.float32}
    assert np.isfinite(result.scores.mpjpe) and result.reason == "finished"
    assert all(v.dtype != torch.bfloat16 for v in weights(tmp_path / "run").values())


def test_workers_and_another_seed(
    files: Demo, finished: tuple[Path, Result], tmp_path: Path
) -> None:
    trainer(files, tmp_path / "workers", "train.workers=2").run()
    assert equal(weights(tmp_path / "workers"), weights(finished[0]))
    trainer(files, tmp_path / "seed", "train.seed=1", "train.epochs=1").run()
    assert not equal(weights(tmp_path / "seed"), weights(finished[0]))


# ---- what a run leaves --------------------------------------------------------------------------


def test_a_run_leaves_checkpoints_of_plain_types_and_a_summary(
    finished: tuple[Path, Result],
) -> None:
    out, result = finished
    assert {"last.pt", "best.pt", "summary.json"} <= {p.name for p in out.iterdir()}
    best = torch.load(out / "best.pt", weights_only=True)
    assert best["standin"] is True and best["recipe"]["name"] == "tiny"
    assert best["scores"]["pa_mpjpe"] == pytest.approx(load_best(out))
    assert best["identity"]["training_rows"] == result.rows
    # The licensed body model never gets into a checkpoint.
    assert not any(tensor.numel() >= 6890 * 3 * 10 for tensor in weights(out).values())
    assert not any("skel" in name or "body" in name for name in weights(out))


def test_the_closing_table_says_the_best_score_and_its_step(finished: tuple[Path, Result]) -> None:
    out, result = finished
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    best = min(events.Scalars("validation/pa_mpjpe_mm"), key=lambda event: event.value)
    table = dict(describe(result))
    share = f"{100 * result.best / result.mean_pose.pa_mpjpe:.0f} % of the mean pose's"
    assert table["best PA-MPJPE"] == f"{best.value:.1f} mm at step {best.step}, {share}"
    assert table["last PA-MPJPE"] == f"{result.scores.pa_mpjpe:.1f} mm"
    worse = replace(result, best=result.best - 7, best_step=2)
    assert dict(describe(worse))["best PA-MPJPE"].startswith(f"{best.value - 7:.1f} mm at step 2,")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["best"] == pytest.approx(best.value) and summary["select"] == "pa_mpjpe"
    assert not any(name.startswith("best") for name, _ in describe(replace(result, best=None)))


def test_a_run_too_short_to_be_useful_says_so(finished: tuple[Path, Result]) -> None:
    out, result = finished
    mean = result.mean_pose.pa_mpjpe
    summary = json.loads((out / "summary.json").read_text())
    assert summary["mean_pose"]["pa_mpjpe"] == pytest.approx(mean)
    assert summary["share_of_mean_pose"] == pytest.approx(result.best / mean)
    assert summary["useful"] is result.useful
    for share, useful, words in (
        (1.48, False, "no better than one mean pose for every picture; after 3.0 epochs the run is "
         "too short to be useful"),
        (0.95, False, "hardly better than one mean pose for every picture"),
        (0.65, True, None),
    ):  # fmt: skip
        found = replace(result, best=share * mean)
        assert found.useful is useful
        line = dict(describe(found)).get("not useful")
        assert line is None if words is None else line.startswith(words)
    stuck = replace(result, best=mean, reason="patience")
    assert "too short" not in dict(describe(stuck))["not useful"]
    assert replace(result, best=None).useful is None


def test_the_mean_pose_is_scored_as_a_prediction_would_be(files: Demo) -> None:
    """One pose for all: exact where everybody has it, half wrong where half have another."""
    recipe = load_recipe("tiny", MICRO)
    rows = load_collection([Place(files.shards)], recipe.data).of("train").rows
    bodies = RunBodies(files.models, "male", ("female", "male"))
    one = {f.name: getattr(rows, f.name) for f in fields(TrainingRows)}
    one |= {n: np.repeat(getattr(rows, n)[:1], 8, 0) for n in ("poses", "betas")}
    same = TrainingRows(**{n: v[:8].copy() for n, v in one.items()} | {"female": np.zeros(8, bool)})
    scores = mean_pose_scores(same, same, bodies)
    assert scores.rows == 8 and scores.mpjpe < 1e-3 and scores.pa_mpjpe < 1e-3
    turned = same.poses.copy()
    turned[:4, 1] += np.pi / 2  # the pelvis, which an alignment takes away
    other = replace(same, poses=turned)
    found = mean_pose_scores(same, other, bodies)
    assert found.mpjpe > 50 and found.pa_mpjpe < 1e-3
    assert mean_pose_scores(same, other.take(np.arange(4, 8)), bodies).mpjpe < 1e-3
    assert mean_pose_scores(same, same.take(np.arange(0)), bodies) is None


def test_benchmarks_are_scored_while_training(
    files: Demo, finished: tuple[Path, Result], tmp_path: Path
) -> None:
    """As `hmr-skel evaluate` scores the checkpoint; the weights are those of a run without."""
    out = tmp_path / "run"
    changes = ("train.benchmarks=[demo]", "train.benchmark_rows=7")
    result = trainer(files, out, *changes, log=True).run()
    assert equal(weights(out), weights(finished[0]))
    ours = result.benchmarks["demo"]
    protocol = load_protocol("demo")
    assert set(ours) == set(protocol.metrics)
    rows = read_eval_rows(protocol, files.shards, files.data)
    rows = rows.take(np.linspace(0, len(rows) - 1, 7).astype(int))
    network = load_checkpoint(out / "last.pt")
    ema = {name: network[name] for name in ("recipe", "ema", "standin")}
    save_checkpoint(tmp_path / "ema.pt", ema)
    again = run_protocol(
        protocol, rows, CheckpointPredictor(tmp_path / "ema.pt"), EvaluationBodies(files.models),
        images=open_images(files.data),
    ).summary()  # fmt: skip
    for name, value in ours.items():
        assert value == pytest.approx(again[name].value, rel=1e-4, abs=1e-6), name
    logged = scalars(out)
    assert logged["demo/pa_mpjpe"] == pytest.approx(ours["pa_mpjpe"], rel=1e-5)
    assert json.loads((out / "summary.json").read_text())["benchmarks"]["demo"] == ours
    assert dict(describe(result))["demo"].startswith(f"mpjpe {ours['mpjpe']:.1f}, pve ")
    # A finished run may be entered again with another list: nothing is trained or selected by it.
    assert trainer(files, out, "train.benchmarks=[]").run().benchmarks["demo"] == ours


def test_a_benchmark_may_have_its_focal_lengths_from_human_fov(
    files: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `hmr-skel evaluate --fov-checkpoint` has; found once, kept for the next validation."""
    fov = fake.small_human_fov(monkeypatch)
    fov.fc3.weight *= 1e-35  # what it looks at is that large, untrained: 0.9 to 1.1 radians now
    path = fake.save(tmp_path / "cam.ckpt", {"state_dict": fov.state_dict()})
    changes = ("train.benchmarks=[demo]", "train.benchmark_rows=3", "optimiser.ema.decay=0")
    whole = trainer(files, tmp_path / "run", *changes, fov=path)
    seen: list[np.ndarray] = []
    looked = ReadyNetwork.intrinsics
    monkeypatch.setattr(
        ReadyNetwork, "intrinsics", lambda self, *a: seen.append(a[0]) or looked(self, *a)
    )
    ours = whole.run().benchmarks["demo"]
    assert len(seen) == 3, "three pictures, three validations"
    monkeypatch.undo()
    rows = read_eval_rows(load_protocol("demo"), files.shards, files.data)
    rows = rows.take(np.linspace(0, len(rows) - 1, 3).astype(int))

    def scored(**camera: Any) -> float:
        predictor = CheckpointPredictor(tmp_path / "run" / "last.pt", **camera)
        bodies = EvaluationBodies(files.models)
        return run_protocol(
            load_protocol("demo"), rows, predictor, bodies, images=open_images(files.data)
        ).summary()["mpjpe"].value  # fmt: skip

    there = scored(focal="predicted", fov=fov, fov_channels="bgr")
    assert ours["mpjpe"] == pytest.approx(there, rel=1e-4)
    assert ours["mpjpe"] != pytest.approx(scored(), rel=1e-3)
    with pytest.raises(UsageError, match="the recipe has none"):
        trainer(files, tmp_path / "none", fov=path)


def test_a_benchmark_can_select_the_best(files: Demo, tmp_path: Path) -> None:
    out = tmp_path / "run"
    changes = ("train.benchmarks=[demo]", "train.select=demo:pve", "train.epochs=1")
    result = trainer(files, out, *changes).run()
    assert result.best == result.benchmarks["demo"]["pve"] and result.useful is None
    assert dict(describe(result))["best DEMO:PVE"].startswith(f"{result.best:.1f} mm at step")
    with pytest.raises(PlanMismatch, match=r"recipe.train.benchmark_rows"):
        trainer(files, out, *changes, "train.benchmark_rows=3").run()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--set", "train.benchmarks=[moyo]"], 5, "no label file for protocol moyo"),
        (["--set", "train.benchmarks=[nothing]"], 2, "no protocol 'nothing'"),
        (["--set", "train.select=moyo:pve"], 5, "'moyo' is not among train.benchmarks"),
        (["--set", "train.benchmarks=[demo]", "--set", "train.select=demo:pck@0.05"], 2,
         "expected one of mpjpe, pve"),
        (["--benchmark-data", "demo=x"], 2, "'demo' is none of the recipe's train.benchmarks"),
        (["--benchmark-data", "demo"], 2, "expected PROTOCOL=PATH"),
        (["--wandb", "mine"], 2, "wandb is not installed; pip install 'hmr-skel[wandb]'"),
    ],
)  # fmt: skip
def test_wrong_benchmarks_and_loggers_are_one_line(  # type: ignore[no-untyped-def]
    files: Demo, tmp_path: Path, capsys, monkeypatch, options, code, message
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.chdir(tmp_path)
    command = train_command(files, tmp_path / "run", "train.epochs=1")[2:]
    assert command_line([*command, "--quiet", *options]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run" / "last.pt").exists()


# ---- labels refined in the loop -----------------------------------------------------------------

REFINING = ("refinement.every=5", "refinement.start=4", "refinement.rows=20")


class Knows(nn.Module):
    """Gives the labels of rows, in the order that it is asked: a network that has learnt."""

    def __init__(self, rows: TrainingRows, chosen: np.ndarray) -> None:
        super().__init__()
        self.rows, self.left = rows, chosen.tolist()

    def forward(self, image: torch.Tensor, box: torch.Tensor) -> Estimates:
        part, self.left = self.left[: len(image)], self.left[len(image) :]
        rows = self.rows.take(np.array(part))
        trans, f = torch.tensor(rows.trans), torch.from_numpy(rows.cam_int[:, 0, 0]).float()
        side = torch.from_numpy(rows.box_side).float()
        away = torch.from_numpy(rows.box_center - rows.cam_int[:, :2, 2]).float()
        scale = 2 * f / trans[:, 2]  # the inverse of camera.full_image_translation
        turned = torch.cat(((scale / side)[:, None], trans[:, :2] - 2 * away / scale[:, None]), 1)
        code = representation.encode(torch.from_numpy(rows.poses))
        return Estimates(None, Parameters(code[None], torch.from_numpy(rows.betas)[None],
                                          turned[None]))  # fmt: skip


def test_estimates_of_a_network_repair_labels_and_spare_good_ones(
    files: Demo, tmp_path: Path
) -> None:
    """Every second label is damaged; what a network that knows better says replaces those alone."""
    run = trainer(files, tmp_path / "run", *REFINING, "refinement.rows=0")
    right = run.train_set.rows
    chosen = np.arange(len(right))
    damaged = (chosen % 2 == 1) & ~right.female  # the network is male
    noise = np.random.default_rng(0).normal(size=right.poses.shape) * np.radians(25)
    noise[:, :3] = 0
    poses = (right.poses + noise * damaged[:, None]).astype(np.float32)
    wrong = replace(right, poses=poses, weight=np.full(len(right), 0.25, np.float32))
    assert run.refiner is not None
    found, outcomes = run.refiner.refined(Knows(right, chosen), wrong, 4)
    assert sum(outcomes.values()) == len(right) and outcomes["refined"] == len(found.rows)
    assert damaged[found.rows].mean() > 0.9 and len(found.rows) >= 0.6 * damaged.sum()
    after = found.applied(wrong)
    bodies = RunBodies(files.models, "male", ("female", "male"))

    def off(rows: TrainingRows) -> np.ndarray:
        one, two = (
            bodies.keypoints(*(torch.from_numpy(np.asarray(x)[found.rows]) for x in
                               (r.poses, r.betas, r.female)))[0] for r in (rows, right)
        )  # fmt: skip
        return 1000 * (one - two).norm(dim=-1).mean(1).numpy()

    assert off(after).mean() < 0.5 * off(wrong).mean()
    others = np.setdiff1d(chosen, found.rows)
    assert np.array_equal(after.poses[others], wrong.poses[others])
    assert (after.weight[found.rows] == 1).all() and (after.weight[others] == 0.25).all()


def test_the_crop_camera_of_a_network_is_translated_into_the_labels() -> None:
    random = torch.Generator().manual_seed(1)
    own = torch.tensor([[5000.0, 0, 300], [0, 5000, 200], [0, 0, 1]]).double().expand(4, 3, 3)
    label = torch.tensor([[900.0, 0, 640], [0, 900, 360], [0, 0, 1]]).double().expand(4, 3, 3)
    trans = torch.rand(4, 3, generator=random).double() + torch.tensor([0.0, 0, 40])
    moved = refining._seen_alike(trans, own, label)
    shift = torch.tensor([[[0.0, 0, 0], [0.1, -0.2, 0]]]).double()
    one = camera.project(trans[:, None] + shift, own)
    two = camera.project(moved[:, None] + shift, label)
    assert torch.allclose(one, two)
    assert torch.allclose(refining._seen_alike(moved, label, label), moved)


@pytest.mark.parametrize("moment", ["before it is written", "after it"])
def test_refined_labels_are_trained_on_and_survive_a_kill(
    files: Demo, refining_run: tuple[Path, Result], tmp_path: Path, monkeypatch, moment: str
) -> None:  # type: ignore[no-untyped-def]
    whole, result = refining_run
    content = load_checkpoint(whole / "last.pt")
    # Of 12 steps: refined after 4 and 9; the test as published takes nearly everything.
    assert content["progress"]["refined"] == 9
    assert result.refined == len(content["refined"]["rows"]) > 10
    assert dict(describe(result))["labels refined"] == f"{result.refined} of {result.rows}"
    out = tmp_path / "run"
    first = trainer(files, out, *REFINING, "refinement.acceptance=published")
    save, seen = Trainer._save, []

    def stopping(self: Trainer) -> None:
        due = self.progress.refined == self.progress.step == 4
        if due and moment.startswith("before"):
            raise KeyboardInterrupt
        save(self)
        if due:
            seen.append(self.train_set.rows.poses[self.refined.rows])
            assert np.array_equal(seen[0], self.refined.poses)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", stopping)
        with pytest.raises(KeyboardInterrupt):
            first.run()
    again = trainer(files, out, *REFINING, "refinement.acceptance=published").run()
    assert again.refined == result.refined
    assert equal(weights(out), weights(whole))
    one, two = (load_checkpoint(x / "last.pt")["refined"] for x in (out, whole))
    assert equal(one, two)


@pytest.fixture(scope="module")
def refining_run(files: Demo, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("refining") / "whole"
    run = trainer(files, out, *REFINING, "refinement.acceptance=published", log=True)
    result = run.run()
    assert 50 < scalars(out)["refinement/refined_percent"] <= 100
    return out, result


def test_refined_labels_change_what_is_learnt(
    refining_run: tuple[Path, Result], finished: tuple[Path, Result]
) -> None:
    assert not equal(weights(refining_run[0]), weights(finished[0]))


def load_best(out: Path) -> float:
    return load_checkpoint(out / "last.pt")["progress"]["best"]


def test_a_run_leaves_tensorboard_scalars_and_pictures(finished: tuple[Path, Result]) -> None:
    events = EventAccumulator(str(finished[0] / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"loss/total", "loss/keypoints_2d", "run/rate", "validation/mpjpe_mm"} <= set(
        tags["scalars"]
    )
    assert tags["images"] == ["validation/predictions"]
    steps = [event.step for event in events.Scalars("validation/pa_mpjpe_mm")]
    assert steps == [finished[1].steps // 3 * k for k in (1, 2, 3)]
    assert events.Images("validation/predictions")[0].width == 2 * 48


def test_the_prediction_sheet_draws_over_the_crop(files: Demo) -> None:
    recipe = load_recipe("tiny", MICRO)
    found = load_collection([Place(files.shards)], recipe.data).of("validation")
    rows = CropDataset(found, recipe.data, 64, 0, training=False)
    bodies = RunBodies(files.models, "male", ("female", "male"))
    torch.manual_seed(0)
    sheet = prediction_sheet(Regressor(recipe.model), rows, [0, 3], bodies, recipe)
    assert sheet.shape == (128, 96, 3) and sheet.dtype == np.uint8
    limbs, body = sheet[:64, :48].astype(int), sheet[64:, :48].astype(int)
    assert (np.abs(limbs - (60, 220, 90)).sum(2) < 60).sum() > 20  # the labels' green
    assert (np.abs(limbs - (255, 120, 30)).sum(2) < 60).sum() > 20  # the prediction's orange
    assert (np.abs(limbs - body).sum(2) > 30).sum() > 100


# ---- pyramid and lifter -------------------------------------------------------------------------


SMALL_PYRAMID = (
    "model.pyramid={channels: [8, 8, 16, 16], blocks: [1, 1, 1], maps: 8}",
    "model.lifter={width: 32, blocks: 1, features: 4, depths: true}", "loss.found_keypoints=2",
    "loss.found_depths=1", "data.cached_crops=1.25", "train.look_first=0.5",
    "generated={steps: 3, batch_size: 8, beside: 4}",
)  # fmt: skip


def test_a_lifter_is_taught_once_and_every_kill_resumes_to_the_same_weights(
    files: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it is taught, and after it, before the next checkpoint."""
    changes = (*SMALL_PYRAMID, "train.epochs=1", "train.checkpoint_every=2")
    whole = trainer(files, tmp_path / "whole", *changes).run()
    assert not (tmp_path / "whole" / "crops.npy").exists()  # done with
    taught = load_checkpoint(tmp_path / "whole" / "last.pt")["progress"]["taught"]
    assert taught is True and whole.steps > 2
    step, lesson = Trainer._step, training.teach_lifter
    for stop in ("lesson", 1):
        out = tmp_path / f"run-{stop}"

        def stopping(self: Trainer, *rest, stop: object = stop) -> None:  # type: ignore[no-untyped-def]
            if self.progress.step == stop:
                raise KeyboardInterrupt
            step(self, *rest)

        def stopped_lesson(*rest, stop: object = stop) -> None:  # type: ignore[no-untyped-def]
            lesson(*rest)
            if stop == "lesson":
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_step", stopping)
            patch.setattr(training, "teach_lifter", stopped_lesson)
            with pytest.raises(KeyboardInterrupt):
                trainer(files, out, *changes).run()
        assert (out / "crops.npy").exists()
        assert (out / "last.pt").exists() == (stop != "lesson")
        trainer(files, out, *changes).run()
        assert equal(weights(out), weights(tmp_path / "whole")), stop


def test_the_first_steps_teach_only_what_is_found_in_pictures(
    files: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until their share of the steps is over, not a weight of decoder or lifter moves."""
    run = trainer(files, tmp_path, *SMALL_PYRAMID, "train.epochs=2", "generated.steps=0")
    first, step, seen = round(0.5 * run.total_steps), Trainer._step, []
    moved = {"backbone", "heatmaps", "depths"}

    def watched(self: Trainer, *rest) -> None:  # type: ignore[no-untyped-def]
        before = {name: p.detach().clone() for name, p in self.network.named_parameters()}
        step(self, *rest)
        after = dict(self.network.named_parameters())
        seen.append({n.partition(".")[0] for n in before if not torch.equal(before[n], after[n])})

    monkeypatch.setattr(Trainer, "_step", watched)
    run.run()
    assert 0 < first < len(seen) == run.total_steps
    assert all(parts == moved for parts in seen[:first])
    assert all({"lifter", "head", *moved} == parts for parts in seen[first + 1 :])


def test_generated_labels_are_bodies_seen_by_cameras_of_training_rows(files: Demo) -> None:
    exact = [f"generated.{name}=0" for name in ("noise", "depth_noise", "lost")]
    recipe = load_recipe("pyramid", exact)
    rows = load_collection([Place(files.shards)], recipe.data).of("train").rows
    bodies = RunBodies(files.models, "male", ("female", "male"))
    generator = Generator(recipe, rows, bodies)
    found, view, labels = generator.drawn(64, (1, 2, 3))
    again, other = generator.drawn(64, (1, 2, 3)), generator.drawn(64, (1, 2, 4))
    assert torch.equal(found, again.keypoints) and not torch.equal(found, other.keypoints)
    # The 2D labels are the 3D ones seen from somewhere in front of the camera.
    posed = bodies.own(labels.poses, labels.betas).keypoints
    assert torch.allclose(posed, labels.keypoints_3d, atol=1e-5)
    seen = labels.keypoints_2d[..., :2]
    pixels = (seen + 0.5) * recipe.model.crop_size
    pixels = (pixels - view.affine[:, None, :, 2]) / view.affine[:, None, :1, 0]
    rays = (pixels - view.cam_int[:, None, :2, 2]) / view.cam_int[:, None, :1, 0]
    rays, points = rays.double(), posed.double()
    ones, zeros = torch.ones_like(rays[..., 0]), torch.zeros_like(rays[..., 0])
    equations = torch.stack((
        torch.stack((ones, zeros, -rays[..., 0]), -1),
        torch.stack((zeros, ones, -rays[..., 1]), -1),
    ), 2).flatten(1, 2)  # fmt: skip
    wanted = (rays * points[..., 2:] - points[..., :2]).flatten(1)
    there = torch.linalg.lstsq(equations, wanted[..., None]).solution
    assert (there[:, 2] > 0).all()
    misses = (equations @ there)[..., 0] - wanted
    assert float(misses.abs().max()) < 1e-4
    # Boxes lie around the body as those of the rows do, a margin of 1.2 here.
    extent = (seen.amax(1) - seen.amin(1)).amax(1)
    jitter = recipe.data.augment.scale
    assert (extent * 1.2 * (1 + jitter) > 0.9).all() and (extent * 1.2 * (1 - jitter) < 1.1).all()
    # Without noise a keypoint is where it is, or at the edge of what the network sees.
    inside = (seen[..., 0].abs() < 0.375) & (seen[..., 1].abs() < 0.5)
    assert torch.allclose(found[..., :2][inside], seen[inside], atol=1e-6)
    assert (found[..., 0].abs() <= 0.375).all() and inside.float().mean() > 0.9
    behind = labels.keypoints_3d[..., 2] - labels.keypoints_3d[:, ROOT_KEYPOINT, 2, None]
    assert torch.allclose(found[..., 3], behind, atol=1e-5) and behind.std() > 0.1


def test_generated_labels_teach_the_lifter(files: Demo) -> None:
    recipe = load_recipe("pyramid", ["generated={steps: 30, batch_size: 32}"])
    rows = load_collection([Place(files.shards)], recipe.data).of("train").rows
    bodies = RunBodies(files.models, "male", ("female", "male"))
    torch.manual_seed(0)
    network, loss = Regressor(recipe.model), Loss(recipe.loss, recipe.model, bodies.own)
    generator = Generator(recipe, rows, bodies)
    sample = generator.drawn(64, (9, 9))
    with torch.no_grad():
        before = float(generated_loss(network, loss, sample).total)
    training.teach_lifter(network, loss, generator, recipe)
    with torch.no_grad():
        after = float(generated_loss(network, loss, sample).total)
    assert after < 0.85 * before


def test_training_lowers_the_loss_and_the_error(files: Demo, tmp_path: Path) -> None:
    """Sixteen people learned by heart: the whole chain from pixels to metres pulls together."""

    def sixteen_twice(found):  # type: ignore[no-untyped-def]
        some = found.of("train").rows.take(np.arange(16))
        columns = {f.name: getattr(some, f.name) for f in fields(TrainingRows)}
        twin = TrainingRows(**{**{k: v.copy() for k, v in columns.items()},
                       "split": np.full(16, "validation")})  # fmt: skip
        both = [np.concatenate([getattr(some, n), getattr(twin, n)]) for n in columns]
        return replace(found, rows=TrainingRows(*both))

    quiet = [f"data.augment.{name}=0" for name in
             ("scale", "roll_probability", "flip", "color", "photometric")]  # fmt: skip
    run = trainer(
        files, tmp_path / "run", *quiet, "model.backbone.drop_path=0", "train.batch_size=16",
        "train.epochs=100", "train.validate_every=100", "train.checkpoint_every=1000",
        "optimiser.warmup=5", "optimiser.rate=0.003", "optimiser.ema.decay=0",
        edit=sixteen_twice,
    )  # fmt: skip
    before = _scores(run)
    after = run.run().scores
    assert after.pa_mpjpe < 0.6 * before.pa_mpjpe
    assert after.mpjpe < 0.5 * before.mpjpe
    assert after.keypoints_2d < 0.4 * before.keypoints_2d


def _scores(run: Trainer):  # type: ignore[no-untyped-def]
    from stages.regressor.training.validation import validate

    return validate(run.network.eval(), run.validation_set, run.bodies, run.recipe, HERE)


# ---- schedule, EMA, stopping --------------------------------------------------------------------


def test_learning_rate_schedules() -> None:
    config = load_recipe("published").optimiser
    rates = [learning_rate(config, n, 10, 30) for n in range(300)]
    assert rates[:3] == pytest.approx([1e-6, 2e-6, 3e-6]) and rates[9:] == [1e-5] * 291
    cosine = load_recipe("tiny").optimiser
    rates = [learning_rate(cosine, n, 10, 30) for n in range(301)]
    assert max(rates) == rates[10] == cosine.rate
    assert rates[155] == pytest.approx(cosine.rate * 0.51, rel=1e-3)
    assert rates[300] == pytest.approx(cosine.rate * 0.02)


def test_the_baseline_row_has_the_sizes_of_what_it_is_compared_with() -> None:
    assert load_recipe("published-baseline").model.decoder.width == 1024  # HSMR's
    for name in ("tiny", "default"):
        own, baseline = load_recipe(name), load_recipe(name, ["changes/baseline"])
        assert baseline.model.head == "single_token" and baseline.model.camera == "crop"
        assert baseline.model.decoder == own.model.decoder
        assert baseline.model.backbone == own.model.backbone
        assert (baseline.data, baseline.optimiser, baseline.train) == (
            own.data, own.optimiser, own.train
        )  # fmt: skip


def test_moving_average_follows_its_formula() -> None:
    """regressor.md#ema: m(n) = 0.9995 (1 - exp(-n / tau)), buffers too, integers copied."""
    network = torch.nn.BatchNorm1d(2)
    ema = Ema(network, EmaConfig(decay=0.9995, steps=6000))
    assert ema.momentum(1) == pytest.approx(1.67e-4, rel=3e-3)
    assert ema.momentum(6000) == pytest.approx(0.6318, abs=1e-4)
    assert ema.momentum(60000) == pytest.approx(0.99945, abs=1e-5)
    before = ema.model.weight.clone()
    with torch.no_grad():
        network.weight += 2
        network.running_mean += 4
        network.num_batches_tracked += 3
    ema.update(network, 6000)
    kept = ema.momentum(6000)
    assert torch.allclose(ema.model.weight, kept * before + (1 - kept) * network.weight)
    assert torch.allclose(ema.model.running_mean, torch.full((2,), 4 * (1 - kept)))
    assert int(ema.model.num_batches_tracked) == 3
    assert not ema.model.weight.requires_grad


def test_patience_and_time_end_a_run(
    files: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ("optimiser.rate=1e-12", "train.patience=1", "train.epochs=9",
               "optimiser.ema.decay=0")  # fmt: skip
    bored = trainer(files, tmp_path / "bored", *changes).run()
    assert bored.reason == "patience" and bored.epochs < 9
    before = weights(tmp_path / "bored")
    again = trainer(files, tmp_path / "bored", *changes).run()
    assert (again.reason, again.steps) == ("patience", bored.steps)
    assert again.scores == bored.scores and equal(weights(tmp_path / "bored"), before)
    # Killed after the checkpoint that says so, before the run has returned.
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_impatient", _killed_when_impatient)
        with pytest.raises(KeyboardInterrupt):
            trainer(files, tmp_path / "killed", *changes).run()
    resumed = trainer(files, tmp_path / "killed", *changes).run()
    assert (resumed.reason, resumed.steps) == ("patience", bored.steps)
    assert equal(weights(tmp_path / "killed"), before)
    late = trainer(files, tmp_path / "late", "train.minutes=1e-6").run()
    assert late.reason == "minutes" and late.steps < 6
    assert trainer(files, tmp_path / "late", "train.minutes=0").run().reason == "finished"


def _killed_when_impatient(run: Trainer) -> bool:
    if run.progress.bad_validations >= run.recipe.train.patience:
        raise KeyboardInterrupt
    return False


def test_a_loss_that_is_no_number_stops_and_names_the_rows(files: Demo, tmp_path: Path) -> None:
    def poisoned(found):  # type: ignore[no-untyped-def]
        columns = {f.name: getattr(found.rows, f.name).copy() for f in fields(TrainingRows)}
        bad = np.flatnonzero(columns["split"] == "train")[3]
        columns["betas"][bad] = 3e38  # finite, so no check of the labels finds it
        return replace(found, rows=TrainingRows(**columns))

    run = trainer(files, tmp_path / "run", edit=poisoned)
    row = int(np.flatnonzero(load_collection(
        [Place(files.shards)], run.recipe.data).rows.split == "train")[3])  # fmt: skip
    with pytest.raises(Diverged, match=rf"loss of step \d+ is not finite for row {row} \(demo/"):
        run.run()
    with pytest.raises(Diverged, match="is not finite for row"):
        trainer(files, tmp_path / "rate", "optimiser.rate=1e30", "optimiser.warmup=0").run()


def test_a_gradient_that_is_no_number_names_the_row_and_its_dataset(
    files: Demo, tmp_path: Path
) -> None:
    """The loss of the row is large and finite; of two datasets, the second is the one."""
    bad: list[int] = []

    def poisoned(found):  # type: ignore[no-untyped-def]
        columns = {f.name: getattr(found.rows, f.name).copy() for f in fields(TrainingRows)}
        second = (columns["split"] == "train") & (columns["source"] == 1)
        bad.append(int(np.flatnonzero(second)[5]))
        columns["keypoints"][bad[0], :, 2] *= 1e36
        return replace(found, rows=TrainingRows(**columns))

    run = trainer(
        files, tmp_path / "run", "train.batch_size=4", "optimiser.accumulate=2", edit=poisoned,
        places=2,
    )  # fmt: skip
    name = run.collection.rows.image[bad[0]]
    row = rf"row {bad[0] - ROWS} \({name}\) of {files.shards}; look at these labels"
    with pytest.raises(Diverged, match=rf"the gradient of step \d+ is not finite for {row}"):
        run.run()


# ---- refusals -----------------------------------------------------------------------------------


def test_a_folder_keeps_to_its_recipe(
    files: Demo, finished: tuple[Path, Result], tmp_path: Path
) -> None:
    with pytest.raises(PlanMismatch, match=r"run with other recipe\.loss\.betas; resume it with"):
        trainer(files, finished[0], "loss.betas=0.1").run()
    with pytest.raises(PlanMismatch, match=r"recipe\.train\.compile"):  # it rounds differently
        trainer(files, finished[0], "train.compile=true").run()
    words = train_command(files, finished[0], "train.seed=3")[2:]
    assert command_line(words) == 4
    # What does not touch the trajectory may change.
    assert trainer(files, finished[0], "train.workers=1").run().steps == finished[1].steps


def test_a_key_that_came_later_meant_its_default(
    files: Demo, finished: tuple[Path, Result], tmp_path: Path
) -> None:
    """A folder of an older version goes on where the new key has its default, else is refused."""
    content = load_checkpoint(finished[0] / "last.pt")
    for recipe in (content["recipe"], content["identity"]["recipe"]):
        del recipe["data"]["augment"]["focal"]
    save_checkpoint(tmp_path / "last.pt", content)
    with pytest.raises(PlanMismatch, match=r"other recipe\.data\.augment\.focal; resume it"):
        trainer(files, tmp_path, "data.augment.focal=0.1").run()
    assert trainer(files, tmp_path).run().steps == finished[1].steps


def test_two_runs_in_one_folder_are_refused(files: Demo, tmp_path: Path) -> None:
    one, two = (trainer(files, tmp_path / "run") for _ in range(2))
    (tmp_path / "run").mkdir()
    with (
        one.folder.locked(one.process),
        pytest.raises(Locked, match="another training run works in this folder"),
    ):
        two.run()


def test_models_of_the_other_kind_are_refused(
    files: Demo, golden_models: Path, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "models"
    shutil.copytree(golden_models, folder)
    for name in ("J_regressor_SKEL_mix_MALE.pkl", "SMPL_to_J19.pkl"):
        shutil.copy(files.models / name, folder)
    recipe = load_recipe("tiny", [*MICRO, "data.other_gender=skip"])
    found = load_collection([Place(files.shards)], recipe.data)
    with pytest.raises(InputError, match="the labels were made with the licence-free stand-in"):
        Trainer(recipe, found, folder, tmp_path, HERE, Reporter(None, quiet=True))


def test_the_command_line_says_what_is_wrong(
    files: Demo, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    base = ["train", str(files.shards), "--out", str(tmp_path / "run"), "--recipe", "tiny"]
    for words, code, text in (
        ([*base, "--recipe", "nope"], 2, "no recipe 'nope'"),
        ([*base, "--set", "loss.nope=1"], 5, "unknown key 'loss.nope' (there are "),
        ([*base, "--set", "train.epoch=1"], 5, "tiny.yaml with train.epoch=1: unknown key"),
        ([*base, "--set", "epochs"], 2, "a single value is changed by key=value"),
        ([*base, "--images", str(tmp_path / "nope")], 5, "no such folder or tar file"),
        (["train", str(tmp_path), "--out", str(tmp_path / "run")], 5, "not a converted dataset"),
        ([*base, "--device", "warp"], 2, "--device warp: expected cpu or cuda"),
        ([*base, "--images", "a", "--images", "b"], 2, "2 given for 1 datasets"),
        ([*base, "--set", "model.backbone.weights=nope.pth"], 5, "nope.pth: cannot be read"),
    ):
        assert command_line(words) == code
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1
