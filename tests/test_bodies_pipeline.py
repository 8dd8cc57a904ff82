"""Labels of other bodies through the pipeline: shapes of people first, then shards, then checks."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pipeline.identities as stage
from pipeline import open_dataset
from pipeline.bodies import BodyFitter, Models, check_surfaces
from pipeline.errors import Incomplete, InputError, UsageError
from pipeline.executors import Died, Outcome, Raised, Survived
from pipeline.identity_shapes import PARTS_FOLDER, SHAPES_FILE, part_file, read_shapes
from pipeline.identity_tasks import find_parts
from pipeline.own_file import own_file
from pipeline.readers import open_source
from pipeline.readers.base import BodyRows
from pipeline.readers.chosen import first_accepted
from pipeline.readers.sam3d import pinhole
from pipeline.run import Request, convert, preview
from pipeline.rundir import RunDirectory
from pipeline.task import Order
from pipeline.upload import fetch
from pipeline.verify import verify
from skel_fit import load_skel
from skel_fit.bodies import IdentityShapes, SurfaceMap
from skel_fit.bodies.map_files import SHIPPED
from skel_fit.bodies.source_body import SourceRoot
from skel_fit.default_body import default_body_directory
from stages.inspection.report_page import report_page
from stages.inspection.shapes_of_people import people_table
from stages.inspection.statistics import collect
from tests.foreign_bodies import SMPLX_VERTICES, fake_body

SAM = Path(__file__).parent / "data" / "bodies"
DOCS = Path(__file__).parents[1] / "docs"
ROWS = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """The stand-in's files and the map of a fake SMPL-X beside them."""
    folder = tmp_path_factory.mktemp("models")
    for file in default_body_directory().iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "maps").mkdir()
    _fake().map.write(folder / "maps" / "smplx.npz")
    return folder


def _fake():
    return fake_body(
        "smplx", load_skel(default_body_directory(), "male").faces.numpy(), SMPLX_VERTICES, 1
    )


@pytest.fixture(scope="module")
def meshes() -> np.ndarray:
    """Three small poses of two men as SMPL-X meshes, float32."""
    generator = torch.Generator().manual_seed(3)
    poses = 0.15 * torch.randn(ROWS, 46, generator=generator)
    betas = torch.randn(2, 10, generator=generator)[[0, 1, 0]]
    skel = load_skel(default_body_directory(), "male")
    body = skel(poses, betas, torch.tensor([[0.0, 0.0, 4.0]]).expand(ROWS, 3))
    return _fake().vertices(body.skin_vertices.numpy()).astype(np.float32)


@pytest.fixture
def label_file(tmp_path, meshes) -> Path:
    """Rows 0 and 2 are one person, row 1 another; row 3 has no finite mesh."""
    path = tmp_path / "people.npz"
    np.savez(
        path,
        vertices=np.concatenate((meshes, np.full_like(meshes[:1], np.nan))),
        body=np.array("SMPL-X"),
        identity=np.array(["ann", "ben", "ann", "ben"]),
        imgname=np.array([f"{row}.jpg" for row in range(ROWS + 1)]),
    )
    return path


def _request(path: Path, out: Path, models: Path, skel: str | None = "male") -> Request:
    found = own_file(path, models="licensed", skel_gender=skel)
    manifest = found.manifest.model_copy(update={"shard_rows": 2})
    return Request(manifest, out, found.data_root, models, workers=1)


def _quiet(event: str, data: dict) -> None: ...


def _nobody(*given: object) -> None:
    raise AssertionError("shapes are looked for")


