"""The one-file viewer: packing, the page, and the page in a real browser."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from stages.drawing.viewer.bodies import PosedFrames
from stages.drawing.viewer.encoding import Packer, Surface, pack, thinned, whole
from stages.drawing.viewer.page import Curves, Scene, bundle, scene_page

REPOSITORY = Path(__file__).resolve().parents[1]


def tube(frames: int = 40, *, offsets: float = 0.01) -> Surface:
    """A tube on two bones that bends, with rest points that change smoothly (like correctives)."""
    random = np.random.default_rng(3)
    around, along = np.meshgrid(np.arange(24), np.arange(30), indexing="ij")
    angle, height = around.ravel() * (2 * np.pi / 24), along.ravel() / 29
    rest = np.column_stack([0.1 * np.cos(angle), height, 0.1 * np.sin(angle)])
    blend = np.clip((height - 0.4) / 0.2, 0, 1)
    weights = np.column_stack([1 - blend, blend])
    phase = np.linspace(0, 2 * np.pi, frames)
    bend = Rotation.from_rotvec(np.outer(0.5 + 0.7 * np.sin(phase), [1.0, 0, 0])).as_matrix()
    rotations = np.stack([np.broadcast_to(np.eye(3), bend.shape), bend], axis=1)
    pivot = np.array([0, 0.5, 0])
    translations = np.stack([np.zeros((frames, 3)), pivot - bend @ pivot], axis=1)
    translations += np.column_stack([phase, 0 * phase, 0 * phase])[:, None] * 0.2
    patterns = random.normal(size=(2, len(rest), 3)) * offsets
    moved = rest + np.einsum(
        "fk,kvc->fvc", np.column_stack([np.sin(phase), np.cos(phase)]), patterns
    )
    single = np.einsum("fkij,fvj->fkvi", rotations, moved) + translations[:, :, None]
    vertices = np.einsum("vk,fkvi->fvi", weights, single).astype(np.float32)
    first = np.arange(len(rest)).reshape(24, 30)
    right, above = np.roll(first, -1, axis=0)[:, :-1], first[:, 1:]
    faces = np.stack([first[:, :-1], above, right], axis=-1).reshape(-1, 3)
    return Surface("skin", vertices, rotations, translations, weights, faces)


def scene(surfaces: tuple[Surface, ...], **changes: Any) -> Scene:
    frames = len(surfaces[0].vertices)
    degrees = np.column_stack([np.linspace(-20, 60, frames), np.full(frames, 5.0)])
    degrees[3, 1] = np.nan
    active = np.zeros((frames, 2), bool)
    active[-1, 0] = True
    curves = Curves(
        ("knee_angle_r", "hip_flexion_l"), degrees, np.array([-10.0, -np.inf]),
        np.array([60.0, np.inf]), active, np.full((frames, 2), 2.5), (0, 1),
    )  # fmt: skip
    result = Scene(
        title="<b>bold</b> & co", about="two bones", labels=tuple(map(str, range(frames))),
        times=np.arange(frames) / 30, unit="seconds", rate=30.0, surfaces=surfaces,
        roots=surfaces[0].translations[:, 0], up=np.array([0, 1.0, 0]), front=np.array([0, 0, 1.0]),
        curves=curves, independent=False, standin=True,
    )  # fmt: skip
    return dataclasses.replace(result, **changes)


def test_packing_states_its_deviation_and_keeps_it_small() -> None:
    packed = pack(tube(), Packer())
    assert 0 < packed.mean <= packed.largest < 1e-3
    assert 1 <= len(packed.description["component_steps"]) <= 3


def test_a_surface_that_only_follows_its_bones_needs_no_component() -> None:
    packed = pack(tube(offsets=0.0), Packer())
    assert packed.description["component_steps"] == []
    assert packed.largest < 1e-4


def test_packing_measures_what_it_loses() -> None:
    surface = tube()
    noisy = surface.vertices + np.random.default_rng(0).normal(
        0, 0.02, surface.vertices.shape
    ).astype(np.float32)
    packed = pack(dataclasses.replace(surface, vertices=noisy), Packer())
    assert packed.largest > 0.005  # 24 components cannot hold the noise of 40 frames


def test_frames_are_posed_when_they_are_read_and_only_once() -> None:
    blocks = [np.array([0, 3, 4]), np.array([1, 2])]
    true = np.random.default_rng(0).normal(size=(5, 7, 3)).astype(np.float32)
    asked: list[int] = []

    def pose(block: int) -> np.ndarray:
        asked.append(block)
        return true[blocks[block]].astype(np.float64)

    frames = PosedFrames(blocks, 7, pose)
    assert frames.shape == true.shape and not asked
    for frame in (0, 3, 4, 1, 2):
        np.testing.assert_array_equal(frames[frame], true[frame])
    assert asked == [0, 1]
    np.testing.assert_array_equal(whole(frames), true)


def test_a_body_is_packed_a_few_frames_at_a_time() -> None:
    """The same page as of all frames at once, and no memory for each frame's vertices."""
    surface = tube()
    live: list[weakref.ref[np.ndarray]] = []
    most = 0

    def pose(block: int) -> np.ndarray:
        nonlocal most
        found = np.array(surface.vertices[block])[None]
        live.append(weakref.ref(found))
        most = max(most, sum(each() is not None for each in live))
        return found

    lazy = PosedFrames([np.array([f]) for f in range(40)], surface.vertices.shape[1], pose)
    posed = scene((dataclasses.replace(surface, vertices=lazy),))
    assert scene_page(posed).html == scene_page(scene((surface,))).html
    assert len(live) >= 80 and most <= 3


