"""Pictures for the demo rows: the default body in their poses, dressed, lit, before a background.

Source: docs/reference/default-body.md#pictures. Rendered by `stages/drawing/render.py` from the
label file itself, so that labels and pixels agree; deterministic: a picture depends on its row, the
label file's body parameters and `VERSION`. Files are cached under the data root, not committed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch

from pipeline.children import die_with
from pipeline.errors import InputError, OutputError
from pipeline.guard import Inputs
from pipeline.output_files import make_directory, read_json, write_bytes, write_json
from pipeline.paths import Root
from pipeline.provenance import file_record
from skel_fit.atomic import sweep
from skel_fit.model_files import load_smpl
from stages.drawing.render import Camera, Light, Mesh, render

VERSION = 1
QUALITY = 90
_BLOCK = 16  # rows of one pass of the body model: constant, so that no row depends on the others
_FINE_PIXELS = 400_000  # windows up to this size get four samples a pixel
_RECORD = "pictures.json"
_NEEDED = ("imgname", "pose_cam", "shape", "trans_cam", "cam_int", "image_size", "gender")

# SMPL joints whose skin is covered. Pelvis vertices are cut at the waist.
_TRUNK, _UPPER_ARMS, _FOREARMS = (3, 6, 9, 13, 14), (16, 17), (18, 19)
_THIGHS, _SHINS, _FEET, _HEAD, _PELVIS = (1, 2), (4, 5), (7, 8, 10, 11), 15, 0


@dataclass(frozen=True)
class Job:
    """What a worker needs: label file, models folder, picture folder, seed."""

    labels: Path
    models: Path
    root: Path
    seed: int = 0


def render_demo(
    job: Job, *, workers: int = 1, report: Callable[[int, int], None] = lambda done, of: None
) -> tuple[int, int]:
    """Render what is missing. Returns (pictures rendered, pictures in all).

    A record beside the pictures ties them to the label file and `VERSION`; when either changes,
    all are rendered again.

    Raises:
        InputError: the labels are missing or are not demo labels.
    """
    columns = _columns(job.labels)
    names = columns["imgname"].tolist()
    root = Root(job.root)
    for name in names:
        if not root.holds(name):
            raise InputError(f"{job.labels}: image name {name!r} leads out of the data root")
    Inputs(job.labels, job.models).check(*(job.root / name for name in names))
    record_path = job.root / Path(names[0]).parts[0] / _RECORD
    record = {"labels_sha256": file_record(job.labels).sha256, "version": VERSION,
              "seed": job.seed, "pictures": len(names)}  # fmt: skip
    known = read_json(record_path) if record_path.is_file() else None
    if known == record:
        todo = [k for k, name in enumerate(names) if not (job.root / name).is_file()]
    else:
        todo = list(range(len(names)))
        for folder in sorted({(job.root / name).parent for name in names}):
            make_directory(folder)
        # From here on existing pictures are old until they are written again.
        for name in names:
            (job.root / name).unlink(missing_ok=True)
        write_json(record_path, record)
    for folder in {(job.root / name).parent for name in names}:
        sweep(folder)
    blocks = [todo[start : start + _BLOCK] for start in range(0, len(todo), _BLOCK)]
    done = 0
    for count in _work(job, blocks, workers):
        done += count
        report(done, len(todo))
    return len(todo), len(names)


def _work(job: Job, blocks: list[list[int]], workers: int) -> Iterator[int]:
    if workers <= 1 or len(blocks) < 2:
        for block in blocks:
            yield _render_block(job, block)
        return
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=die_with, initargs=(os.getpid(),)
    ) as pool:
        try:
            yield from pool.map(_render_block, [job] * len(blocks), blocks)
        except BrokenProcessPool:
            raise OutputError(
                f"{job.root}: a rendering process was killed (out of memory?); the same command "
                "continues"
            ) from None


def _columns(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in _NEEDED if name not in file.files]
            if missing:
                raise InputError(
                    f"{path}: column '{missing[0]}' is missing; only the generated demo labels "
                    "can be rendered"
                )
            return {name: file[name] for name in _NEEDED}
    except FileNotFoundError:
        raise InputError(f"{path}: no such label file; run hmr-skel convert demo first") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable demo labels ({error})") from error


@lru_cache(maxsize=2)
def _cached_columns(path: Path) -> dict[str, np.ndarray]:
    return _columns(path)


def _render_block(job: Job, rows: list[int]) -> int:
    """Render and write the pictures of some rows."""
    torch.set_num_threads(1)
    columns = _cached_columns(job.labels)
    for gender in sorted({str(columns["gender"][k]) for k in rows}):
        chosen = [k for k in rows if columns["gender"][k] == gender]
        clothes = wardrobe(job.models, gender)
        for k, vertices in zip(chosen, clothes.posed(columns, chosen), strict=True):
            random = np.random.default_rng((job.seed, VERSION, k))
            width, height = (int(n) for n in columns["image_size"][k])
            picture = dressed_picture(
                clothes, vertices, columns["cam_int"][k], (height, width), random
            )
            ok, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
            if not ok:
                raise ValueError(f"cannot encode picture {k}")
            write_bytes(job.root / str(columns["imgname"][k]), data.tobytes(), tidy=False)
    return len(rows)


# ---- bodies and clothes -------------------------------------------------------------------------


class Wardrobe:
    """An SMPL body and what its vertices can wear."""

    def __init__(self, models: Path, gender: str) -> None:
        self.smpl = load_smpl(models, gender)
        self.faces = np.asarray(self.smpl.faces, np.int32)
        rest = self.smpl.v_template.numpy()
        joints = self.smpl.J_regressor.numpy() @ rest
        owner = self.smpl.lbs_weights.argmax(1).numpy()
        waist = joints[_PELVIS, 1] + 0.05
        head = rest - joints[_HEAD]
        top = head[owner == _HEAD, 1].max()

        def worn(*owners: int) -> np.ndarray:
            return np.isin(owner, owners)

        pelvis = owner == _PELVIS
        self.shirt = worn(*_TRUNK, *_UPPER_ARMS) | (pelvis & (rest[:, 1] >= waist))
        self.forearms = worn(*_FOREARMS)
        self.trousers = worn(*_THIGHS) | (pelvis & (rest[:, 1] < waist))
        self.shins = worn(*_SHINS)
        self.shoes = worn(*_FEET)
        crown = head[:, 1] > 0.68 * top
        back = (head[:, 2] < 0.01) & (head[:, 1] > 0.1 * top)
        self.hair = (owner == _HEAD) & (crown | back)

    def posed(self, columns: dict[str, np.ndarray], rows: list[int]) -> np.ndarray:
        """(n, 6890, 3) camera-frame vertices of some rows; computed in blocks of one size."""
        filled = rows + [rows[-1]] * (_BLOCK - len(rows))

        def tensor(name: str) -> torch.Tensor:
            return torch.from_numpy(columns[name][filled].astype(np.float32))

        poses = tensor("pose_cam")
        with torch.no_grad():
            output = self.smpl(
                betas=tensor("shape")[:, :10], global_orient=poses[:, :3],
                body_pose=poses[:, 3:], transl=tensor("trans_cam"),
            )  # fmt: skip
        return output.vertices[: len(rows)].numpy().astype(np.float64)

    def dress(self, random: np.random.Generator) -> np.ndarray:
        """(6890, 3) colours: skin, hair, shirt, trousers, shoes; sleeves and legs of any length."""
        tone = random.uniform(0.35, 1.0)
        skin = np.array((0.98, 0.80, 0.70)) * tone + np.array((0.02, 0.0, 0.0))
        colors = np.tile(skin, (len(self.hair), 1))
        shirt, trousers, shoes = random.uniform(0.03, 0.97, (3, 3))
        colors[self.shirt] = shirt
        colors[self.trousers] = trousers
        if random.random() < 0.5:
            colors[self.forearms] = shirt
        if random.random() < 0.7:
            colors[self.shins] = trousers
        colors[self.shoes] = shoes if random.random() < 0.8 else skin
        colors[self.hair] = random.uniform(0.02, 0.5) * np.array((1.0, 0.75, 0.5))
        return colors.clip(0, 1)


@lru_cache(maxsize=3)
def wardrobe(models: Path, gender: str) -> Wardrobe:
    return Wardrobe(models, gender)


def dressed_picture(
    wardrobe: Wardrobe, vertices: np.ndarray, cam_int: np.ndarray, size: tuple[int, int],
    random: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """(H, W, 3) uint8 RGB."""
    picture = background(*size, random)
    direction = random.normal(size=3) * (1.0, 0.6, 0.6) + (0.0, -0.8, -0.7)
    light = Light(tuple(direction), *random.uniform((0.35, 0.2, 0.12), (0.75, 0.45, 0.3)))
    mesh = Mesh(vertices, wardrobe.faces, wardrobe.dress(random))
    left, top, right, bottom = _window(vertices, cam_int, size)
    if right <= left or bottom <= top:
        return picture
    moved = cam_int.copy()
    moved[0, 2] -= left
    moved[1, 2] -= top
    camera = Camera(moved, bottom - top, right - left)
    fine = 2 if camera.height * camera.width <= _FINE_PIXELS else 1
    behind = picture[top:bottom, left:right]
    picture[top:bottom, left:right] = render(
        mesh, camera, background=behind, light=light, supersample=fine
    )
    return picture


def _window(
    vertices: np.ndarray, cam_int: np.ndarray, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Pixel bounds of the body within the picture: left, top, right, bottom."""
    height, width = size
    if vertices[:, 2].min() < 0.06:  # partly behind the camera: anywhere
        return 0, 0, width, height
    pixels = Camera(cam_int, height, width).project(vertices)
    low = np.floor(pixels.min(0)).astype(int) - 1
    high = np.ceil(pixels.max(0)).astype(int) + 1
    left, top = np.clip(low, 0, (width, height))
    right, bottom = np.clip(high, 0, (width, height))
    return int(left), int(top), int(right), int(bottom)