def test_people_get_their_shapes_before_the_shards(label_file, models, tmp_path, monkeypatch):
    """A dry run finds no shape; a stage that was stopped goes on; rows of a person share a shape
    over shards; a rerun finds nothing anew; damaged shapes are found out and made again."""
    monkeypatch.setattr(stage, "_PART_MESHES", 1)
    out, calls, events = tmp_path / "out", [], []
    real = stage.solve_part

    def counted(*given):
        calls.append(list(given[-1]))
        return real(*given)

    def stops(event: str, data: dict) -> None:
        if event == "identities_done":
            raise KeyboardInterrupt

    monkeypatch.setattr(stage, "solve_part", counted)
    request = _request(label_file, out, models)
    assert preview(request).plan.identities is None and not out.exists()
    with pytest.raises(KeyboardInterrupt):
        convert(request, stops)
    assert sorted(p.name for p in (out / PARTS_FOLDER).iterdir()) == ["basis", "part-00000.npz"]
    assert not (out / "plan.json").exists()

    result = convert(request, lambda event, data: events.append((event, data)))
    assert result.ok and calls == [[0], [1]]
    assert ("identities", {"total": 2, "done": 1}) in events
    plan, shapes = RunDirectory(out).plan(), read_shapes(out / SHAPES_FILE)
    assert plan.fit["recipe"] == "surface" and plan.body is not None
    assert (plan.body.name, plan.body.vertices) == ("smplx", SMPLX_VERTICES)
    assert plan.identities is not None and plan.identities.sha256 == shapes.digest()
    assert not (out / PARTS_FOLDER).exists()

    data = open_dataset(out)
    assert data["status"].tolist()[3] == "rejected:non_finite_vertices"
    assert np.nanmax(data["vertex_error_mean"]) < 0.002 and "vertices" not in data
    assert (data["skel_betas"][0] == data["skel_betas"][2]).all()
    people = people_table(data, collect(data))
    assert people is not None and people.by_gender == (("male", 2),) and people.median < 0.002
    assert sorted((p.name, p.first, p.rows, p.meshes) for p in people.shown) == [
        (0, 0, 2, 2), (1, 1, 1, 1),
    ]  # fmt: skip
    assert all(p.posed < 0.002 for p in people.shown)
    page = report_page(data, collect(data), None, "none wanted").html
    assert '<h2 id="people">' in page and "2 male" in page

    checked = verify(out, full=True)
    assert checked.ok and (checked.people, checked.exact_people) == (2, 2)
    calls.clear()

    url = f"file://{tmp_path / 'mirror'}"
    again = convert(replace(request, upload=url), _quiet)
    assert again.ok and again.converted == 0 and not calls
    assert all(state.state == "done" for state in fetch(url, tmp_path / "fetched"))
    assert (tmp_path / "fetched" / SHAPES_FILE).read_bytes() == (out / SHAPES_FILE).read_bytes()
    (tmp_path / "mirror" / SHAPES_FILE).unlink()
    with pytest.raises(InputError, match="absent"):
        fetch(url, tmp_path / "partly")
    assert preview(request).plan.plan_id == plan.plan_id
    near = replace(shapes, betas=shapes.betas + 1e-9)
    assert stage._compared(near, shapes) == stage.FoundAgain(2, 0, ())
    far = stage._compared(replace(shapes, betas=shapes.betas + np.array([[0.0], [0.01]])), shapes)
    assert far.exact == 1 and "betas of person 1" in far.problems[0]
    near.write(out / SHAPES_FILE)
    with pytest.raises(InputError, match="not the shapes of the plan"):
        verify(out)
    (out / SHAPES_FILE).unlink()
    with pytest.raises(InputError, match="absent"):
        verify(out)


def test_meshes_of_smpl_are_a_body_of_their_own(models, tmp_path):
    """Called smpl, as a user calls them: no parameters of SMPL, no map needed."""
    skel, poses = load_skel(models, "male"), np.zeros((2, 46), np.float32)
    poses[1, 3] = 0.3
    skins = skel(*map(torch.as_tensor, (poses, np.zeros((2, 10), "f4"), np.zeros((2, 3), "f4"))))
    path = tmp_path / "smpl.npz"
    np.savez(path, vertices=skins.skin_vertices.numpy(), body="smpl", identity=np.zeros(2, int))
    assert convert(_request(path, tmp_path / "out", models), _quiet).ok
    data, plan = open_dataset(tmp_path / "out"), RunDirectory(tmp_path / "out").plan()
    assert plan.body is not None and (plan.body.name, plan.body.map_name) == ("smpl_mesh", "")
    assert plan.fit["recipe"] == "surface" and data["vertex_error_mean"].max() < 0.002
    assert abs(data["skel_poses"][1, 3] - 0.3) < 0.02 and verify(tmp_path / "out").ok


# ---- the stage of people's shapes ----


_CONVERTS = """
import sys
import pipeline.identities
from stages import cli
pipeline.identities._PART_MESHES = 1
sys.exit(cli.main())
"""


def _small(folder: Path, meshes: np.ndarray, people: int) -> Path:
    """A file of so many people, one row each."""
    path = folder / "people.npz"
    np.savez(path, vertices=np.resize(meshes, (people, *meshes.shape[1:])), body="smplx")
    return path


