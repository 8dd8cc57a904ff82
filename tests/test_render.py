"""The rasteriser against closed forms, a brute-force ray caster and OpenCV."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages.drawing.render import (
    Camera,
    Light,
    Mesh,
    png_bytes,
    rasterise,
    render,
    render_translucent,
    shade,
    vertex_normals,
)

FLAT = Light(key=0.0, fill=0.0, ambient=1.0)  # colours come out as they went in


def camera(height: int = 24, width: int = 32, focal: float = 30.0) -> Camera:
    cam_int = np.array([[focal, 0, width / 2], [0, focal * 1.1, height / 2], [0, 0, 1]])
    return Camera(cam_int, height, width)


def pixel_rays(cam: Camera) -> np.ndarray:
    """(H, W, 3) directions with z = 1 through the pixel centres."""
    u, v = np.meshgrid(np.arange(cam.width) + 0.5, np.arange(cam.height) + 0.5)
    return np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(cam.cam_int).T


def sphere(subdivisions: int, radius: float, centre) -> tuple[np.ndarray, np.ndarray]:
    """A latitude-longitude sphere, counter-clockwise seen from outside."""
    rings, segments = subdivisions, 2 * subdivisions
    theta = np.linspace(0, np.pi, rings + 1)
    phi = np.arange(segments) * 2 * np.pi / segments
    points = np.stack(
        [
            np.outer(np.sin(theta), np.cos(phi)),
            np.outer(np.sin(theta), np.sin(phi)),
            np.outer(np.cos(theta), np.ones(segments)),
        ],
        -1,
    ).reshape(-1, 3)
    i, j = np.meshgrid(np.arange(rings), np.arange(segments), indexing="ij")
    a = (i * segments + j).ravel()
    b = (i * segments + (j + 1) % segments).ravel()
    c, d = a + segments, b + segments
    faces = np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, d], 1)])
    return radius * points + np.asarray(centre), faces


def cast_rays(vertices, faces, cam, near):
    """Brute force: (depth, face, unsure) of every pixel; unsure: within rounding of some edge."""
    rays = pixel_rays(cam)
    depth = np.full(rays.shape[:2], np.inf)
    face = np.full(rays.shape[:2], -1)
    unsure = np.zeros(rays.shape[:2], bool)
    for number, (a, b, c) in enumerate(vertices[faces]):
        matrix = np.stack([a - c, b - c], 1)
        system = np.concatenate(
            [np.broadcast_to(matrix, (*rays.shape[:2], 3, 2)), -rays[..., None]], -1
        )
        determinant = np.linalg.det(system)
        solvable = np.abs(determinant) > 1e-6
        system = np.where(solvable[..., None, None], system, np.eye(3))
        p, q, z = np.moveaxis(np.linalg.solve(system, np.broadcast_to(-c, rays.shape)[..., None])
                              [..., 0], -1, 0)  # fmt: skip
        margins = np.stack([p, q, 1 - p - q, z - near])
        hit = solvable & (margins >= 0).all(0)
        unsure |= (np.abs(margins).min(0) < 1e-4) | ~solvable
        closer = hit & (z < depth)
        unsure |= hit & (np.abs(z - depth) < 1e-4 * z)
        depth = np.where(closer, z, depth)
        face = np.where(closer, number, face)
    return depth, face, unsure


def test_one_triangle_has_the_analytic_depth_and_barycentrics():
    cam = camera()
    vertices = np.array([[-0.9, -0.7, 2.0], [1.1, -0.5, 3.0], [0.1, 0.9, 2.5]])
    raster = rasterise(vertices, [[0, 1, 2]], cam)
    assert 100 < raster.silhouette.sum() < cam.height * cam.width
    rows, columns = np.nonzero(raster.silhouette)
    rays = pixel_rays(cam)[rows, columns]
    normal = np.cross(vertices[1] - vertices[0], vertices[2] - vertices[0])
    expected = (normal @ vertices[0]) / (rays @ normal)
    np.testing.assert_allclose(raster.depth[rows, columns], expected, rtol=1e-6)
    points = raster.barycentric[rows, columns] @ vertices
    np.testing.assert_allclose(points, rays * expected[:, None], atol=1e-6)
    assert np.isinf(raster.depth[~raster.silhouette]).all()


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float64, (4, 3, 2), elements=st.floats(-2.5, 2.5, width=16)),
    arrays(np.float64, (4, 3), elements=st.floats(-1.5, 4.0, width=16)),
    st.sampled_from([0.05, 0.5, 1.0]),
)
def test_any_triangles_match_a_ray_caster_even_through_the_near_plane(xy, z, near):
    cam = camera(18, 22, 20.0)
    vertices = np.concatenate([xy, z[..., None]], -1).reshape(-1, 3)
    faces = np.arange(12).reshape(4, 3)
    depth, face, unsure = cast_rays(vertices, faces, cam, near)
    raster = rasterise(vertices, faces, cam, near=near)
    sure = ~unsure
    np.testing.assert_array_equal(raster.face_ids[sure], face[sure])
    seen = sure & (face >= 0)
    np.testing.assert_allclose(raster.depth[seen], depth[seen], rtol=2e-5)
    points = np.einsum(
        "nk,nkc->nc", raster.barycentric[seen].astype(float), vertices[faces[face[seen]]]
    )
    np.testing.assert_allclose(points, pixel_rays(cam)[seen] * depth[seen, None], atol=2e-4)


def test_a_triangle_that_reaches_behind_the_camera_is_cut_not_dropped():
    cam = camera()
    vertices = np.array([[-1.0, 0.5, -1.0], [1.0, 0.5, -1.0], [0.0, 0.5, 6.0]])  # a floor
    raster = rasterise(vertices, [[0, 1, 2]], cam)
    assert raster.silhouette[-1, cam.width // 2]
    assert raster.depth[raster.silhouette].min() >= 0.05
    rows, columns = np.nonzero(raster.silhouette)
    expected = 0.5 / pixel_rays(cam)[rows, columns, 1]
    np.testing.assert_allclose(raster.depth[rows, columns], expected, rtol=1e-6)
    behind = rasterise(vertices - [0, 0, 7], [[0, 1, 2]], cam)
    assert not behind.silhouette.any()


def test_sphere_depth_and_outline():
    cam = camera(60, 80, 70.0)
    centre, radius = np.array([0.2, -0.1, 3.0]), 0.9
    vertices, faces = sphere(120, radius, centre)
    raster = rasterise(vertices, faces, cam)
    rays = pixel_rays(cam)
    squared = (rays**2).sum(-1)
    half = rays @ centre
    inside = half**2 - squared * (centre @ centre - radius**2)
    expected = (half - np.sqrt(np.maximum(inside, 0))) / squared
    clear = inside > 0.02
    assert raster.silhouette[clear].all()
    assert not raster.silhouette[inside < -0.02].any()
    np.testing.assert_allclose(raster.depth[clear], expected[clear], atol=2e-3)
    # Seen from outside: the visible half faces the camera.
    _, facing = shade(raster, Mesh(vertices, faces))
    normal = (rays * expected[..., None] - centre) / radius
    cosine = -(normal * rays).sum(-1) / np.sqrt(squared)
    np.testing.assert_allclose(facing[clear], cosine[clear], atol=0.01)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_nearer_surface_wins_whatever_the_order(order):
    cam = camera()
    near_one = np.array([[-9, -9, 2.0], [9, -9, 2.0], [0, 18, 2.0]])
    far_one = np.array([[-9, -9, 4.0], [9, -9, 4.0], [0, 18, 4.0]])
    pair = [near_one, far_one]
    vertices = np.concatenate([pair[i] for i in order])
    raster = rasterise(vertices, np.arange(6).reshape(2, 3), cam)
    assert (raster.face_ids == order.index(0)).all()
    np.testing.assert_allclose(raster.depth, 2.0, rtol=1e-6)


def test_at_equal_depth_the_first_face_wins():
    cam = camera()
    one = np.array([[-9, -9, 2.0], [9, -9, 2.0], [0, 18, 2.0]])
    raster = rasterise(np.concatenate([one, one]), np.arange(6).reshape(2, 3), cam)
    assert (raster.face_ids == 0).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_neighbouring_triangles_leave_no_gap(seed, on_pixel_centres):
    """A jittered grid over the picture, its inner edges through pixel centres or anywhere."""
    rng = np.random.default_rng(seed)
    cam = Camera(np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1]]), 16, 16)
    ticks = np.arange(-2, 20, 2)
    u, v = np.meshgrid(ticks, ticks, indexing="ij")
    uv = np.stack([u, v], -1) + 0.5
    if not on_pixel_centres:
        uv = uv + rng.uniform(-0.9, 0.9, uv.shape)
    # Powers of two project without rounding: the edges meet the pixel centres exactly.
    z = rng.choice([1.0, 2.0, 4.0], uv.shape[:2])
    vertices = np.concatenate([uv * z[..., None], z[..., None]], -1).reshape(-1, 3)
    n = len(ticks)
    i, j = np.meshgrid(np.arange(n - 1), np.arange(n - 1), indexing="ij")
    a = (i * n + j).ravel()
    faces = np.concatenate([np.stack([a, a + n, a + 1], 1), np.stack([a + 1, a + n, a + n + 1], 1)])
    faces = np.take_along_axis(  # any corner first: every edge takes every part in the inner loop
        faces, (np.arange(3) + rng.integers(0, 3, (len(faces), 1))) % 3, axis=1
    )
    turned = rng.random(len(faces)) < 0.5
    faces[turned] = faces[turned][:, ::-1]
    assert rasterise(vertices, faces, cam).silhouette.all()


def test_projection_agrees_with_opencv_and_with_the_picture():
    rng = np.random.default_rng(5)
    cam_int = np.array([[310.0, 0, 101.5], [0, 295.0, 88.0], [0, 0, 1]])
    cam = Camera(cam_int, 180, 200)
    points = np.column_stack([rng.uniform(-0.4, 0.4, (40, 2)), rng.uniform(1.5, 4.0, 40)])
    expected, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), cam_int, None)
    np.testing.assert_allclose(cam.project(points), expected[:, 0], atol=1e-6)
    # A pixel-sized triangle around each point lights the pixel that holds the projection.
    for point, (u, v) in zip(points, expected[:, 0], strict=True):
        size = 2.0 * point[2] / 295.0
        triangle = point + size * np.array([[-1, -1, 0], [1, -1, 0], [0, 1, 0]])
        raster = rasterise(triangle, [[0, 1, 2]], cam)
        assert raster.silhouette[int(v), int(u)]
        assert raster.silhouette.sum() < 20


def test_cropped_and_scaled_cameras_show_the_same_picture():
    vertices, faces = sphere(24, 0.8, (0.1, 0.2, 3.0))
    cam = camera(64, 64, 70.0)
    whole = rasterise(vertices, faces, cam)
    crop = rasterise(vertices, faces, cam.cropped(16, 8, 32, 32))
    np.testing.assert_array_equal(crop.face_ids, whole.face_ids[8:40, 16:48])
    doubled = rasterise(vertices, faces, cam.scaled(2))
    assert doubled.silhouette.shape == (128, 128)
    assert doubled.silhouette.sum() == pytest.approx(4 * whole.silhouette.sum(), rel=0.02)


def test_lambert_shading_of_a_sphere():
    centre = np.array([0.0, 0.0, 5.0])
    vertices, faces = sphere(80, 1.0, centre)
    cam = camera(60, 60, 120.0)
    light = Light(direction=(-1.0, -1.0, -1.0), key=0.8, fill=0.0, ambient=0.1)
    raster = rasterise(vertices, faces, cam)
    rgb, _ = shade(raster, Mesh(vertices, faces, (1.0, 0.5, 0.25)), light)
    seen = raster.silhouette
    points = pixel_rays(cam)[seen] * raster.depth[seen][:, None]
    normals = points - centre
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    level = 0.1 + 0.8 * np.maximum(normals @ (np.array([-1, -1, -1]) / np.sqrt(3)), 0)
    np.testing.assert_allclose(rgb[seen][:, 0], level, atol=0.02)
    np.testing.assert_allclose(rgb[seen], rgb[seen][:, :1] * [1.0, 0.5, 0.25], atol=1e-6)
    # Upper left, nearer to the light, is brighter than lower right.
    assert rgb[22, 22, 0] > rgb[38, 38, 0] + 0.3


def test_both_sides_of_an_open_surface_are_lit():
    vertices = np.array([[-9, -9, 2.0], [9, -9, 2.0], [0, 18, 2.0]])
    cam = camera()
    pictures = [render(Mesh(vertices, f, (1, 1, 1)), cam) for f in ([[0, 1, 2]], [[0, 2, 1]])]
    np.testing.assert_array_equal(*pictures)
    assert pictures[0].min() > 100


def test_vertex_normals_of_a_sphere_point_outward():
    vertices, faces = sphere(20, 1.0, (0, 0, 0))
    inner = np.linalg.norm(vertices[:, :2], axis=1) > 1e-6  # the poles hold repeated points
    np.testing.assert_allclose(vertex_normals(vertices, faces)[inner], vertices[inner], atol=0.03)


def test_colours_by_vertex_are_perspective_correct_and_by_face_are_sharp():
    cam = camera(40, 40, 40.0)
    quad = np.array([[-1, -1, 2.0], [1, -1, 2.0], [-2, 2, 4.0], [2, 2, 4.0]])
    faces = np.array([[0, 1, 2], [1, 3, 2]])
    by_vertex = np.zeros((4, 3))
    by_vertex[:, 0] = (quad[:, 2] - 2) / 2  # red grows with depth
    raster = rasterise(quad, faces, cam)
    rgb, _ = shade(raster, Mesh(quad, faces, by_vertex), FLAT)
    seen = raster.silhouette
    np.testing.assert_allclose(rgb[seen][:, 0], (raster.depth[seen] - 2) / 2, atol=1e-5)
    by_face = np.array([[1.0, 0, 0], [0, 0, 1.0]])
    picture = render(Mesh(quad, faces, by_face), cam, light=FLAT)
    colours = {tuple(c) for c in picture[seen]}
    assert colours == {(255, 0, 0), (0, 0, 255)}
    parts = raster.part_ids(np.array([7, 3]))
    np.testing.assert_array_equal(parts == 7, raster.face_ids == 0)
    assert set(np.unique(parts)) <= {-1, 3, 7}


def test_supersampling_averages_what_a_pixel_sees():
    """A white rectangle that ends in the middle of column 5 on black."""
    cam = Camera(np.eye(3), 8, 12)
    quad = np.array([[0, 0, 1.0], [5.5, 0, 1.0], [0, 8, 1.0], [5.5, 8, 1.0]])
    mesh = Mesh(quad, np.array([[0, 1, 2], [1, 3, 2]]), (1, 1, 1))
    row = render(mesh, cam, background=(0, 0, 0), light=FLAT, supersample=4)[3, :, 0]
    np.testing.assert_array_equal(row, [255] * 5 + [128] + [0] * 6)


def test_the_background_picture_shows_where_nothing_is():
    rng = np.random.default_rng(0)
    vertices, faces = sphere(12, 0.5, (0, 0, 3.0))
    cam = camera()
    background = rng.integers(0, 256, (cam.height, cam.width, 3), dtype=np.uint8)
    picture = render(Mesh(vertices, faces, (1, 0, 0)), cam, background=background)
    seen = rasterise(vertices, faces, cam).silhouette
    np.testing.assert_array_equal(picture[~seen], background[~seen])
    assert (picture[seen][:, 1:] == 0).all()
    as_float = render(Mesh(vertices, faces, (1, 0, 0)), cam, background=background / 255)
    np.testing.assert_array_equal(picture, as_float)


def test_translucent_skin_blends_bones_inside_and_shows_bones_outside():
    cam = camera(32, 32, 40.0)
    triangle = np.array([[-9, -9, 0], [9, -9, 0], [0, 18, 0.0]])
    skin = Mesh(triangle + np.array([0, 0, 3.0]), [[0, 1, 2]], (1.0, 0.0, 0.0))
    bones = Mesh(triangle + np.array([0, 0, 4.0]), [[0, 1, 2]], (0.0, 0.0, 1.0))
    options = {"opacity": 0.25, "rim": 0.25, "light": FLAT}
    inside = render_translucent(skin, bones, cam, **options)
    np.testing.assert_array_equal(np.unique(inside.reshape(-1, 3), axis=0), [[64, 0, 191]])
    outside = render_translucent(
        skin, Mesh(bones.vertices - [0, 0, 2], bones.faces, bones.colors), cam, **options
    )
    np.testing.assert_array_equal(np.unique(outside.reshape(-1, 3), axis=0), [[0, 0, 255]])
    nothing = Mesh(triangle - [0, 0, 5], [[0, 1, 2]])
    alone = render_translucent(skin, nothing, cam, background=(0, 1, 0), **options)
    np.testing.assert_array_equal(np.unique(alone.reshape(-1, 3), axis=0), [[64, 191, 0]])


def test_png_round_trip():
    picture = np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    data = np.frombuffer(png_bytes(picture), np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1], picture)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vertices": np.full((3, 3), np.nan)}, "non-finite"),
        ({"vertices": np.zeros((3, 2))}, r"\(V, 3\)"),
        ({"faces": np.array([[0, 1, 3]])}, r"outside 0\.\.2"),
        ({"faces": np.array([[0, 1, -1]])}, r"outside 0\.\.2"),
        ({"faces": np.array([0, 1, 2])}, r"\(F, 3\)"),
        ({"near": 0.0}, "near plane"),
    ],
)
def test_bad_geometry_is_refused(change, message):
    given_values = {"vertices": np.eye(3), "faces": np.array([[0, 1, 2]]), "camera": camera()}
    with pytest.raises(ValueError, match=message):
        rasterise(**{**given_values, **change})


def test_bad_cameras_colours_and_backgrounds_are_refused():
    with pytest.raises(ValueError, match="last row"):
        Camera(np.diag([1.0, 1.0, 2.0]), 4, 4)
    with pytest.raises(ValueError, match="finite"):
        Camera(np.full((3, 3), np.nan), 4, 4)
    with pytest.raises(ValueError, match="at least one pixel"):
        Camera(np.eye(3), 0, 4)
    mesh = Mesh(np.eye(3), np.array([[0, 1, 2]]), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="colors must be"):
        render(mesh, camera())
    with pytest.raises(ValueError, match="background must be"):
        render(Mesh(np.eye(3), [[0, 1, 2]]), camera(), background=np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match="supersample"):
        render(Mesh(np.eye(3), [[0, 1, 2]]), camera(), supersample=0)


def test_it_works_where_no_folder_can_hold_compiled_code():
    """numba raises when it finds no writable cache folder; the pictures must come out anyway."""
    program = (
        "import numba.core.caching as caching\n"
        "for kind in (caching.CompileResultCacheImpl, caching.CacheImpl):\n"
        "    kind._locator_classes = []\n"
        "import numpy as np\n"
        "from stages.drawing.render import Camera, rasterise\n"
        "camera = Camera(np.diag([9.0, 9.0, 1.0]), 4, 4)\n"
        "points = np.array([[-9, -9, 2.0], [9, -9, 2.0], [0, 18, 2.0]])\n"
        "print(int(rasterise(points, [[0, 1, 2]], camera).silhouette.sum()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "16"
