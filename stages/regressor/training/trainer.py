"""The training loop: deterministic, resumable after kill -9, one process or many.

Source: docs/reference/regressor.md#training. Everything random is a function of (seed, epoch, row)
or (seed, step), so a checkpoint needs no generator state: what a resumed run does next is what the
uninterrupted run would have done. Without accumulation and stochastic depth, the number of
processes does not change the batches either.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pipeline.errors import Incomplete, InputError
from pipeline.provenance import code_version, file_record
from stages.regressor.config import Recipe
from stages.regressor.data.crop_cache import FILE as CROPS
from stages.regressor.data.loader import Batch, CropDataset, Key, Order, batches, collate
from stages.regressor.data.mixture import Mixture, mixture_weights
from stages.regressor.data.rows import Collection, Split
from stages.regressor.network.checkpoints import save_checkpoint
from stages.regressor.network.model import Regressor
from stages.regressor.network.official import load_start, load_vitpose
from stages.regressor.training.benchmarks import Benchmark, Found, score_benchmarks
from stages.regressor.training.bodies import RunBodies
from stages.regressor.training.distributed import Process
from stages.regressor.training.ema import Ema
from stages.regressor.training.generated import Generator, generated_loss, teach_lifter
from stages.regressor.training.losses import Loss, LossTerms
from stages.regressor.training.refining import RefinedLabels, Refiner
from stages.regressor.training.reporting import Reporter
from stages.regressor.training.run_folder import (
    BEST,
    LAST,
    Progress,
    Result,
    RunFolder,
    binding,
)
from stages.regressor.training.schedule import learning_rate, parameter_groups
from stages.regressor.training.validation import Scores, autocast, mean_pose_scores, validate

_NAMED = 8  # rows that a message lists


class Diverged(Incomplete):
    """The loss or its gradient is not a number; the message names the rows."""


class Trainer:
    """One training run in the folder `out`. `run()` starts or resumes it.

    collection: rows of all splits; models: folder of body models; benchmarks: scored at every
    validation.
    """

    def __init__(
        self, recipe: Recipe, collection: Collection, models: Path, out: Path, process: Process,
        reporter: Reporter, *, no_lock: bool = False, benchmarks: Sequence[Benchmark] = (),
    ) -> None:  # fmt: skip
        self.recipe, self.collection = recipe, collection
        self.models, self.out, self.process, self.reporter = models, out, process, reporter
        torch.manual_seed(recipe.train.seed)
        self.network = Regressor(recipe.model)
        if recipe.model.weights is not None:
            load_start(self.network, recipe.model.weights)
        elif recipe.model.backbone.weights is not None:
            load_vitpose(self.network.backbone, recipe.model.backbone.weights)
        self.network.to(process.device)
        averaged = bool(recipe.optimiser.ema.decay)
        self.ema = Ema(self.network, recipe.optimiser.ema) if averaged else None
        groups = parameter_groups(self.network, recipe.optimiser, recipe.model.backbone.depth)
        # Fused also on CPU cores: a quarter of the time of one update for each tensor.
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.optimiser.rate, fused=True)
        female = collection.rows.female
        genders = {recipe.data.gender, *(["female"] if female.any() else []),
                   *(["male"] if not female.all() else [])}  # fmt: skip
        self.bodies = RunBodies(models, recipe.data.gender, tuple(sorted(genders)))
        self.bodies.to(process.device)
        self._check_bodies()
        self.loss = Loss(recipe.loss, recipe.model, self.bodies.own).to(process.device)
        self.train_set = self._dataset("train", training=True)
        self.validation_set = self._dataset("validation", training=False)
        self.refined = RefinedLabels.none()
        self.refiner: Refiner | None = None
        if recipe.refinement.every:
            plain = self._dataset("train", training=False)
            self.refiner = Refiner(recipe, plain, self.bodies, models, process)
        self.generator: Generator | None = None
        if recipe.generated.steps or recipe.generated.beside:
            self.generator = Generator(recipe, self.train_set.rows, self.bodies)
        self.order = Order(len(self.train_set), recipe.train.batch_size, recipe.train.seed,
                           process.world, process.rank, self._mixture())  # fmt: skip
        self.steps_per_epoch = self.order.batches // recipe.optimiser.accumulate
        if self.steps_per_epoch == 0:
            raise InputError(
                f"{len(self.train_set)} training rows give {self.order.batches} batches an epoch, "
                f"fewer than one step of {recipe.optimiser.accumulate}; lower "
                "optimiser.accumulate or train.batch_size"
            )
        self.folder = RunFolder(out, no_lock=no_lock)
        self.progress = Progress()
        self.scores: Scores | None = None
        self.benchmarks = tuple(benchmarks)
        self.benchmark_scores: Found = {}

    def _check_bodies(self) -> None:
        if self.bodies.standin != self.collection.standin:
            kind = {True: "the licence-free stand-in body", False: "licensed body models"}
            raise InputError(
                f"{self.models}: this is {kind[self.bodies.standin]}, the labels were made with "
                f"{kind[self.collection.standin]}; give the matching --models"
            )

    def _mixture(self) -> Mixture | None:
        data, rows = self.recipe.data, self.train_set.rows
        if not data.mixture:
            return None
        weights = mixture_weights(data.mixture, self.train_set.directories, rows.source)
        return Mixture(rows.source, weights, data.mixture_rows or len(rows), self.recipe.train.seed)

    def _dataset(self, split: Split, *, training: bool) -> CropDataset:
        part = self.collection.of(split)
        return CropDataset(part, self.recipe.data, self.recipe.model.crop_size,
                           self.recipe.train.seed, training=training)  # fmt: skip

    # ---- running ----------------------------------------------------------------------------

    @property
    def total_steps(self) -> int:
        """Steps of the whole schedule."""
        return self.recipe.train.epochs * self.steps_per_epoch

    @property
    def _only_looks(self) -> bool:
        """This step teaches only where keypoints are."""
        return self.progress.step < round(self.recipe.train.look_first * self.total_steps)

    def run(self) -> Result:
        """Train to the end of the schedule, the time limit or the loss of patience.

        Raises:
            Locked: another run works in `out`; PlanMismatch: `out` holds a run of another recipe
            or other data; Diverged: the loss is not a number.
        """
        with self.folder.locked(self.process):
            self._resume()
            if self.progress.step < self.total_steps:
                self._prepare()
            self.reporter.start(self.progress.step, self.total_steps)
            try:
                reason = self._train()
                self._finish_validation()
            finally:
                self.reporter.stop()
            if reason == "finished" and self.process.is_first and self.train_set.cache is not None:
                self.train_set.cache.remove()
            result = self._result(reason)
            if self.process.is_first:
                self.folder.save_summary(result)
            return result

    def _prepare(self) -> None:
        """What comes before the first step: crops in a file, a lifter that has been taught."""
        began = time.monotonic() - self.progress.seconds
        if self.recipe.data.cached_crops:
            if not self.process.is_first:
                self.process.wait()
            self.train_set.keep_crops(self.out / CROPS)
            if self.process.is_first:
                self.process.wait()
        config = self.recipe.generated
        if self.generator is None:
            return
        if config.steps and self.progress.step == 0 and not self.progress.taught:
            teach_lifter(self.network, self.loss, self.generator, self.recipe)
            seconds = time.monotonic() - began
            self.progress = replace(self.progress, taught=True, seconds=seconds)
            self._save()

    def _train(self) -> str:
        network = self._parallel()
        network.train()
        began = time.monotonic() - self.progress.seconds
        loader: Iterator[Batch] | None = None
        while self.progress.step < self.total_steps:
            if self._due():
                self._validate()
                self._save()
            # Also when nothing was due: a run that ended here, or was killed, is entered again.
            if self._impatient():
                return "patience"
            limit = self.recipe.train.minutes * 60
            if self.process.any(bool(limit) and time.monotonic() - began >= limit):
                return "minutes"
            if self._refine():
                loader = None  # what it has read ahead has the labels of before
            if loader is None:
                loader = batches(self.train_set, self._keys(), self.recipe.train.workers)
            self._step(network, loader)
            self.progress = replace(
                self.progress,
                step=self.progress.step + 1,
                seconds=time.monotonic() - began,
            )
            if self.progress.step % self.recipe.train.checkpoint_every == 0:
                self._save()
        return "finished"

    def _refine(self) -> bool:
        """Refine labels where that belongs here and has not been done; whether it was."""
        step = self.progress.step
        if self.refiner is None or not self.recipe.refinement.due(step):
            return False
        if self.progress.refined >= step:
            return False
        self.network.eval()
        found, outcomes = self.refiner.refined(self._chosen(), self.train_set.rows, step)
        self.network.train()
        self.refined = self.refined.updated(found)
        self.train_set.rows = found.applied(self.train_set.rows)
        self.progress = replace(self.progress, refined=step)
        self.reporter.refined(step, outcomes)
        self._save()
        return True

    def _parallel(self) -> nn.Module:
        """The network as it is called: compiled, and averaged over processes, as asked for."""
        network: nn.Module = self.network
        if self.process.world > 1:
            ids = [self.process.device.index] if self.process.device.type == "cuda" else None
            # While it only looks, decoder and lifter have no gradient.
            network = nn.parallel.DistributedDataParallel(
                network, device_ids=ids,
                find_unused_parameters=bool(self.recipe.train.look_first),
            )  # fmt: skip
        # torch.compile of a module is a module; its annotation says: a callable.
        return torch.compile(network) if self.recipe.train.compile else network  # type: ignore[return-value]

    def _keys(self) -> Iterator[list[Key]]:
        """Keys of all batches that are left."""
        accumulate = self.recipe.optimiser.accumulate
        first, within = divmod(self.progress.step, self.steps_per_epoch)
        used = self.steps_per_epoch * accumulate
        for epoch in range(first, self.recipe.train.epochs):
            start = within * accumulate if epoch == first else 0
            yield from itertools.islice(self.order.epoch(epoch, start), used - start)

    def _step(self, network: nn.Module, loader: Iterator[Batch]) -> None:
        """One optimiser step over `accumulate` batches."""
        config, step = self.recipe.optimiser, self.progress.step
        rate = learning_rate(config, step, self.steps_per_epoch, self.recipe.train.epochs)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group.get("share", 1.0)  # none in runs of earlier versions
        # Stochastic depth draws from here on; a function of the step, not of what ran before.
        torch.manual_seed(_step_seed(self.recipe.train.seed, step, self.process.rank))
        self.optimiser.zero_grad(set_to_none=True)
        waited, seen, parts = 0.0, [], []
        for k in range(config.accumulate):
            asked = time.monotonic()
            batch = next(loader).to(self.process.device)
            waited += time.monotonic() - asked
            seen.append(batch.row)
            last = k == config.accumulate - 1
            sync = contextlib.nullcontext() if last else _no_sync(network)
            with sync:
                terms = self._loss(network, batch)
                total = terms.total + self._beside(k)
                (total / config.accumulate).backward()
            parts.append(LossTerms(terms.rows.detach(), terms.terms))
        norm = self._clip(seen)
        self.optimiser.step()
        if self.ema is not None:
            self.ema.update(self.network, step + 1)
        self.reporter.step(step + 1, _mean(parts), rate, norm, waited,
                           len(seen) * len(seen[0]) * self.process.world)  # fmt: skip

    def _beside(self, k: int) -> Tensor | float:
        """Loss of the generated rows that go with batch k of the step."""
        count, process = self.recipe.generated.beside, self.process
        if not count or self._only_looks:
            return 0.0
        assert self.generator is not None
        place = (self.progress.step, k)
        sample = self.generator.drawn(count * process.world, (self.recipe.train.seed, 1, *place))
        return generated_loss(
            self.network, self.loss, sample.part(process.rank, process.world)
        ).total

    def _loss(self, network: nn.Module, batch: Batch) -> LossTerms:
        labels = self.bodies.labels(batch)
        options = {"look_only": True} if self._only_looks else {}
        with autocast(self.process.device, self.recipe):
            estimates = network(batch.image, batch.conditioning, **options)
        if self._only_looks:
            terms = self.loss.looked(estimates, labels)
        else:
            terms = self.loss(estimates, labels, batch.view)
        bad = ~torch.isfinite(terms.rows)
        if bad.any():
            self._stop("loss", batch.row[bad].tolist())
        return terms

    def _clip(self, seen: Sequence[Tensor]) -> float:
        """Clip the gradient of the batches of these rows; returns its norm before."""
        limit = self.recipe.optimiser.clip or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), limit))
        if not math.isfinite(norm):
            self._stop("gradient", self._exploding([rows.tolist() for rows in seen]))
        return norm

    def _exploding(self, seen: Sequence[Sequence[int]]) -> list[int]:
        """Which rows of the failed step have a gradient that is not finite, each by itself.

        The step is done once more, with the same rows, weights and random numbers, and one backward
        pass for each row; slow, and only ever done before the run stops.
        """
        step = self.progress.step
        epoch = step // self.steps_per_epoch
        weights = [p for p in self.network.parameters() if p.requires_grad]
        torch.manual_seed(_step_seed(self.recipe.train.seed, step, self.process.rank))
        found = []
        for rows in seen:
            batch = collate([self.train_set[(epoch, k)] for k in rows]).to(self.process.device)
            terms = self._loss(self.network, batch)
            share = 1 / (len(rows) * self.recipe.optimiser.accumulate)
            for k, row in enumerate(rows):
                gradient = torch.autograd.grad(
                    terms.rows[k] * share, weights, retain_graph=True, allow_unused=True
                )
                norm = nn.utils.get_total_norm([g for g in gradient if g is not None])
                if not torch.isfinite(norm):
                    found.append(row)
        return found

    def _stop(self, what: str, rows: Sequence[int]) -> NoReturn:
        """rows: of the training set, to blame; none: no row of this process is, by itself."""
        named = "; ".join(self.train_set.label(k) for k in rows[:_NAMED])
        more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
        others = "all its rows together, none by itself"
        if self.process.world > 1:
            others = "no row of this process by itself"
        raise Diverged(
            f"{self.out}: the {what} of step {self.progress.step + 1} is not finite for "
            f"{named or others}{more}; look at these labels, or lower optimiser.rate; the last "
            "checkpoint is kept"
        )

    # ---- validation -------------------------------------------------------------------------

    def _due(self) -> bool:
        """A validation belongs here and has not been done."""
        every = self.recipe.train.validate_every * self.steps_per_epoch
        step = self.progress.step
        return step > 0 and step % every == 0 and self.progress.validated < step

    def _finish_validation(self) -> None:
        if self.progress.validated < self.progress.step:
            self._validate()
        self._save()

    def _validate(self) -> None:
        self.network.eval()
        network, rows = self._chosen(), self.validation_set
        scores = None
        if len(rows):
            scores = validate(network, rows, self.bodies, self.recipe, self.process)
        self.benchmark_scores = score_benchmarks(
            self.benchmarks, network, self.recipe, self.bodies.standin, self.process
        )
        self.network.train()
        self.scores = scores
        self.reporter.benchmarks(self.progress.step, self.benchmark_scores)
        value = self._selected(scores)
        if value is None:
            self.progress = replace(self.progress, validated=self.progress.step)
            if self.process.is_first:
                self._save_best(None)
            return
        better = value < self.progress.best
        self.progress = replace(
            self.progress,
            validated=self.progress.step,
            best=min(value, self.progress.best),
            best_step=self.progress.step if better else self.progress.best_step,
            # The one at the end of the time limit does not count: an uninterrupted run has it not.
            bad_validations=0 if better else self.progress.bad_validations + self._due(),
        )
        if self.process.is_first and better:
            self._save_best(scores)
        if scores is None:
            return
        self.reporter.validation(self.progress.step, scores, better)
        if self.process.is_first and self.recipe.train.pictures:
            self.reporter.pictures(
                self.progress.step, network, self.validation_set, self.bodies, self.recipe
            )

    def _selected(self, scores: Scores | None) -> float | None:
        """The score that makes best.pt; None: nothing to select by."""
        protocol, _, metric = self.recipe.train.select.partition(":")
        if metric:
            return self.benchmark_scores[protocol][metric]
        return None if scores is None else scores.value(protocol)

    def _impatient(self) -> bool:
        patience = self.recipe.train.patience
        return bool(patience) and self.progress.bad_validations >= patience

    # ---- files ------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """What a run is bound to: recipe, data, body models, processes."""
        return {
            "recipe": binding(self.recipe),
            "datasets": list(self.collection.digests),
            "training_rows": len(self.train_set),
            "body_model": file_record(self.bodies.own.skel.path).sha256,
            "processes": self.process.world,
        }

    def _provenance(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "identity": self.identity(),
            "standin": self.bodies.standin,
            "gender": self.recipe.data.gender,
            "code": code_version("regressor"),
            "torch": str(torch.__version__),
        }

    def _save(self) -> None:
        """Everything that resuming needs."""
        if self.process.is_first:
            averaged = {} if self.ema is None else self.ema.model.state_dict()
            self._write(
                LAST, network=self.network.state_dict(), ema=averaged,
                optimiser=self.optimiser.state_dict(), scores=self.scores,
                refined=self.refined.content(),
            )  # fmt: skip
        self.process.wait()

    def _save_best(self, scores: Scores | None) -> None:
        """The weights to use, alone."""
        self._write(BEST, network=self._chosen().state_dict(), scores=scores)

    def _write(self, name: str, *, scores: Scores | None, **content: Any) -> None:
        about = {**self._provenance(), "progress": asdict(self.progress)}
        about["scores"] = asdict(scores) if scores else None
        about["benchmarks"] = self.benchmark_scores
        save_checkpoint(self.out / name, {**about, **content})

    def _chosen(self) -> nn.Module:
        """The network to use: its average, where there is one."""
        return self.network if self.ema is None else self.ema.model

    def _resume(self) -> None:
        content = self.folder.resumed(self.identity())
        if content is None:
            return
        self.network.load_state_dict(content["network"])
        if self.ema is not None:
            self.ema.model.load_state_dict(content["ema"])
        self.optimiser.load_state_dict(content["optimiser"])
        if "refined" in content:  # not in runs of earlier versions
            self.refined = RefinedLabels.of(content["refined"])
            self.train_set.rows = self.refined.applied(self.train_set.rows)
        self.progress = Progress(**content["progress"])
        self.scores = Scores(**content["scores"]) if content["scores"] else None
        self.benchmark_scores = content.get("benchmarks", {})

    def _result(self, reason: str) -> Result:
        return Result(
            out=self.out, reason=reason, steps=self.progress.step,
            epochs=self.progress.step / self.steps_per_epoch, seconds=self.progress.seconds,
            scores=self.scores, select=self.recipe.train.select,
            best=self.progress.best if math.isfinite(self.progress.best) else None,
            best_step=self.progress.best_step, rows=len(self.train_set),
            skipped=self.collection.skipped, benchmarks=self.benchmark_scores,
            refined=None if self.refiner is None else len(self.refined.rows),
            mean_pose=mean_pose_scores(self.train_set.rows, self.validation_set.rows, self.bodies),
        )  # fmt: skip


def _mean(parts: Sequence[LossTerms]) -> LossTerms:
    """The terms of a whole step from those of its batches, which are of one size."""
    names = parts[0].terms
    return LossTerms(
        torch.cat([part.rows for part in parts]),
        {name: torch.stack([part.terms[name] for part in parts]).mean() for name in names},
    )


def _step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for one step of one process, different from all others nearby."""
    return (seed * 1_000_003 + step) * 4099 + rank


def _no_sync(network: nn.Module) -> contextlib.AbstractContextManager:
    quiet = getattr(network, "no_sync", None)
    return quiet() if quiet is not None else contextlib.nullcontext()