def _converts(path: Path, out: Path, models: Path, *more: str) -> subprocess.Popen:
    command = ["convert", str(path), "--out", str(out), "--models", str(models), *more]
    return subprocess.Popen(
        [sys.executable, "-c", _CONVERTS, *command, "--skel-gender", "male", "--quiet"],
        start_new_session=True,
        stderr=subprocess.PIPE,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc of Linux")
def test_shapes_of_people_survive_kills(meshes, models, tmp_path, monkeypatch):
    """Of the whole run: the rerun goes on from the parts that are there. Of a worker: another one
    does its part. Either way the shapes are, bit for bit, those of one undisturbed process."""
    path = _small(tmp_path, meshes, 3)
    monkeypatch.setattr(stage, "_PART_MESHES", 100)
    wanted = _request(path, tmp_path / "undisturbed", models)
    assert convert(wanted, _quiet).ok
    undisturbed = (tmp_path / "undisturbed" / SHAPES_FILE).read_bytes()
    out = tmp_path / "out"

    run = _converts(path, out, models, "--workers", "2")
    first = out / PARTS_FOLDER / "part-00000.npz"
    _wait(first.exists)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    assert not (out / SHAPES_FILE).exists()
    before = first.stat().st_ino

    again = _converts(path, out, models, "--workers", "2")
    _wait(lambda: _workers_of(again.pid))
    assert first.stat().st_ino == before
    os.kill(_workers_of(again.pid)[0], signal.SIGKILL)
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said.decode()
    assert (out / SHAPES_FILE).read_bytes() == undisturbed
    assert not (out / PARTS_FOLDER).exists()
    assert open_dataset(out)["skel_betas"].shape == (3, 10)


def _wait(until: Callable[[], object]) -> None:
    end = time.monotonic() + 120.0
    while not until():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


def _workers_of(parent: int) -> list[int]:
    """The spawned workers of a process, oldest first."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            command = (folder / "cmdline").read_bytes()
            if int(fields[1]) == parent and b"spawn_main" in command and fields[0] != "Z":
                found.append(int(folder.name))
    return sorted(found)


@pytest.mark.parametrize("harm", ["raises", "dies"])
def test_a_part_that_fails_is_tried_again_and_then_given_up(harm):
    """Three times; other parts are done all the same; what is wrong outside ends it at once."""

    class Once:
        isolated, usable = True, True

        def __init__(self, wrong: set[int]) -> None:
            self.wrong, self.orders, self.waiting, self.closed = wrong, [], [], False

        def free(self) -> int:
            return 1 - len(self.waiting)

        def submit(self, order: Order) -> None:
            self.orders.append((order.shard, order.attempt, order.part))
            self.waiting.append(order.shard)

        def wait(self, timeout: float) -> list[Outcome]:
            part = self.waiting.pop()
            if part not in self.wrong:
                return [Survived(part)]
            return [Raised(part, "Odd", "no", "") if harm == "raises" else Died(part, "no")]

        def beats(self) -> list:
            return []

        def close(self) -> None:
            self.closed = True

    parts, found = [(0, range(0, 3)), (1, range(3, 4))], []
    pool = Once({0})
    with pytest.raises(Incomplete, match=r"people 0 to 2: tried 3 times: .*no; rerun"):
        find_parts(pool, parts, found.append)
    assert found == [1] and pool.closed
    assert pool.orders == [(0, 1, (0, 3)), (1, 1, (3, 4)), (0, 2, (0, 3)), (0, 3, (0, 3))]
    good = Once(set())
    find_parts(good, parts, found.append)
    assert found == [1, 3, 1] and good.closed


def test_a_folder_of_that_name_keeps_its_files(label_file, models, tmp_path):
    """`identities/` of the user is refused before anything is written; parts go by name."""
    out = tmp_path / "out"
    mine = out / PARTS_FOLDER / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UsageError, match="identities"):
        convert(_request(label_file, out, models), _quiet)
    stage.forget_parts(out)
    assert [file.name for file in out.rglob("*")] == [PARTS_FOLDER, "mine.txt"]

    (out / PARTS_FOLDER / "basis").write_text("a" * 64)
    for name in ("part-00000.npz", ".part-00001.npz.1.tmp"):
        (out / PARTS_FOLDER / name).write_bytes(b"ours")
    (out / PARTS_FOLDER / "part-00002.npz").mkdir()
    stage.forget_parts(out)
    assert sorted(file.name for file in mine.parent.iterdir()) == ["mine.txt", "part-00002.npz"]
    with pytest.raises(UsageError, match="holds files of yours"):
        stage.solve_identities(
            _plan(label_file, models), open_source(label_file), out, _nobody, _quiet
        )


def test_a_file_of_that_name_keeps_its_content(label_file, models, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / SHAPES_FILE).write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"identities\.npz"):
        convert(_request(label_file, out, models), _quiet)
    assert (out / SHAPES_FILE).read_bytes() == b"mine"


def _plan(path: Path, models: Path):
    return preview(_request(path, path.parent / "nothing", models, None)).plan


def test_a_shape_does_not_depend_on_who_shares_its_part(label_file, models, monkeypatch):
    """Meshes and vertices that count are the person's own, bit for bit (that `fit_identity` keeps
    people apart is tested with it)."""
    with np.load(label_file) as file:
        content = dict(file)
    some = {name: values[:2] if values.ndim else values for name, values in content.items()}
    np.savez(label_file, **some | {"gender": np.array(["male", "female"])})
    plan = _plan(label_file, models)
    source = open_source(label_file, smpl_gender="column", skel_gender="nearest")
    given: list[dict] = []

    def fit(skels, meshes, names, genders, *, vertex_weights, **more):
        for name in names:
            own = meshes[names == name].numpy().tobytes()
            weights = vertex_weights[genders[names == name][0]].tobytes()
            given[-1][int(name)] = own, weights
        return IdentityShapes.empty()

    monkeypatch.setattr("skel_fit.bodies.identities.fit_identity", fit)
    held, people = Models(models, "smplx", SMPLX_VERTICES), stage.People.of(source, 1)
    for part in ([0, 1], [0], [1]):
        given.append({})
        stage.solve_part(plan, source, held, people, part)
    assert given[0] == given[1] | given[2] and len(given[0]) == 2
    assert given[0][0][1] != given[0][1][1]


def _with_errors(errors: np.ndarray) -> IdentityShapes:
    count = len(errors)
    zeros = np.zeros((count, 13))
    return IdentityShapes(
        np.arange(count), np.full(count, "male"), zeros[:, :10], zeros[:, 10:],
        np.stack((errors, np.full(count, -1.0)), axis=1),
        np.ones(count, np.int64), np.ones(count, np.int64),
    )  # fmt: skip


@pytest.mark.parametrize("part", [1, 100])
def test_one_person_who_fits_badly_is_told_and_refuses_nothing(
    label_file, models, tmp_path, monkeypatch, part
):
    """However the people are cut into parts; most of them are another thing, and are refused."""
    with np.load(label_file) as file:
        np.savez(label_file, **dict(file) | {"identity": np.arange(ROWS + 1)})
    source, plan = open_source(label_file), _plan(label_file, models)
    monkeypatch.setattr(stage, "_PART_MESHES", part)
    for bad, events in ((1, []), (3, [])):
        errors = np.where(np.arange(ROWS + 1) < bad, 0.2, 0.001)
        shapes = _with_errors(errors)
        monkeypatch.setattr(stage, "solve_part", lambda *given, s=shapes: s.take(list(given[-1])))
        out = tmp_path / f"{bad}"

        def find(parts, meshes, told, out=out):
            assert meshes == ROWS + 1
            for number, own in parts:
                stage.solve_part(own).write(part_file(out, number))

        def run(out=out, events=events, find=find):
            return stage.solve_identities(
                plan, source, out, find, lambda *event: events.append(event)
            )

        if bad == 1:
            assert run().identities.sha256 == shapes.digest()
            assert ("misfits", {"count": 1, "of": 4, "row": 0, "error": 0.2}) in events
        else:
            with pytest.raises(InputError, match="200 mm only"):
                run()
            assert not (out / SHAPES_FILE).exists()


def test_a_compressed_file_is_read_once_a_part(label_file, monkeypatch):
    """Rows of several people in turn, one without a mesh among those that were chosen: one pass
    for the chosen rows, one for the others of that person."""
    with np.load(label_file) as file:
        content = dict(file)
    twice = {name: np.concatenate((v, v)) if v.ndim else v for name, v in content.items()}
    twice["identity"] = np.array(["ann", "ben", "ann", "cat", "ann", "ben", "ann", "dan"])
    twice["identity"][[3, 4]] = "cat"
    np.savez_compressed(label_file, **twice)
    opened, real = [], zipfile.ZipFile.open

    def counted(self, name, *more, **options):
        opened.append(str(getattr(name, "filename", name)))
        return real(self, name, *more, **options)

    source = open_source(label_file)
    people = stage.People.of(source, 1)
    assert [rows.tolist() for rows in people.rows] == [[0], [1], [3], [7]]
    monkeypatch.setattr(zipfile.ZipFile, "open", counted)
    found = list(stage._usable(source, people, range(4)))
    assert [rows.source_row.tolist() for rows in found] == [[0], [1], [4]]
    assert opened.count("vertices.npy") == 2
    again = open_source(label_file)
    opened.clear()
    first = first_accepted(again, 5)
    assert first is not None and first.source_row.tolist() == [0, 1, 2, 4, 5]
    assert opened.count("vertices.npy") == 1


def test_roots_are_compared_on_the_device_of_the_model(models, monkeypatch):
    """And no surface is posed for it. `meta` is a device that the CPU's tensors do not meet."""

    class Stop(Exception): ...

    def stop(model, root, betas, offsets):
        raise Stop([v.device.type for v in (*root, betas, offsets)])

    class Body:
        states_root = True

        def root(self, parameters):
            return SourceRoot(*(torch.zeros(2, *shape) for shape in ((3, 3), (3,), (3,))))

    skel = load_skel(default_body_directory(), "male").to("meta")
    held = SimpleNamespace(skel=lambda *given: skel, source=lambda gender: Body())
    fitter = BodyFitter(held, None, _with_errors(np.zeros(2)), None)
    monkeypatch.setattr("skel_fit.bodies.surface_fit.stated_translation", stop)
    body = tuple(np.zeros((2, size)) for size in (46, 10, 3))
    with pytest.raises(Stop) as caught:
        fitter.root_departures(("male", "male"), BodyRows("smplx", {}, np.arange(2)), body)
    assert set(caught.value.args[0]) == {"meta"}


