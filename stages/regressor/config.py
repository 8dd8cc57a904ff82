"""Training recipes as data: YAML files, validated, unknown keys refused.

A recipe file may name a `base`: one recipe or a list of them, merged in order, its own keys last.
Names are looked up in ./configs/regressor, then in the package. The values of `published.yaml`
come from docs/reference/regressor.md; its #defects and #improvements are quoted at the switches.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.configuration import Catalogue, read_mapping, validated
from pipeline.errors import InputError, UsageError
from skel_fit.strict_yaml import parse_yaml

RECIPES = Catalogue("recipe", Path("configs") / "regressor", "stages.regressor", "recipes")
_MAX_DEPTH = 8

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Blocks = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    """Frozen; a key that is not listed is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class BackboneConfig(Strict):
    """The ViT: width C, blocks, heads, hidden width of the MLP.

    drop_path: stochastic depth of the last block; the first has none.
    stem: `patch`, ViTPose's embedding of 16 x 16 pixels, or `convolutions` for a start without
        pretrained weights.
    weights: file of ViTPose, SKEL-CF or HSMR, or a checkpoint of ours, to start the backbone from;
        absent for random weights.
    recompute: keep no activations inside blocks, compute them again in the backward pass.
    """

    width: Count
    depth: Count
    heads: Count
    mlp_width: Count
    drop_path: Share
    stem: Literal["patch", "convolutions"]
    weights: Path | None = None
    recompute: bool = False


class PyramidConfig(Strict):
    """A pyramid of convolutions in place of the ViT, for a start from random weights on CPU cores.

    channels: of the levels at 1/2, 1/4, 1/8 and 1/16 of the input; blocks: residual blocks of the
    last three; maps: channels of the map at a quarter of the input where keypoints are looked for.
    """

    channels: tuple[Count, Count, Count, Count]
    blocks: tuple[Blocks, Blocks, Blocks]
    maps: Count


class LifterConfig(Strict):
    """The coarse stage sees keypoints: where `model.heatmaps` finds them (their mean and spread),
    what the map shows there, the box numbers and the pooled tokens.

    width, blocks: of its residual MLP. features: numbers kept of what the map shows at a keypoint.
    depths: also see how far each keypoint is behind the pelvis, read off the map where it is; a
        picture says of a limb whether it points at the camera, the place of its end does not.
    """

    width: Count
    blocks: Count
    features: Count
    depths: bool = False


class DecoderConfig(Strict):
    """Sizes of the decoder (regressor.md#decoder): layers T, token width D, attention heads and
    their width, hidden width of the MLP.
    """

    layers: Count
    width: Count
    heads: Count
    head_width: Count
    mlp_width: Count


class CoarseToFineConfig(Strict):
    """Switches of the coarse-to-fine head (4).

    coarse: predict from the pooled tokens before decoding; False: start from the mean (w/o C2F).
    conditioned: embeddings see the box numbers; False: w/o Cam.
    state: `rebuild` tokens from the estimate after each layer; `keep` the hidden state and add the
        new embedding; `single_readout`: carry tokens, read out once (w/o Refine).
    looped: one layer's weights used for all layers.
    conditioned_coarse: the coarse stage sees the box numbers, too.
    separate_heads: the coarse stage has its own MLPs.
    zero_init: last linear maps start at zero, so that training starts from the mean.
    """

    coarse: bool
    conditioned: bool
    state: Literal["rebuild", "keep", "single_readout"]
    looped: bool
    conditioned_coarse: bool
    separate_heads: bool
    zero_init: bool