def test_thinning_keeps_parts_apart_and_surfaces_near() -> None:
    random = np.random.default_rng(1)
    vertices = random.uniform(0, 0.2, (5000, 3))
    parts = (vertices[:, 0] > 0.1).astype(np.int64)
    faces = random.integers(0, 5000, (4000, 3))
    kept, merged = thinned(vertices, faces, parts, 800)
    assert len(kept) <= 800 and merged.max() < len(kept)
    distance = np.linalg.norm(vertices[:, None] - vertices[kept][None], axis=-1)
    same = parts[:, None] == parts[kept][None]
    assert np.where(same, distance, np.inf).min(axis=1).max() < 0.06
    few, untouched = thinned(vertices, faces, parts, 5000)
    assert len(few) == 5000 and (untouched == faces).all()


def test_the_bundle_is_made_from_the_source() -> None:
    source = (REPOSITORY / "tools" / "viewer" / "viewer.js").read_bytes()
    assert hashlib.sha256(source).hexdigest() in bundle()[:200], "run tools/viewer/build.sh"


def test_the_page_names_no_address_and_escapes_its_text() -> None:
    html = scene_page(scene((tube(),))).html
    assert "<b>bold</b>" not in html and "&lt;b&gt;bold&lt;/b&gt;" in html
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", html)
    assert "STAND-IN BODY" in html and "standard deviation" in html


# --- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    options = [
        "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
        "--no-first-run", "--disable-background-networking", "--disable-quic",
        "--disable-component-update", "--disable-sync",
    ]  # fmt: skip
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=options)
        yield opened
        opened.close()


def opened(browser: Any, path: Path, width: int = 1200, height: int = 760) -> tuple[Any, list[str]]:
    """The page, ready, and what it complained of or asked the network for."""
    page = browser.new_page(viewport={"width": width, "height": height})
    complaints: list[str] = []
    # What the software renderer says of itself is not the page's.
    page.on("console", lambda m: m.type == "error" and complaints.append(m.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda r: r.url.startswith(("file:", "data:", "blob:")) or complaints.append(r.url),
    )
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready=yes]", timeout=60_000)
    return page, complaints


def test_the_browser_shows_the_surface_that_was_packed(browser: Any, tmp_path: Path) -> None:
    surface = tube()
    target = dataclasses.replace(surface, name="target", vertices=surface.vertices + 0.02)
    moved = dataclasses.replace(target, translations=surface.translations + 0.02)
    path = tmp_path / "page.html"
    path.write_text(scene_page(scene((surface, moved))).html, encoding="utf-8")
    page, complaints = opened(browser, path)
    for frame in (0, 17, 39):
        page.evaluate(f"viewer.show({frame})")
        found = page.evaluate("Array.from(viewer.stage.layer('skin').positions)")
        distance = np.linalg.norm(np.array(found).reshape(-1, 3) - surface.vertices[frame], axis=1)
        assert distance.max() < 1e-3
    assert "mean 34.6 mm" in page.inner_text("#residual")  # 20 mm along each axis
    assert page.inner_text("#reached") == "knee angle r"
    page.evaluate("viewer.show(0)")
    assert page.inner_text("#reached") == "none"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("viewer.frame") == 1
    assert complaints == []
    page.close()


@pytest.mark.parametrize("width", [1200, 480])
def test_the_browser_plays_and_draws(browser: Any, tmp_path: Path, width: int) -> None:
    path = tmp_path / "page.html"
    path.write_text(scene_page(scene((tube(),))).html, encoding="utf-8")
    page, complaints = opened(browser, path, width)
    page.evaluate("document.getElementById('opacity').value = 100; viewer.refresh()")
    page.click("#play")
    page.wait_for_function("viewer.frame > 2", timeout=30_000)
    page.click("#play")
    assert page.evaluate("viewer.playing") is False
    colors = page.evaluate(
        """() => {
        viewer.stage.render();
        const from = viewer.stage.renderer.domElement, to = document.createElement('canvas');
        [to.width, to.height] = [from.width, from.height];
        const context = to.getContext('2d');
        context.drawImage(from, 0, 0);
        const pixels = context.getImageData(0, 0, to.width, to.height).data;
        let warm = 0;
        for (let i = 0; i < pixels.length; i += 4) if (pixels[i] > pixels[i + 2] + 15) warm++;
        return warm / (pixels.length / 4); }"""
    )
    assert colors > 0.01  # skin is warmer than the background
    assert page.locator("#curves figure").count() == 2
    scroll = page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert scroll and complaints == []
    page.close()