def _shuffled(content: dict) -> None:
    content["vertices"] = content["vertices"][:, ::-1]


def _centimetres(content: dict) -> None:
    content["vertices"] = content["vertices"] * 100


def _flat(content: dict) -> None:
    content["vertices"] = content["vertices"].reshape(ROWS + 1, -1)


def _other_faces(content: dict) -> None:
    content["faces"] = np.arange(30).reshape(10, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_centimetres, "not of a person's size"),
        (_shuffled, "vertices are not in the order of smplx"),
        (_flat, "member 'vertices'"),
        (_other_faces, "member 'faces'"),
        (lambda c: c.update(body=np.array("smplh")), "10475 vertices a row"),
        (lambda c: c.update(body=np.array("nobody")), "no map from 'nobody'"),
        (lambda c: c.update(body=np.array(["smplx", "mhr", "mhr", "mhr"])), "member 'body'"),
        (lambda c: c.update(body=np.array([os.system], object)), "member 'body'"),
        (lambda c: c.update(identity=np.arange(3)), "member 'identity'"),
        (
            lambda c: c.update(gender=np.array(["m", "m", "f", "m"])),
            "one person has one shape",
        ),
    ],
)
def test_meshes_that_are_none_are_refused_in_one_line(label_file, models, tmp_path, change, words):
    with np.load(label_file) as file:
        content = dict(file)
    change(content)
    np.savez(label_file, **content)
    out = tmp_path / "out"
    with pytest.raises(InputError) as caught:
        convert(_request(label_file, out, models, None), _quiet)
    text = str(caught.value)
    assert words in text and "\n" not in text
    assert not list(out.glob("shards/*"))