# ---- backgrounds --------------------------------------------------------------------------------

_BACKGROUND_SIDE = 384  # drawn at this size, then enlarged


def background(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """(height, width, 3) uint8 RGB: a shaded wall and floor, texture, and things standing about."""
    factor = _BACKGROUND_SIDE / max(height, width)
    rows, columns = max(round(height * factor), 8), max(round(width * factor), 8)
    canvas = _rooms(rows, columns, random)
    canvas = canvas * (1 + random.uniform(0.05, 0.5) * _texture(rows, columns, random)[..., None])
    picture = np.clip(canvas * 255, 0, 255).astype(np.uint8)
    for _ in range(int(random.integers(0, 14))):
        _thing(picture, random)
    blur = int(random.integers(0, 3)) * 2 + 1
    picture = cv2.GaussianBlur(picture, (blur, blur), 0)
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)


def _rooms(rows: int, columns: int, random: np.random.Generator) -> np.ndarray:
    """Two surfaces that meet at a slanted horizon, each with a gradient; (rows, columns, 3)."""
    y, x = np.mgrid[0 : 1 : rows * 1j, 0 : 1 : columns * 1j]
    horizon = random.uniform(0.3, 0.9) + random.normal() * 0.05 * (x - 0.5)
    below = (y > horizon)[..., None]
    surfaces = []
    for _ in range(2):
        start, end = random.uniform(0.05, 0.95, (2, 3))
        angle = random.uniform(0, 2 * np.pi)
        along = (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5) + 0.7)[..., None] / 1.4
        surfaces.append(start + (end - start) * along)
    return np.where(below, surfaces[0], surfaces[1])


