"""HumanFOV: an HRNet-W48 that guesses the vertical field of view of an uncropped photograph.

Source: docs/reference/regressor.md#human-fov; the HRNet is that of "Deep High-Resolution
Representation Learning for Visual Recognition" (Wang et al., 2020) with all branches brought to the
coarsest one.

Names and sizes are those of the published file, which `official.load_human_fov` reads
(docs/reference/checkpoints.md#human-fov-file).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGE_WIDTHS: tuple[tuple[int, ...], ...] = ((48, 96), (48, 96, 192), (48, 96, 192, 384))
STAGE_MODULES = (1, 4, 3)
BLOCKS_PER_BRANCH = 4
STEM = 64
HEATMAPS = 24  # the output layer is in the file and not used


def _conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(width, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + x)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 with a residual; four times as many channels out."""

    expansion = 4

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1, self.bn1 = _conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, outputs, 1), nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(_conv(inputs, outputs, 1), nn.BatchNorm2d(outputs))
            if inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        inner = F.relu(self.bn2(self.conv2(inner)))
        rest = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn3(self.conv3(inner)) + rest)


def _step(inputs: int, outputs: int, stride: int, active: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [_conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, nn.ReLU()) if active else nn.Sequential(*layers)


def _fuse_path(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """The map from branch `source` to the resolution and width of branch `target`."""
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(
            _conv(widths[source], widths[target], 1),
            nn.BatchNorm2d(widths[target]),
            nn.Upsample(scale_factor=2 ** (source - target), mode="nearest"),
        )
    steps = target - source
    return nn.Sequential(
        *(_step(widths[source], widths[source], 2) for _ in range(steps - 1)),
        _step(widths[source], widths[target], 2, active=False),
    )


class HRModule(nn.Module):
    """Parallel branches of residual blocks, then every branch receives the sum of all."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width) for _ in range(BLOCKS_PER_BRANCH)))
            for width in widths
        )
        count = len(widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_fuse_path(widths, source, target) for source in range(count))
            for target in range(count)
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        fused = []
        for paths in self.fuse_layers:
            assert isinstance(paths, nn.ModuleList)
            parts = (path(x) for path, x in zip(paths, maps, strict=True))
            fused.append(F.relu(functools.reduce(torch.add, parts)))
        return fused


class HRNet(nn.Module):
    """HRNet-W48: image (B, 3, 256, 256) -> features (B, 720, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(3, STEM, 3, 2), nn.BatchNorm2d(STEM)
        self.conv2, self.bn2 = _conv(STEM, STEM, 3, 2), nn.BatchNorm2d(STEM)
        deep = STEM * Bottleneck.expansion
        self.layer1 = nn.Sequential(
            Bottleneck(STEM, STEM), *(Bottleneck(deep, STEM) for _ in range(3))
        )
        previous: Sequence[int] = (deep,)
        for number, widths in enumerate(STAGE_WIDTHS, start=2):
            self.add_module(f"transition{number - 1}", self._transition(previous, widths))
            modules = (HRModule(widths) for _ in range(STAGE_MODULES[number - 2]))
            self.add_module(f"stage{number}", nn.ModuleList(modules))
            previous = widths
        self.final_layer = nn.Conv2d(previous[0], HEATMAPS, 1)
        coarsest = len(previous) - 1
        for k, width in enumerate(previous[:-1]):
            # One flat sequence: the names of the published file.
            steps = (layer for _ in range(coarsest - k) for layer in _step(width, width, 2))
            self.add_module(f"downsample_stage_{k + 1}", nn.Sequential(*steps))

    @staticmethod
    def _transition(before: Sequence[int], after: Sequence[int]) -> nn.ModuleList:
        paths: list[nn.Module] = []
        for k, width in enumerate(after):
            if k < len(before):
                same = before[k] == width
                paths.append(nn.Identity() if same else _step(before[k], width, 1))
            else:
                paths.append(nn.Sequential(_step(before[-1], width, 2)))
        return nn.ModuleList(paths)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(image)))
        x = self.layer1(F.relu(self.bn2(self.conv2(x))))
        maps = [x]
        for number in range(2, 2 + len(STAGE_WIDTHS)):
            paths = getattr(self, f"transition{number - 1}")
            # A new branch starts from the coarsest map so far.
            maps = [path(maps[min(k, len(maps) - 1)]) for k, path in enumerate(paths)]
            for module in getattr(self, f"stage{number}"):
                maps = module(maps)
        finer = [getattr(self, f"downsample_stage_{k + 1}")(x) for k, x in enumerate(maps[:-1])]
        return torch.cat([*finer, maps[-1]], 1)


class HumanFOV(nn.Module):
    """Whole image (B, 3, 256, 256), RGB, ImageNet-normalised -> (B, 2).

    Component 1 is the vertical field of view of the original picture, radians; component 0 is not
    used. `fc2` and its dropout are in the checkpoint and not used.
    """

    def __init__(self, hidden: int = 1024) -> None:
        super().__init__()
        self.backbone = HRNet()
        features = sum(STAGE_WIDTHS[-1])
        self.fc1, self.drop1 = nn.Linear(features, hidden), nn.Dropout()
        self.fc2, self.drop2 = nn.Linear(hidden, hidden), nn.Dropout()
        self.fc3 = nn.Linear(hidden, 2)

    def forward(self, image: Tensor) -> Tensor:
        pooled = self.backbone(image).mean((2, 3))
        return self.fc3(self.drop1(self.fc1(pooled)))
