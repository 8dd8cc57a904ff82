"""Every member of every format in turn replaced by what it should not be: one line, never more."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.readers import FORMATS, open_source
from tests import foreign_files as foreign
from tests import label_files
from tests.test_inputs import npz, pickled, saved

SAM = Path(__file__).parent / "data" / "bodies" / "img_subj01.npz"
Place = tuple[Any, ...]
FRAMES = 2
OPTIONS = {"moyo": {"template": "model"}, "bedlam": {"eleventh": "component"}}


def _meshes() -> dict[str, Any]:
    picture = ("imgname", "center", "scale", "cam_int", "gtkps")
    return {
        "vertices": np.random.default_rng(0).uniform(-0.8, 0.8, (3, 20, 3)),
        "body": np.array("mhr"),
        "identity": np.array([4, 4, 5]),
        "gender": np.array(["male", "male", "female"]),
        **{name: label_files.camerahmr(3)[name] for name in picture},
    }


def _sam() -> dict[str, Any]:
    names = ("pred_vertices", "pred_cam_t", "pred_keypoints_3d", "pred_keypoints_2d", "bbox")
    with np.load(SAM) as file:
        return {name: file[name] for name in names} | {"focal_length": np.array(2535.27)}


def _fit() -> dict[str, Any]:
    content = label_files.single_image(tensors=False)
    parameters = content["pred_smpl_parms"].item()
    return content | {"pred_smpl_parms": parameters, "verts": np.zeros((5, 3), "f4")}


def _write_fit(path: Path, content: dict[str, Any]) -> Path:
    wrapped = np.empty((), object)
    wrapped[()] = content.get("pred_smpl_parms")
    return npz(path, content | {"pred_smpl_parms": wrapped})


def _write_smpl(path: Path, content: dict[str, Any]) -> Path:
    with path.open("wb") as stream:
        np.savez(stream, **content)
    return path


def _write_tar(path: Path, content: dict[str, Any]) -> Path:
    return label_files.write_tar(path, {"a/1": [content]})


def _motion() -> dict[str, Any]:
    return foreign.bodies(FRAMES) | {"gender": np.array("male"), "fps": np.array(30.0)}


def _result_of_wham() -> dict[Any, Any]:
    person = foreign.wham(FRAMES)[0]
    return {0: {name: value for name, value in person.items() if name != "verts"}}


def _result_of_prompthmr() -> dict[str, Any]:
    person = foreign.prompthmr(FRAMES, tensors=False)["people"][1]
    return {"people": {1: {name: person[name] for name in ("frames", "smplx_cam")}}}


def _person() -> dict[str, Any]:
    names = ("body_pose", "betas", "has_body_pose", "center", "scale", "keypoints_2d")
    person = label_files.person(np.random.default_rng(2))
    return {name: person[name] for name in names}


def _sequence_of_emdb() -> dict[str, Any]:
    content = foreign.emdb(3)
    del content["camera"]["width"], content["camera"]["height"], content["bboxes"]["invalid_idxs"]
    read = ("gender", "good_frames_mask", "camera", "smpl", "kp2d", "bboxes")
    return {name: content[name] for name in read}


def _person_of_3dpw() -> dict[str, Any]:
    content = foreign.threedpw(FRAMES)
    content = {name: v[:1] if isinstance(v, list) else v for name, v in content.items()}
    unread = ("poses_60Hz", "trans_60Hz", "v_template_clothed", "img_frame_ids")
    return {name: value for name, value in content.items() if name not in unread}


def _labels_of_hmr_skel() -> dict[str, Any]:
    own = ("imgname", "poses", "betas", "skel_poses", "skel_betas", "skel_trans")
    content = label_files.hmr_skel(3)
    return {name: content[name] for name in (*own, "trans", "gtkps", "scale", "center", "cam_int")}


def _result_of_gvhmr() -> dict[str, Any]:
    content = foreign.gvhmr(FRAMES)
    return {name: content[name] for name in ("smpl_params_incam", "K_fullimg")}


CASES: dict[str, tuple[str, Callable[[], Any], Callable[[Path, Any], Path]]] = {
    "camerahmr": ("a.npz", lambda: label_files.camerahmr(3), npz),
    "hmr-skel": ("a.npz", _labels_of_hmr_skel, npz),
    "webdataset": ("a.tar", _person, _write_tar),
    "sequence": ("a.pkl", _motion, pickled),
    "single-image": ("a.npz", _fit, _write_fit),
    "3dpw": ("a.pkl", _person_of_3dpw, pickled),
    "emdb": ("a.pkl", _sequence_of_emdb, pickled),
    "wham": ("a.pkl", _result_of_wham, pickled),
    "amass": ("a.npz", lambda: foreign.amass(FRAMES), npz),
    "moyo": ("a.pkl", lambda: foreign.moyo(FRAMES), pickled),
    "bedlam": ("a.npz", lambda: foreign.bedlam(4), npz),
    "gvhmr": ("a.pt", _result_of_gvhmr, saved),
    "prompthmr": ("a.pkl", _result_of_prompthmr, pickled),
    "smpl-file": ("a.smpl", lambda: foreign.smplx_file(FRAMES), _write_smpl),
    "sam-3d-body": ("a.npz", _sam, npz),
    "vertices": ("a.npz", _meshes, npz),
}


def places(content: Any, start: Place = ()) -> Iterator[Place]:
    """Where values lie in nested dictionaries and lists, the containers too."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*start, key)
        if isinstance(value, dict) or (isinstance(value, list) and len(value) < 4):
            yield from places(value, (*start, key))