def _texture(rows: int, columns: int, random: np.random.Generator) -> np.ndarray:
    """Noise of several sizes, (rows, columns), about -1 to 1."""
    total = np.zeros((rows, columns), np.float32)
    for cell in (4, 12, 40, 120):
        grid = random.normal(size=(rows // cell + 2, columns // cell + 2)).astype(np.float32)
        layer = cv2.resize(grid, (columns, rows), interpolation=cv2.INTER_CUBIC)
        total += layer * np.float32(random.uniform(0, 0.5))
    return total


def _thing(picture: np.ndarray, random: np.random.Generator) -> None:
    """Draw a box, a disc, a bar or a polygon, in place."""
    rows, columns = picture.shape[:2]
    color = tuple(int(c) for c in random.integers(0, 256, 3))
    place = random.uniform(0, 1, 2) * (columns, rows)
    reach = random.uniform(0.03, 0.3) * max(rows, columns)
    kind = random.integers(4)
    if kind == 0:
        corner = place + random.uniform(0.3, 1, 2) * reach
        cv2.rectangle(picture, _point(place), _point(corner), color, -1)
    elif kind == 1:
        axes = _point(random.uniform(0.2, 0.7, 2) * reach + 1)
        cv2.ellipse(picture, _point(place), axes, random.uniform(0, 180), 0, 360, color, -1)
    elif kind == 2:
        end = place + random.normal(size=2) * reach
        cv2.line(picture, _point(place), _point(end), color, int(random.integers(2, 16)))
    else:
        corners = place + random.normal(size=(int(random.integers(3, 7)), 2)) * reach / 2
        cv2.fillPoly(picture, [np.rint(corners).astype(np.int32)], color)


def _point(values: np.ndarray) -> tuple[int, int]:
    return round(float(values[0])), round(float(values[1]))
