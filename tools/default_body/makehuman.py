"""MakeHuman's CC0 base mesh, targets and rig, read from their plain text files."""

from __future__ import annotations

import gzip
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Proportions that people vary in besides the phenotype; each runs from -1 to 1 over the targets
# `<name>-decr` and `<name>-incr`.
LOCAL_AXES = {
    "torso length": ("torso/torso-scale-vert",),
    "torso width": ("torso/torso-scale-horiz",),
    "v shape": ("torso/torso-vshape",),
    "waist": ("torso/measure-waist-circ",),
    "hip width": ("hip/hip-scale-horiz",),
    "leg length": ("legs/measure-upperleg-height", "legs/measure-lowerleg-height"),
    "arm length": ("arms/measure-upperarm-length", "arms/measure-lowerarm-length"),
}
N_BODY = 13380  # the closed body surface; helper geometry (joints, eyes, clothes) follows it
METRES = 0.1  # file unit: decimetre

# Phenotype axes and the names of their nodes in the target files, from low (0) to high (1).
# Children and babies are left out: `age` runs from young adult to old.
AXES = {
    "race": ("african", "asian", "caucasian"),
    "gender": ("male", "female"),
    "age": ("young", "old"),
    "muscle": ("minmuscle", "averagemuscle", "maxmuscle"),
    "weight": ("minweight", "averageweight", "maxweight"),
    "height": ("minheight", "maxheight"),
    "proportions": ("idealproportions", "uncommonproportions"),
    "cupsize": ("mincup", "averagecup", "maxcup"),
    "firmness": ("minfirmness", "averagefirmness", "maxfirmness"),
}


@dataclass(frozen=True)
class BaseMesh:
    """vertices: (19158, 3) metres; groups: name -> list of faces (vertex numbers)."""

    vertices: np.ndarray
    groups: dict[str, list[list[int]]]


def read_base(root: Path) -> BaseMesh:
    """`3dobjs/base.obj`."""
    vertices: list[list[float]] = []
    groups: dict[str, list[list[int]]] = {}
    group = ""
    for line in (root / "3dobjs/base.obj").read_text().splitlines():
        words = line.split()
        if not words:
            continue
        if words[0] == "v":
            vertices.append([float(x) for x in words[1:4]])
        elif words[0] == "g":
            group = words[1]
        elif words[0] == "f":
            corners = [int(word.split("/")[0]) - 1 for word in words[1:]]
            groups.setdefault(group, []).append(corners)
    return BaseMesh(np.array(vertices) * METRES, groups)


def _read_target(path: Path, count: int) -> np.ndarray:
    """(count, 3) displacements in metres."""
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    text = " ".join(line for line in lines if line and not line.startswith("#"))
    rows = np.array(text.split(), float).reshape(-1, 4)
    out = np.zeros((count, 3), np.float32)
    out[rows[:, 0].astype(int)] = rows[:, 1:] * METRES
    return out


@dataclass(frozen=True)
class Targets:
    """Phenotype targets: `names` such as 'male-young-maxmuscle-averageweight', `displacements`
    (T, 19158, 3); `local`: axis -> (2, 19158, 3) displacements at -1 and at 1."""

    names: tuple[str, ...]
    displacements: np.ndarray
    local: dict[str, np.ndarray]

    def shape(self, base: np.ndarray, phenotype: dict[str, float]) -> np.ndarray:
        """(19158, 3) mesh in MakeHuman's A pose.

        phenotype: a value in [0, 1] for each axis, a share for each of the three ancestries, and
        any of the local axes (0 if not given).
        A target counts as the product of the piecewise-linear shares of the nodes in its name.
        """
        share: dict[str, float] = {}
        for axis, nodes in AXES.items():
            if axis == "race":
                share |= {node: phenotype[node] for node in nodes}
                continue
            places = np.linspace(0, 1, len(nodes))
            for node, hat in zip(nodes, np.eye(len(nodes)), strict=True):
                share[node] = float(np.interp(phenotype[axis], places, hat))
        weight = np.array([np.prod([share[n] for n in name.split("-")]) for name in self.names])
        used = np.flatnonzero(weight)
        out = base + np.tensordot(weight[used], self.displacements[used], 1)
        for axis, (less, more) in self.local.items():
            value = phenotype.get(axis, 0.0)
            out += max(-value, 0) * less + max(value, 0) * more
        return out