def replaced(content: Any, place: Place, value: Any) -> Any:
    """A copy with another value there."""
    spoilt = copy.deepcopy(content)
    inner = spoilt
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return spoilt


def at(content: Any, place: Place) -> Any:
    for key in place:
        content = content[key]
    return content


def wrong(value: Any, nested: bool) -> Iterator[tuple[str, Any]]:
    """What a member should not be. nested: the format may hold what is no array."""
    if nested:
        yield from (("nothing", None), ("dictionary", {}), ("word", "word"))
    if isinstance(value, dict | list):
        return
    array = np.asarray(value)
    yield "text", np.full(array.shape, "a")
    yield "empty", np.zeros((0, *array.shape[1:]))
    yield "rows of nothing", np.zeros((*array.shape[:1], 0))
    yield "points of nothing", np.zeros((*array.shape[:1], 0, 3))
    yield "one number more", np.zeros((*array.shape[:-1], (*array.shape, 1)[-1] + 1))
    yield "another rank", np.zeros((*array.shape, 1))
    yield "pairs", np.zeros((*array.shape[:1], 2))
    yield "two", np.array(["a", "b"])
    yield "one row short", np.asarray(value)[:-1] if array.ndim else np.zeros(2)
    yield "scalar", np.array(1.0)
    yield "truth", np.zeros(array.shape, bool)
    yield "zero", np.zeros(array.shape)
    yield "complex", np.zeros(array.shape, complex)
    if array.dtype.kind == "f":
        for name, number in (("nan", np.nan), ("huge", 1e38)):
            yield name, np.full_like(array, number)


def look(path: Path, format: str | None, gendered: bool) -> None:
    """All that a conversion asks of a source before it fits."""
    column: dict[str, Any] = {"smpl_gender": "column"} if gendered else {}
    source = open_source(path, format=format, **column, **OPTIONS.get(format or "", {}))
    source.check()
    source.gender_pairs()
    if source.body != "smpl":
        assert source.identities().shape == (source.rows,)
    rows = source.read(0, source.rows)
    assert len(rows.reasons) == source.rows > 0
    if rows.other is not None:
        good = rows.reasons == ""
        for name, values in rows.other.parameters.items():
            assert np.isfinite(values[good]).all(), name


@pytest.mark.parametrize("format", CASES)
def test_no_member_makes_more_than_one_line(tmp_path: Path, format: str) -> None:
    name, make, write = CASES[format]
    path, content = tmp_path / name, make()
    gendered = "gender" in content
    write(path, content)
    look(path, format, gendered)
    nested = write is not npz
    refused = tried = 0
    for place in list(places(content)):
        for what, value in wrong(at(content, place), nested):
            write(path, replaced(content, place, value))
            tried += 1
            try:
                look(path, format, gendered)
            except InputError as error:
                refused += 1
                assert "\n" not in str(error) and str(path) in str(error), (place, what)
            except Exception as error:
                raise AssertionError(f"{place} as {what}: {error!r}") from error
    assert tried > refused > tried / 4


def test_every_format_is_tried() -> None:
    assert {*CASES, "sam-3d-body-labels"} == set(FORMATS)  # parquet: tests/test_parquet_labels.py