class ModelConfig(Strict):
    """The network.

    crop_size: side of the square crop and height of the input, pixels; the network sees the
        centre 3/4 of the columns.
    head: `coarse_to_fine`, `single_token` (HSMR) or `pooled` (plain regression).
    camera: `full_image` perspective with the row's intrinsics, or `crop` (HSMR, f = 5000).
    scale_floor: lower bound of the camera scale s, smooth; 0: unbounded as published
        (regressor.md#d25).
    pose: what the head reads out and refines: the 24 x 6 numbers of `rotations`, or the 46 `angles`
        (HSMR's Euler-target ablation, checkpoints.md#euler-target).
    heatmaps: while training, also predict from the image tokens where each keypoint is, as ViTPose
        does; what a backbone without its pretrained weights learns to see with.
    weights: checkpoint of ours, trained or imported, to start the whole network from.
    pyramid: takes the ViT's place; of `backbone` only `width` (of the tokens) and `weights` count.
    lifter: the coarse stage predicts from keypoints; absent: from the pooled tokens alone.
    """

    crop_size: Annotated[int, Field(ge=64, multiple_of=64)]
    backbone: BackboneConfig
    head: Literal["coarse_to_fine", "single_token", "pooled"]
    decoder: DecoderConfig
    coarse_to_fine: CoarseToFineConfig
    camera: Literal["full_image", "crop"]
    scale_floor: NotNegative
    heatmaps: bool
    weights: Path | None = None
    pose: Literal["rotations", "angles"] = "rotations"
    pyramid: PyramidConfig | None = None
    lifter: LifterConfig | None = None

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the network's input, pixels."""
        return self.crop_size, self.crop_size * 3 // 4

    @model_validator(mode="after")
    def _sizes_agree(self) -> ModelConfig:
        options, backbone = self.coarse_to_fine, self.backbone
        shared = self.head == "coarse_to_fine" and options.coarse and not options.separate_heads
        if shared and self.decoder.width != backbone.width:
            raise ValueError(
                f"decoder.width {self.decoder.width} must equal backbone.width {backbone.width} "
                "unless coarse_to_fine.separate_heads is true"
            )
        if backbone.width % backbone.heads:
            raise ValueError("backbone.heads must divide backbone.width")
        if backbone.stem == "convolutions" and backbone.width % 64:
            raise ValueError("backbone.width must be a multiple of 64 for that stem")
        return self

    @model_validator(mode="after")
    def _lifts_what_it_finds(self) -> ModelConfig:
        options = self.coarse_to_fine
        lifts = self.head == "coarse_to_fine" and options.coarse and options.separate_heads
        if self.lifter is not None and not (self.heatmaps and lifts):
            raise ValueError(
                "model.lifter needs model.heatmaps and a coarse stage with heads of its own "
                "(head: coarse_to_fine, coarse_to_fine.coarse, separate_heads)"
            )
        return self


class LossConfig(Strict):
    """Weights and switches of the loss (regressor.md#losses).

    parameters: L1 (SKEL-CF) or squared (HSMR) on rotations and betas.
    coarse: weight of the full loss on the coarse prediction.
    all_layers: full loss on every layer ("full super.") instead of on the last one.
    layer_pose: pose-only loss on every layer; `well_defined` (regressor.md#d2), or
        `gram_schmidt` and `raw` to reproduce the public revisions; `layer_pose_weight` multiplies
        it.
    layer_camera, layer_betas: supervise them at every layer with the label body
        (regressor.md#i2).
    rotations: predicted rotations `from_angles`, or directly `from_code` without the Euler
        singularity (regressor.md#d26).
    pose: what `body` and `orientation` compare: joint `rotations`, or `angles`, each the shorter
        way round (checkpoints.md#euler-target).
    limits: table of joint limits, penalised beyond `limits_tolerance` (radians) with weight
        `limits_weight` (regressor.md#i7).
    mask_flipped_ankles: no rotation loss on ankles of flipped rows (regressor.md#d24).
    heatmaps: cross-entropy of the keypoint heatmaps over their grid (model.heatmaps).
    found_keypoints: L1 of where the lifter finds keypoints (model.lifter), in shares of the crop.
    found_depths: L1 of how far behind the pelvis it finds them (model.lifter.depths), metres.
    """

    keypoints_2d: NotNegative
    keypoints_3d: NotNegative
    betas: NotNegative
    body: NotNegative
    orientation: NotNegative
    parameters: Literal["l1", "l2"]
    coarse: NotNegative
    all_layers: bool
    layer_pose: Literal["none", "raw", "gram_schmidt", "well_defined"]
    layer_pose_weight: NotNegative
    layer_camera: NotNegative
    layer_betas: NotNegative
    rotations: Literal["from_angles", "from_code"]
    limits: Literal["none", "default", "published"]
    limits_weight: NotNegative
    limits_tolerance: NotNegative
    mask_flipped_ankles: bool
    heatmaps: NotNegative
    pose: Literal["rotations", "angles"] = "rotations"
    found_keypoints: NotNegative = 0.0
    found_depths: NotNegative = 0.0