def test_a_map_of_other_bodies_is_not_taken(models, tmp_path, label_file):
    """A map beside the models that leads to other triangles: the line says what to do."""
    folder = tmp_path / "models"
    folder.mkdir()
    for file in models.glob("*.*"):
        (folder / file.name).symlink_to(file.resolve())
    (folder / "maps").mkdir()
    wrong = SurfaceMap.read(models / "maps" / "smplx.npz")
    replace(wrong, target_faces_sha256="0" * 64).write(folder / "maps" / "smplx.npz")
    with pytest.raises(InputError, match="hmr-skel maps add FILE"):
        preview(_request(label_file, tmp_path / "out", folder))


# ---- SAM 3D Body ----


def test_real_sam_3d_body_outputs_project_where_their_keypoints_are():
    """The four outputs of the MHR repository: rows, cameras to 0.01 px, meshes in the camera."""
    source = open_source(SAM, skel_gender="nearest")
    assert (source.format, source.rows, source.body) == ("sam-3d-body", 2, "mhr")
    rows = source.read(0, 2)
    assert rows.other is not None and (rows.reasons == "").all()
    for row in range(2):
        points = rows.fields["pred_keypoints_3d"][row] + rows.fields["pred_cam_t"][row]
        seen = points.astype(np.float64) @ rows.fields["cam_int"][row].T
        off = seen[:, :2] / seen[:, 2:] - rows.fields["pred_keypoints_2d"][row]
        assert np.linalg.norm(off, axis=1).max() < 0.01
    meshes = rows.other.parameters["vertices"]
    assert meshes.shape == (2, 18_439, 3) and (meshes[:, :, 2].min(axis=1) > 1.0).all()
    assert "pred_vertices" not in rows.fields


