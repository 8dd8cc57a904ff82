"""CameraHMR label files: fields bit for bit, rows in = rows out, reasons, broken files."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.readers import open_source
from pipeline.row_checks import REASONS
from tests.label_files import Canary, camerahmr, hmr_skel, write_npz

# Every example overwrites the file in the test's folder.
_SHARED_FOLDER = [HealthCheck.function_scoped_fixture]


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal to the last bit, dtype and byte order included."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def assert_fields(rows, members: dict[str, np.ndarray], start: int, stop: int) -> None:
    assert list(rows.fields) == list(members)
    for name, values in members.items():
        expected = values[start:stop] if values.ndim else np.broadcast_to(values, stop - start)
        assert same(rows.fields[name], expected), name


# ---- what is read -------------------------------------------------------------------------------


@settings(max_examples=40, suppress_health_check=_SHARED_FOLDER)
@given(data=st.data())
def test_any_range_of_any_variant_is_bit_for_bit(tmp_path: Path, data) -> None:
    rows = data.draw(st.integers(1, 40), "rows")
    members = camerahmr(rows, seed=data.draw(st.integers(0, 3)))
    members["gtkps"] = np.pad(members["gtkps"], ((0, 0), (0, data.draw(st.integers(0, 5))), (0, 0)))
    scale = data.draw(st.sampled_from(["rank1", "column", "pair"]))
    if scale != "rank1":
        members["scale"] = np.repeat(members["scale"][:, None], 1 if scale == "column" else 2, 1)
    if data.draw(st.booleans(), "bytes"):
        members["imgname"] = np.char.encode(members["imgname"])
    if data.draw(st.booleans(), "no translation"):
        del members["trans_cam"]
    if data.draw(st.booleans(), "constant"):
        members["gender"] = np.array("female")
    for name in ("pose_cam", "shape", "gtkps", "cam_int"):
        dtype = data.draw(st.sampled_from(["<f8", "<f4", ">f8", ">f4"]), name)
        order = data.draw(st.sampled_from("CF"), f"{name} order")
        members[name] = np.asarray(members[name].astype(dtype), order=order)
    names = data.draw(st.permutations(list(members)))
    members = {name: members[name] for name in names}
    path = write_npz(tmp_path / "a.npz", members, compressed=data.draw(st.booleans(), "deflated"))

    source = open_source(path)
    source.check()
    assert source.rows == rows and source.format == "camerahmr" and source.files == (path,)
    for _ in range(3):
        start = data.draw(st.integers(0, rows))
        stop = data.draw(st.integers(start, rows))
        found = source.read(start, stop)
        assert_fields(found, members, start, stop)
        assert found.source_row.tolist() == list(range(start, stop))
        assert same(found.poses, members["pose_cam"][start:stop].astype("f8"))
        assert same(found.betas, members["shape"][start:stop].astype("f8"))
        transl = members.get("trans_cam", np.zeros((rows, 3)))
        assert same(found.transl, transl[start:stop])
        assert (found.reasons == "").all()
        # A source travels to workers, in use or not.
        source = pickle.loads(pickle.dumps(source))
    for name, spec in source.fields.items():
        values = members[name]
        assert (spec.dtype, spec.shape) == (values.dtype, values.shape[1:] if values.ndim else ())


def test_object_names_become_text(tmp_path: Path) -> None:
    members = camerahmr()
    plain = members["imgname"]
    members["imgname"] = plain.astype(object)
    rows = open_source(write_npz(tmp_path / "a.npz", members)).read(2, 5)
    assert rows.fields["imgname"].tolist() == plain[2:5].tolist()
    members["imgname"] = np.char.encode(plain).astype(object)
    rows = open_source(write_npz(tmp_path / "b.npz", members)).read(2, 5)
    assert rows.fields["imgname"].tolist() == np.char.encode(plain[2:5]).tolist()


@pytest.mark.parametrize("shape", [(24, 3), (24, 3, 3)])
def test_pose_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    from scipy.spatial.transform import Rotation

    members = camerahmr(6)
    poses = members["pose_cam"]
    turned = poses.reshape(6, 24, 3)
    if len(shape) == 3:
        turned = Rotation.from_rotvec(poses.reshape(-1, 3)).as_matrix().reshape(6, *shape)
    members["pose_cam"] = turned
    found = open_source(write_npz(tmp_path / "a.npz", members)).read(0, 6)
    np.testing.assert_allclose(found.poses, poses, atol=1e-12)
    assert same(found.fields["pose_cam"], turned)
    if len(shape) == 3:
        turned[2, 5] *= 1.1
        turned[3, 1, 0, 0] = np.nan
        found = open_source(write_npz(tmp_path / "b.npz", members)).read(0, 6)
        assert found.reasons.tolist() == ["", "", "pose_not_rotation", "non_finite_pose", "", ""]


def test_pose_without_frame_has_to_be_named(tmp_path: Path) -> None:
    members = camerahmr()
    members["pose"] = members.pop("pose_cam")
    path = write_npz(tmp_path / "a.npz", members)
    with pytest.raises(InputError, match=r"pose_cam.*missing.*pose_key: pose"):
        open_source(path)
    rows = open_source(path, pose_key="pose").read(0, 8)
    assert same(rows.poses, members["pose"])
    assert_fields(rows, members, 0, 8)


def test_genders_from_columns(tmp_path: Path) -> None:
    members = camerahmr(6)
    members["gender"] = np.array([b"m", b"F", b"neutral", b"male", b"female", b"?"])
    members["skel_gender"] = np.array(["male", "female", "neutral", "f", "x", "male"])
    path = write_npz(tmp_path / "a.npz", members)
    rows = open_source(path, smpl_gender="column", skel_gender="column").read(0, 6)
    assert rows.smpl_gender.tolist() == ["male", "female", "neutral", "male", "female", ""]
    unknown = "unknown_gender"
    assert rows.reasons.tolist() == ["", "", unknown, "", unknown, unknown]
    rows = open_source(path, smpl_gender="neutral", skel_gender="female").read(0, 6)
    assert set(rows.smpl_gender) == {"neutral"} and set(rows.skel_gender) == {"female"}
    assert (rows.reasons == "").all()
    del members["gender"], members["skel_gender"]
    with pytest.raises(InputError, match="'gender' is missing"):
        open_source(write_npz(tmp_path / "b.npz", members), smpl_gender="column")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_large_file_is_not_copied(tmp_path: Path, compressed: bool) -> None:
    rows = 60_000  # gtkps alone: 63 MB
    members = camerahmr(100)
    members = {name: np.repeat(values, rows // 100, 0) for name, values in members.items()}
    path = write_npz(tmp_path / "a.npz", members, compressed=compressed)
    tracemalloc.start()
    try:
        source = pickle.loads(pickle.dumps(open_source(path)))
        for start in (0, 20_000, 59_000):
            found = source.read(start, start + 500)
            assert same(found.fields["gtkps"], members["gtkps"][start : start + 500])
        assert tracemalloc.get_traced_memory()[1] < 12e6
    finally:
        tracemalloc.stop()


def test_rising_ranges_of_a_deflated_file_are_one_pass(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", camerahmr(400), compressed=True)
    source = open_source(path)
    whole = source.read(0, 400)
    for start in (0, 100, 300, 200):  # the last one goes back
        part = source.read(start, start + 100)
        assert all(
            same(part.fields[name], whole.fields[name][start : start + 100])
            for name in whole.fields
        )


# ---- rows ---------------------------------------------------------------------------------------

_NAN, _INF = float("nan"), float("inf")


def _set(name: str, index: tuple, value: float):
    return lambda members, row: members[name].__setitem__((row, *index), value)


BAD_ROWS = [
    ("non_finite_pose", _set("pose_cam", (7,), _NAN)),
    ("non_finite_pose", _set("pose_cam", (0,), _INF)),
    ("pose_out_of_range", _set("pose_cam", (7,), 1e200)),
    ("pose_out_of_range", _set("pose_cam", (7,), 13.0)),
    ("non_finite_betas", _set("shape", (9,), _NAN)),
    ("betas_out_of_range", _set("shape", (0,), 6.0)),
    ("betas_out_of_range", _set("shape", (0,), -5.01)),
    ("non_finite_transl", _set("trans_cam", (1,), -_INF)),
    ("transl_out_of_range", _set("trans_cam", (2,), 2e3)),
    ("bad_camera", _set("cam_int", (0, 0), 0.0)),
    ("bad_camera", _set("cam_int", (1, 1), _NAN)),
    ("bad_camera", _set("cam_int", (2, 2), 2.0)),
    ("non_finite_box", _set("center", (0,), _NAN)),
    ("non_finite_box", _set("scale", (), _NAN)),
    ("box_too_small", _set("scale", (), 0.004)),
    ("box_too_small", _set("scale", (), -1.0)),
    ("box_too_large", _set("scale", (), 16.1)),  # 4 diagonals are 3,200 px
    ("non_finite_keypoints", _set("gtkps", (3, 2), _NAN)),
    ("bad_image_name", _set("imgname", (), "")),
    ("bad_image_name", _set("imgname", (), "a\nb.jpg")),
    ("bad_image_name", _set("imgname", (), "a\\..\\b.jpg")),
    ("bad_image_name", _set("imgname", (), "./.")),
    ("image_path_escapes", _set("imgname", (), "../x.jpg")),
    ("image_path_escapes", _set("imgname", (), "/etc/passwd")),
    ("image_path_escapes", _set("imgname", (), "a/../../x.jpg")),
    ("image_path_escapes", _set("imgname", (), "..")),
]


def test_bad_rows_are_named_and_alone(tmp_path: Path) -> None:
    clean = camerahmr(2 * len(BAD_ROWS) + 1)
    members = {name: values.copy() for name, values in clean.items()}
    for place, (_, spoil) in enumerate(BAD_ROWS):
        spoil(members, 2 * place + 1)
    # An absent keypoint may be anything.
    members["gtkps"][0, 5] = (_NAN, _INF, 0)
    source = open_source(write_npz(tmp_path / "a.npz", members))
    source.check()
    rows = source.read(0, source.rows)
    assert rows.reasons[1::2].tolist() == [reason for reason, _ in BAD_ROWS]
    assert (rows.reasons[::2] == "").all()
    assert {reason for reason, _ in BAD_ROWS} <= REASONS.keys()
    assert_fields(rows, members, 0, source.rows)
    good = open_source(write_npz(tmp_path / "b.npz", clean)).read(0, source.rows)
    assert same(rows.poses[::2], good.poses[::2]) and same(rows.betas[::2], good.betas[::2])
    # The verdict of a row does not depend on its neighbours.
    alone = [source.read(i, i + 1).reasons[0] for i in range(source.rows)]
    assert alone == rows.reasons.tolist()
    assert open_source(source.path, max_beta=7).read(11, 12).reasons.tolist() == [""]


@settings(max_examples=200)
@given(parts=st.lists(st.sampled_from(["..", ".", "", "a", "b.jpg", "...", "..a"]), max_size=6))
def test_a_name_is_accepted_only_inside_the_root(parts: list[str]) -> None:
    from pipeline.row_checks import Verdicts, check_names

    name = "/".join(parts)
    verdicts = Verdicts.empty(1)
    check_names(verdicts, np.array([name]), None)
    if verdicts.reasons[0] == "":
        assert ".." not in parts and not name.startswith("/")
        assert Path("/root", name).resolve().is_relative_to("/root")
    else:
        assert ".." in parts or name.startswith("/") or set(parts) <= {".", ""}


def test_links_out_of_the_image_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "data" / "images", tmp_path / "outside"
    (root / "in").mkdir(parents=True)
    outside.mkdir()
    (outside / "x.jpg").write_bytes(b"secret")
    (root / "in" / "x.jpg").write_bytes(b"picture")
    (root / "folder").symlink_to(outside)
    (root / "file.jpg").symlink_to(outside / "x.jpg")
    (root / "fine.jpg").symlink_to(root / "in" / "x.jpg")
    members = camerahmr(5)
    members["imgname"][:] = ["folder/x.jpg", "file.jpg", "fine.jpg", "in/x.jpg", "in/absent.jpg"]
    path = write_npz(tmp_path / "data" / "a.npz", members)
    opened: list[str] = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    rows = open_source(path, data_root=tmp_path / "data", image_root="images").read(0, 5)
    assert rows.reasons.tolist() == ["image_path_escapes"] * 2 + [""] * 3
    assert opened and not any(str(outside) in name or name.endswith(".jpg") for name in opened)


def test_source_outside_the_data_root(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", camerahmr())
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.npz").symlink_to(tmp_path / "a.npz")
    with pytest.raises(InputError, match="leads out of the data root"):
        open_source(root / "a.npz", data_root=root)


@pytest.mark.parametrize(
    ("factor", "what"), [(200.0, "pixels"), (1 / 200, "below 8 px"), (1 / 320, "below 8 px")]
)
def test_scale_in_another_unit_is_refused(tmp_path: Path, factor: float, what: str) -> None:
    members = camerahmr(50)
    path = write_npz(tmp_path / "a.npz", members)
    open_source(path).check()
    members["scale"] = members["scale"] * factor
    source = open_source(write_npz(tmp_path / "b.npz", members))
    with pytest.raises(InputError, match=f"b.npz: member 'scale'.*{what}.*expected scale"):
        source.check()


# ---- broken files (pipeline.md#hostile-input) ---------------------------------------------------


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, values, version=(1, 0))
    return buffer.getvalue()


def _zip(path: Path, members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(f"{name}.npy", data)
    return path


def _lying_header(shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    text += b" " * (118 - len(text) - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64)


def _with(name: str, change):
    def make(path: Path) -> None:
        members = camerahmr()
        members[name] = change(members[name])
        write_npz(path, members)

    return make


def _bytes_of(make) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **make)
    return buffer.getvalue()


def _cut(path: Path, keep) -> None:
    data = _bytes_of(camerahmr())
    path.write_bytes(data[: keep(len(data))])


def _without(name: str):
    return lambda path: write_npz(path, {k: v for k, v in camerahmr().items() if k != name})


def _raw_member(name: str, data: bytes):
    def make(path: Path) -> None:
        members = [(key, _npy(values)) for key, values in camerahmr().items() if key != name]
        _zip(path, [*members, (name, data)])

    return make


def _object(values: np.ndarray) -> np.ndarray:
    result = np.empty(len(values), object)
    result[:] = [{"x": 1}] * len(values)
    return result


def _bomb(path: Path) -> None:
    rows = 400_000_000 // 72 // 8
    members = [("pose_cam", _npy(np.zeros((rows, 72)))), ("imgname", _npy(np.array(["a"])))]
    _zip(path, members, zipfile.ZIP_DEFLATED)


def _damaged_deflate(path: Path) -> None:
    _zip(path, [(k, _npy(v)) for k, v in camerahmr(200).items()], zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("pose_cam.npy")
    data = bytearray(path.read_bytes())
    data[info.header_offset + info.compress_size // 2] ^= 0xFF
    path.write_bytes(data)


BROKEN = {
    "cut by 1 byte": (lambda p: _cut(p, lambda n: n - 1), ""),
    "cut in half": (lambda p: _cut(p, lambda n: n // 2), ""),
    "header only": (lambda p: _cut(p, lambda n: 30), ""),
    "empty": (lambda p: p.write_bytes(b""), "empty"),
    "text": (lambda p: p.write_text("imgname,pose\n"), "not a whole npz"),
    "absent": (lambda p: None, "no such file"),
    "missing pose": (_without("pose_cam"), "'pose_cam'"),
    "missing shape": (_without("shape"), "'shape'"),
    "missing keypoints": (_without("gtkps"), "'gtkps'"),
    "missing names": (_without("imgname"), "'imgname'"),
    "objects": (_with("shape", _object), "'shape'"),
    "claims 1.6 PB": (_raw_member("shape", _lying_header((20_000_000_000_000, 10))), "'shape'"),
    "claims more than it has": (_raw_member("shape", _lying_header((8, 10))), "'shape'"),
    "claims less than it has": (
        _raw_member("scale", _lying_header((len(camerahmr()["scale"]),)) + bytes(400)), "'scale'"
    ),
    "header is no header": (_raw_member("shape", b"\x93NUMPY\x01\x00\xff\xff..."), "'shape'"),
    "header runs code": (
        _raw_member("shape", b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').abort()".ljust(32)),
        "'shape'",
    ),
    "npy version 3": (_raw_member("shape", b"\x93NUMPY\x03\x00" + bytes(80)), "'shape'"),
    "deflate bomb": (_bomb, "'pose_cam'"),
    "damaged deflate stream": (_damaged_deflate, "'pose_cam'"),
    "twice": (lambda p: _zip(p, [("shape", _npy(np.ones(3))), ("shape", _npy(np.ones(3)))]),
              "'shape'"),
    "complex": (_with("pose_cam", lambda v: v.astype(complex)), "'pose_cam'"),
    "text pose": (_with("pose_cam", lambda v: v.astype(str)), "'pose_cam'"),
    "structured": (_with("shape", lambda v: np.zeros(8, [("a", "f8")])), "'shape'"),
    "dates": (_with("scale", lambda v: np.zeros(8, "M8[s]")), "'scale'"),
    "1-D pose": (_with("pose_cam", lambda v: v[:, 0]), "'pose_cam'"),
    "0-d pose": (_with("pose_cam", lambda v: v[0, 0]), "'pose_cam'"),
    "69 pose values": (_with("pose_cam", lambda v: v[:, :69]), "'pose_cam'"),
    "9 betas": (_with("shape", lambda v: v[:, :9]), "'shape'"),
    "43 keypoints": (_with("gtkps", lambda v: v[:, :43]), "'gtkps'"),
    "no confidence": (_with("gtkps", lambda v: v[:, :, :2]), "'gtkps'"),
    "scale of width 3": (_with("scale", lambda v: np.ones((8, 3))), "'scale'"),
    "numbers as names": (_with("imgname", lambda v: np.arange(8)), "'imgname'"),
    "no characters": (_with("imgname", lambda v: np.full(v.shape, 0x110000, "<u4").view("<U1")),
                      "'imgname'"),
    "one row less": (_with("center", lambda v: v[:-1]), "'center'"),
    "0 rows": (lambda p: write_npz(p, {k: v[:0] for k, v in camerahmr().items()}),
               "0 rows, expected one a person; there is nothing to convert: leave this file out"),
    "not an array": (lambda p: _zip(p, [("shape", b"hello")]), "'shape'"),
    "no npz inside the zip": (lambda p: zipfile.ZipFile(p, "w").writestr("a.txt", "x"), "'a.txt'"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")  # zipfile warns of the double name
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line(tmp_path: Path, name: str) -> None:
    make, said = BROKEN[name]
    path = tmp_path / "coco-release.npz"
    make(path)
    before = sorted(tmp_path.rglob("*"))
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            source = open_source(path)
            source.check()
            source.read(0, source.rows)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and said in message
    assert caught.value.exit_code == 5
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [n for n in BROKEN if n.startswith(("claims", "header", "twice"))])
def test_lies_are_seen_before_anything_is_read(tmp_path: Path, name: str) -> None:
    BROKEN[name][0](tmp_path / "a.npz")
    with pytest.raises(InputError):
        open_source(tmp_path / "a.npz")


@settings(max_examples=150, suppress_health_check=_SHARED_FOLDER)
@given(data=st.data())
def test_no_damage_goes_unnoticed(tmp_path: Path, data) -> None:
    """A flipped byte or a cut is either an InputError or changes nothing that is read."""
    members = camerahmr(4)
    compressed = data.draw(st.booleans())
    path = write_npz(tmp_path / "a.npz", members, compressed=compressed)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans(), "cut"):
        del content[place:]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        source = open_source(path)
        source.check()
        rows = source.read(0, source.rows)
    except InputError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert source.rows == 4
        for name, values in rows.fields.items():
            assert same(values, members[name])


def test_checksum_is_verified_once_and_named(tmp_path: Path) -> None:
    members = camerahmr(50)
    path = write_npz(tmp_path / "a.npz", members)
    data = bytearray(path.read_bytes())
    data[data.find(members["shape"].tobytes()) + 77] ^= 4
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.npz: member 'shape'.*CRC"):
        open_source(path).check()


# ---- hostile pickles ----------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
def test_pickles_run_nothing(tmp_path: Path, nested: bool) -> None:
    canary = tmp_path / "canary"
    members = camerahmr()
    payload = np.empty(8, object)
    payload[:] = [[{"a": (Canary(canary),)}] if nested else Canary(canary)] * 8
    members["imgname"] = payload
    path = write_npz(tmp_path / "a.npz", members)
    with pytest.raises(InputError, match=r"a\.npz: member 'imgname': refused: .*open"):
        open_source(path)
    assert not canary.exists()
    # The file is live: an ordinary load does run it.
    np.load(path, allow_pickle=True)["imgname"]
    assert canary.exists()


# ---- names of files -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        ("coco-release_skel.npz", "coco-release-skel.npz"),
        ("coco-release-skel.npz", "coco-release_skel.npz"),
        ("mpi-inf-release-skel-no-trans.npz", "mpi-inf-release_skel.npz"),
        ("aic-release_skel_fit.npz", "aic-release_skel.npz"),
        ("aic-release/aic-release_skel_fit.npz", "aic-release_skel.npz"),
        ("insta-1-release.npz", "insta1-release.npz"),
        ("coco_release.npz", "coco-release.npz"),
    ],
)
def test_spellings(tmp_path: Path, there: str, asked: str) -> None:
    path = write_npz(tmp_path / there, hmr_skel() if "skel" in there else camerahmr())
    source = open_source(tmp_path / asked)
    assert source.path == path
    assert source.format == ("hmr-skel" if "skel" in there else "camerahmr")


def test_spellings_never_guess(tmp_path: Path) -> None:
    write_npz(tmp_path / "coco-release-skel.npz", hmr_skel())
    with pytest.raises(InputError, match="no such file"):
        open_source(tmp_path / "coco-release.npz")
    write_npz(tmp_path / "coco-release-skel-no-trans.npz", hmr_skel())
    with pytest.raises(InputError, match="several spellings"):
        open_source(tmp_path / "coco-release_skel.npz")


def test_options_are_checked(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", camerahmr())
    for wrong in ({"colour": "red"}, {"format": "hdf5"}, {"smpl_gender": "any"}, {"max_beta": 0}):
        with pytest.raises(InputError, match=r"expected|knows"):
            open_source(path, **wrong)
    with pytest.raises(InputError, match="needed"):
        open_source(path, skip="shape")
    odd = write_npz(tmp_path / "b.npz", {**camerahmr(), "x": np.ones(3)})
    with pytest.raises(InputError, match="'x': 3 rows, 'pose_cam' has 8"):
        open_source(odd)
    assert list(open_source(odd, skip="x").fields) == list(camerahmr())
    with pytest.raises(IndexError):
        open_source(path).read(5, 9)