class AugmentConfig(Strict):
    """What is done to a training row (regressor.md#augmentation).

    Jitters are multiplied by a clipped normal deviate.

    scale, shift: of the box, as a share of it; roll: degrees about the principal point, with
    `roll_probability`; any_roll: probability of a roll by any angle instead, for people who are
    upside down; flip: probability; color: factor range of each channel;
    extreme_crop: probability of cutting to a body part; photometric: probability of each of the
    two groups of image defects; snow: weight of snow in its group (0.5 as published,
        regressor.md#d16).
    focal: of the focal length that the network is told (regressor.md#d13), as a share of it. Only
        the box numbers are made from the jittered one. The 2D loss keeps the label's camera, the
        only one in which the 2D and the 3D label agree (best fit on the demo, percent of the box:
        0.6 with it, 0.7 with 10 % more or less, 0.8 to 1.0 with 20 %); (s, tx, ty) are relative to
        the box and need no other target. So the network learns to doubt the focal length, not the
        pose.
    """

    scale: Share
    shift: Share
    roll: NotNegative
    roll_probability: Share
    any_roll: Share = 0.0
    flip: Share
    color: Share
    extreme_crop: Share
    photometric: Share
    snow: Share
    focal: Annotated[float, Field(ge=0, lt=1)] = 0.0


class DataConfig(Strict):
    """Rows and crops.

    enlarge_box: grow boxes to 3 : 4 before squaring (regressor.md#d11).
    pixels: `continuous`, pixel j covers [j, j+1) and large crops are averaged, or `published`, the
        public code's warp bit for bit (checkpoints.md#pixels).
    mixture: data set (name of its folder) -> share of the rows that are drawn from it, sum 1;
        empty: every row once an epoch. mixture_rows: rows of an epoch of a mixture, 0: as many as
        there are.
    gender: the SKEL that the network predicts; labels of the other gender have their betas
        converted (`transfer`) or their rows left out (`skip`).
    row_weight: `none`, or `residual`: labels count less the worse their fit, w = 1 / (1 + (e/e0)^2)
        with e0 = residual_scale metres (regressor.md#d15, #i10).
    max_vertex_error: rows whose fit is worse (largest vertex error, metres) supervise 2D only; 0:
        no such rule.
    validation: share of the rows (by picture) held out where the labels have no `split` column.
    blank_images: feed a constant picture: the control that shows the picture is used.
    cached_crops: cut every training row once, this many times larger than its box, into a file of
        the run's folder, and cut from there (crops.py); 0: always from the pictures. 1 plus what
        scale and shift take, with half as much again for rolls.
    """

    enlarge_box: bool
    gender: Literal["male", "female"]
    other_gender: Literal["transfer", "skip"]
    row_weight: Literal["none", "residual"]
    residual_scale: Positive
    max_vertex_error: NotNegative
    validation: Share
    blank_images: bool
    augment: AugmentConfig
    pixels: Literal["continuous", "published"] = "continuous"
    mixture: dict[str, Positive] = {}
    mixture_rows: Annotated[int, Field(ge=0)] = 0
    cached_crops: Annotated[float, Field(ge=0, le=4)] = 0.0

    @model_validator(mode="after")
    def _cuts_from_what_is_cached(self) -> DataConfig:
        if 0 < self.cached_crops < 1:
            raise ValueError("cached_crops is 0 (off), or 1 and more")
        if self.cached_crops and (self.pixels != "continuous" or self.blank_images):
            raise ValueError("cached_crops needs pixels: continuous and pictures")
        return self