def read_targets(root: Path, count: int) -> Targets:
    """Every adult phenotype target that exists (336), and the local ones."""
    targets = root / "targets"
    macro = targets / "macrodetails"
    files: dict[str, Path] = {}
    for body in itertools.product(*(AXES[a] for a in ("gender", "age", "muscle", "weight"))):
        stem = "-".join(body)
        files[stem] = macro / f"universal-{stem}.target.gz"
        for axis in ("height", "proportions"):
            for node in AXES[axis]:
                files[f"{stem}-{node}"] = macro / axis / f"{stem}-{node}.target.gz"
        for pair in itertools.product(AXES["cupsize"], AXES["firmness"]):
            name = "-".join((stem, *pair))
            files[name] = targets / "breast" / f"{name}.target.gz"
    for triple in itertools.product(AXES["race"], AXES["gender"], AXES["age"]):
        files["-".join(triple)] = macro / f"{'-'.join(triple)}.target.gz"
    files = {name: path for name, path in files.items() if path.exists()}
    if len(files) < 300:
        raise FileNotFoundError(f"{targets}: only {len(files)} of about 336 phenotype targets")
    local = {
        axis: np.stack(
            [
                sum(_read_target(targets / f"{name}-{end}.target.gz", count) for name in names)
                for end in ("decr", "incr")
            ]
        )
        for axis, names in LOCAL_AXES.items()
    }
    return Targets(tuple(files), np.stack([_read_target(p, count) for p in files.values()]), local)


class Rig:
    """The 163-bone default rig: bone tree, the vertices that place heads and tails, skin weights.

    names: parents before children; parent: (163,); weights: (13380, 163), rows sum to 1.
    """

    def __init__(self, root: Path, base: BaseMesh) -> None:
        folder = root / "rigs/standard"
        bones = json.loads((folder / "rig.default.json").read_text())
        bones = bones.get("bones", bones)
        cubes = {
            name: np.unique(np.concatenate([np.array(face) for face in faces]))
            for name, faces in base.groups.items()
            if name.startswith("joint-")
        }
        self.names: list[str] = []
        self._visit("root", bones)
        self.index = {name: k for k, name in enumerate(self.names)}
        self.parent = np.array([self.index.get(bones[n]["parent"], -1) for n in self.names])
        self._head = [_place(bones[n]["head"], cubes) for n in self.names]
        self._tail = [_place(bones[n]["tail"], cubes) for n in self.names]
        self.cubes = cubes
        swap = str.maketrans("LR", "RL")
        self.mirror = np.array(
            [self.index[n[:-1] + n[-1].translate(swap) if n[-2] == "." else n] for n in self.names]
        )
        weights = np.zeros((N_BODY, len(self.names)))
        stored = json.loads((folder / "weights.default.json").read_text())["weights"]
        for name, pairs in stored.items():
            for vertex, weight in pairs:
                if vertex < N_BODY:
                    weights[vertex, self.index[name]] = weight
        self.weights = weights / weights.sum(1, keepdims=True)

    def _visit(self, name: str, bones: dict) -> None:
        self.names.append(name)
        for child, bone in bones.items():
            if bone["parent"] == name:
                self._visit(child, bones)

    def heads(self, vertices: np.ndarray) -> np.ndarray:
        """(163, 3) joint positions of a shaped mesh (19158, 3)."""
        return np.stack([vertices[k].mean(0) for k in self._head])

    def tails(self, vertices: np.ndarray) -> np.ndarray:
        """(163, 3) bone ends of a shaped mesh (19158, 3)."""
        return np.stack([vertices[k].mean(0) for k in self._tail])

    def below(self, name: str) -> list[int]:
        """The bone and every bone under it."""
        out = [self.index[name]]
        for bone, parent in enumerate(self.parent):
            if parent in out:
                out.append(bone)
        return out

    def part(self, prefixes: tuple[str, ...], vertices: np.ndarray | None = None) -> np.ndarray:
        """Summed weight of the bones whose name starts with one of `prefixes`."""
        columns = [k for n, k in self.index.items() if n.startswith(prefixes)]
        weights = self.weights if vertices is None else self.weights[vertices]
        return weights[:, columns].sum(1)


def _place(rule: dict, cubes: dict[str, np.ndarray]) -> np.ndarray:
    if rule["strategy"] == "CUBE":
        return cubes[rule["cube_name"]]
    if rule["strategy"] == "MEAN":
        return np.array(rule["vertex_indices"])
    return np.array([rule["vertex_index"]])