def test_outputs_whose_y_and_z_were_flipped_are_refused(tmp_path):
    with np.load(SAM / "img_subj01.npz") as file:
        content = dict(file)
    content["pred_keypoints_3d"] = content["pred_keypoints_3d"] * (1, -1, -1)
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(InputError, match="px \\(rms\\) beside it"):
        open_source(tmp_path / "a.npz").read(0, 1)


def test_shards_of_meshes_fit_into_the_memory_of_a_worker(label_file):
    for path, rows in ((SAM, 512), (label_file, 1024)):
        assert own_file(path, models="default-body").manifest.shard_rows == rows


def test_object_members_are_left_out_unread(tmp_path):
    with np.load(SAM / "img_subj01.npz") as file:
        content = dict(file)
    content["mask"] = np.array([os.system], object)
    np.savez(tmp_path / "a.npz", **content)
    source = open_source(tmp_path / "a.npz")
    assert source.rows == 1 and "mask" not in source.fields


def test_a_camera_is_found_from_pairs():
    points = np.random.default_rng(1).normal((0.0, 0.0, 4.0), 0.4, (70, 3))
    pixels = 1500.0 * points[:, :2] / points[:, 2:] + np.array([320.0, 240.0])
    focal, centre, rms = pinhole(points, pixels)
    assert abs(focal - 1500.0) < 1e-6 and np.abs(centre - (320, 240)).max() < 1e-6 and rms < 1e-6


SHIPPED_BODIES = ("anny", "makehuman", "mhr", "soma")


def test_meshes_of_anny_are_read_and_mapped_exactly(tmp_path):
    """MakeHuman's vertices by number: what is put there comes back, and the file is known."""
    skel = load_skel(default_body_directory(), "female")
    template = skel.template.numpy()
    for name, vertices in (("anny", 13_718), ("makehuman", 19_158)):
        found = SurfaceMap.read(SHIPPED / f"{name}_standin.npz")
        mesh = np.zeros((1, vertices, 3), np.float32)
        counted = found.vertex_weight > 0.0
        mesh[0, found.columns[counted, 0]] = template[counted]
        assert 6700 < counted.sum() < 6890
        np.testing.assert_array_equal(found.apply(mesh)[0][counted], template[counted])
        np.savez(tmp_path / f"{name}.npz", vertices=mesh, body=np.array(name))
        source = open_source(tmp_path / f"{name}.npz", skel_gender="nearest")
        check_surfaces(
            source, Models(default_body_directory(), name, vertices), "female", source.read(0, 1)
        )


def test_the_shipped_maps_lead_to_the_stand_in():
    skel = load_skel(default_body_directory(), "female")
    files = sorted(SHIPPED.glob("*.npz"))
    assert [path.name for path in files] == [f"{name}_standin.npz" for name in SHIPPED_BODIES]
    for path in files:
        SurfaceMap.read(path).check_target(skel)


def test_the_page_about_bodies_runs_as_it_is_written(monkeypatch):
    text = (DOCS / "bodies.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(DOCS.parent)
    names: dict = {}
    exec(compile(code, "docs/bodies.md", "exec"), names)
    assert (names["result"].vertex_error_mean < 0.018).all()
    assert set(names["result"].status) == {"converged"}