class EmaConfig(Strict):
    """Moving average of the weights: m(n) = decay (1 - exp(-n / steps)); decay 0: off.

    Source: regressor.md#ema.
    """

    decay: Annotated[float, Field(ge=0, lt=1)]
    steps: Positive


class OptimiserConfig(Strict):
    """AdamW, linear warm-up (epochs), then constant or cosine down to `final_share` of the rate.

    clip: largest global gradient norm, 0: off. accumulate: batches per step. layer_decay: rate of a
    block of the backbone as a share of that of the block above; the head has the full rate, the
    embedding the smallest. decay_all: False: no weight decay on norms, biases, positions.
    """

    rate: Positive
    weight_decay: NotNegative
    warmup: NotNegative
    schedule: Literal["constant", "cosine"]
    final_share: Share
    clip: NotNegative
    accumulate: Count
    ema: EmaConfig
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    decay_all: bool = True


class TrainConfig(Strict):
    """The run.

    batch_size: rows per process and forward pass. minutes: stop after this wall time (0: none);
    the schedule then runs over time-independent epochs all the same. precision: `fp32`, or `bf16`
    for network layers (geometry and losses always fp32). workers: loader processes. validate_every,
    checkpoint_every: epochs, steps. patience: validations without a better one until the run
    stops (0: never). pictures: validation rows drawn for TensorBoard. select: the score that makes
    best.pt: `mpjpe` or `pa_mpjpe` of the validation split, or `PROTOCOL:METRIC` of a benchmark, as
    the public code does (`moyo-hard:pve`), which is selection on test data. benchmarks: names of
    evaluation protocols that are scored at every validation; benchmark_rows: of each, evenly
    chosen (0: all). look_first: share of all steps, the first ones, that only teach where keypoints
    are (loss.heatmaps, found_keypoints, found_depths): neither decoder nor body is run, which is
    half of a step's cost on a CPU, nor does their gradient drown that of the heatmaps.
    """

    epochs: Count
    minutes: NotNegative
    batch_size: Count
    precision: Literal["fp32", "bf16"]
    compile: bool
    workers: Annotated[int, Field(ge=0)]
    seed: Annotated[int, Field(ge=0)]
    validate_every: Count
    checkpoint_every: Count
    patience: Annotated[int, Field(ge=0)]
    select: Annotated[str, Field(pattern=r"^(mpjpe|pa_mpjpe|[a-z0-9-]+:[a-z0-9_@.>]+)$")]
    pictures: Annotated[int, Field(ge=0)]
    benchmarks: tuple[str, ...] = ()
    benchmark_rows: Annotated[int, Field(ge=0)] = 0
    look_first: Share = 0.0

    @model_validator(mode="after")
    def _selects_what_is_scored(self) -> TrainConfig:
        name = self.select.partition(":")[0]
        if ":" in self.select and name not in self.benchmarks:
            raise ValueError(f"select: '{name}' is not among train.benchmarks")
        return self


class RefinementConfig(Strict):
    """Labels refined while the network trains (checkpoints.md#refinement).

    every: steps from one refinement to the next, 0: never; start: steps before the first. rows: of
    the training set that a refinement looks at, drawn anew each time (0: all). acceptance:
    `held-out` takes what predicts keypoints that it has not seen; `published` what the public code
    takes, nearly everything. gain: see `skel_fit.refinement.RefineConfig`; prior: of the pose.
    """

    every: Annotated[int, Field(ge=0)] = 0
    start: Annotated[int, Field(ge=0)] = 0
    rows: Annotated[int, Field(ge=0)] = 0
    acceptance: Literal["held-out", "published"] = "held-out"
    gain: Annotated[float, Field(ge=0, lt=1)] = 0.1
    prior: Literal["motion", "wide", "limits"] = "wide"

    def due(self, step: int) -> bool:
        """A refinement belongs after `step` steps."""
        since = step - self.start
        return bool(self.every) and step > 0 and since >= 0 and since % self.every == 0


class GeneratedConfig(Strict):
    """Labels without pictures, for the lifter: poses of training rows put together anew, turned,
    seen by cameras of training rows (generated.py).

    steps, batch_size, rate: of the lifter alone, before the first step with pictures (cosine down
    to zero); steps 0: none. beside: rows of each later step, beside those with pictures.
    noise: of the keypoints, median standard deviation as a share of the crop; depth_noise: of their
    depths, metres; lost: share of keypoints that say next to nothing.
    """

    steps: Annotated[int, Field(ge=0)] = 0
    batch_size: Count = 256
    rate: Positive = 1e-3
    beside: Annotated[int, Field(ge=0)] = 0
    noise: Share = 0.01
    lost: Share = 0.03
    depth_noise: NotNegative = 0.04


class Recipe(Strict):
    """Everything that decides a training run, except where the data is."""

    name: str
    model: ModelConfig
    loss: LossConfig
    data: DataConfig
    optimiser: OptimiserConfig
    train: TrainConfig
    refinement: RefinementConfig = RefinementConfig()
    generated: GeneratedConfig = GeneratedConfig()

    @model_validator(mode="after")
    def _parts_agree(self) -> Recipe:
        if self.model.heatmaps != bool(self.loss.heatmaps):
            raise ValueError("model.heatmaps and loss.heatmaps go together: both or neither")
        if self.model.camera == "crop" and self.loss.layer_camera:
            raise ValueError("loss.layer_camera needs model.camera: full_image")
        if (self.generated.steps or self.generated.beside) and self.model.lifter is None:
            raise ValueError("generated.steps and generated.beside need model.lifter")
        if self.loss.found_keypoints and self.model.lifter is None:
            raise ValueError("loss.found_keypoints needs model.lifter")
        depths = self.model.lifter is not None and self.model.lifter.depths
        if depths != bool(self.loss.found_depths):
            raise ValueError("model.lifter.depths and loss.found_depths go together")
        if self.train.look_first and not self.model.heatmaps:
            raise ValueError("train.look_first needs model.heatmaps")
        if self.model.pyramid is not None and self.optimiser.layer_decay != 1:
            raise ValueError("optimiser.layer_decay is of the ViT; model.pyramid has none")
        return self


def load_recipe(name_or_path: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """A recipe by name (`default`) or path, with changes on top.

    changes: each either a name or path of a recipe file, whose keys (with its bases) are merged on
    top, or `key.path=value` with a YAML value.

    Raises:
        UsageError: no such recipe; InputError: not YAML, an unknown key, a value out of range.
    """
    path = RECIPES.find(name_or_path)
    content = _merged(path, 0)
    for change in changes:
        if "=" in change:
            content = _merge(content, _assignment(change))
        else:
            content = _merge(content, _merged(_change(change), 0) | {"name": content["name"]})
    return validated(Recipe, content, " with ".join((str(path), *changes)))


def _change(name: str) -> Path:
    """File of a change that is no assignment."""
    try:
        return RECIPES.find(name)
    except UsageError as error:
        raise UsageError(f"{error}; a single value is changed by key=value") from None


def _merged(path: Path, depth: int) -> dict[str, Any]:
    """The content of a file on top of its bases."""
    if depth > _MAX_DEPTH:
        raise InputError(f"{path}: bases nested more than {_MAX_DEPTH} deep; is there a circle?")
    content = read_mapping(path)
    bases = content.pop("base", [])
    result: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        result = _merge(result, _merged(RECIPES.find(base), depth + 1))
    return _merge(result, {"name": path.stem} | content)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) \
            else value  # fmt: skip
    return result


def _assignment(change: str) -> dict[str, Any]:
    """`a.b=value` as {a: {b: value}}."""
    place, text = change.split("=", 1)
    try:
        value = parse_yaml(text)
    except ValueError:
        raise UsageError(f"{change}: the value is not YAML") from None
    for key in reversed(place.split(".")):
        value = {key: value}
    return value
