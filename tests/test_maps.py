"""Correspondence files of others become maps; what is none is refused in one line."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from pipeline.readers.pickles import PickleError
from pipeline.readers.torch_files import load_torch_file
from skel_fit.bodies.map_files import find_map
from skel_fit.bodies.surface_map import SurfaceMap
from skel_fit.calibration import read_calibrations
from skel_fit.default_body import default_body_directory
from skel_fit.errors import ModelFileError
from skel_fit.model_files import load_skel, load_smpl
from stages import cli

WIDTH = 10_475


@pytest.fixture
def models(tmp_path, golden_models) -> Path:
    """A folder with a SKEL that is not the stand-in."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "skel_male.pkl").symlink_to(golden_models / "skel_male.pkl")
    return folder


@pytest.fixture(scope="module")
def entries() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns, values of two entries a row."""
    rng = np.random.default_rng(4)
    rows = np.repeat(np.arange(6890), 2)
    first = rng.integers(0, WIDTH // 2, 6890)
    columns = np.stack((first, first + 1), axis=1).reshape(-1)
    share = rng.random(6890)
    return rows, columns, np.stack((share, 1 - share), axis=1).reshape(-1)


def write_pt(path: Path, entries) -> Path:
    rows, columns, values = entries
    torch.save(
        torch.sparse_coo_tensor(
            torch.as_tensor(np.stack((rows, columns))), torch.as_tensor(values).float(),
            (6890, WIDTH),
        ),
        path,
    )  # fmt: skip
    return path


def write_pkl(path: Path, entries) -> Path:
    """As SMPL-X's correspondences: as many columns again, for normals."""
    rows, columns, values = entries
    rows, columns = np.append(rows, 5), np.append(columns, WIDTH + 7)
    matrix = sparse.csr_matrix((np.append(values, 0.5), (rows, columns)), (6890, 2 * WIDTH))
    path.write_bytes(pickle.dumps({"mtx": matrix}))
    return path


def write_ply(path: Path, vertices: int, faces: np.ndarray) -> Path:
    head = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {vertices}\nproperty float x\n"
        f"property float y\nproperty float z\nelement face {len(faces)}\n"
        "property list uchar int vertex_indices\nend_header\n"
    )
    rows = np.zeros(len(faces), [("n", "u1"), ("i", "<i4", 3)])
    rows["n"], rows["i"] = 3, faces
    path.write_bytes(head.encode() + np.zeros((vertices, 3), "<f4").tobytes() + rows.tobytes())
    return path


@pytest.mark.parametrize("write", [write_pt, write_pkl])
def test_sparse_matrices_become_maps(models, tmp_path, entries, write, capsys):
    """The matrix times the source is the map's answer; the verb says what it made."""
    file = write(tmp_path / f"smplx2smpl{'.pt' if write is write_pt else '.pkl'}", entries)
    assert cli.run(["maps", "add", str(file), "--models", str(models)]) == 0
    assert "smplx, 10475 vertices" in capsys.readouterr().out
    name, found = find_map(models, "smplx", load_skel(models, "male"))
    assert name == "smplx.npz"
    source = np.random.default_rng(1).normal(size=(1, WIDTH, 3))
    rows, columns, values = entries
    matrix = sparse.csr_matrix((values, (rows, columns)), (6890, WIDTH))
    np.testing.assert_allclose(found.apply(source)[0], matrix @ source[0], atol=1e-6)
    assert cli.run(["maps", "list", "--models", str(models)]) == 0
    assert "fits the SKEL of this folder" in capsys.readouterr().out


def test_triangle_numbers_become_a_map(models, tmp_path, capsys):
    """mhr2smpl_mapping.npz with the triangles of the PLY beside it."""
    faces = np.stack((np.arange(100), np.arange(1, 101), np.arange(2, 102)), axis=1)
    write_ply(tmp_path / "mhr_face_mask.ply", 18_439, faces)
    file = tmp_path / "mhr2smpl_mapping.npz"
    number = np.arange(6890) % 100
    np.savez(file, triangle_ids=number, baryc_coords=np.tile((0.2, 0.3, 0.5), (6890, 1)))
    assert cli.run(["maps", "add", str(file), "--models", str(models)]) == 0
    found = SurfaceMap.read(models / "maps" / "mhr.npz")
    assert (found.source, found.source_vertices) == ("mhr", 18_439)
    np.testing.assert_array_equal(found.columns, faces[number])
    no_list = b"format binary_little_endian 1.0\nelement vertex 0\nelement face 0\n"
    for header in (b"", no_list):
        ply = tmp_path / "mhr_face_mask.ply"
        ply.write_bytes(b"ply\n" + header + b"end_header\n")
        assert cli.run(["maps", "add", str(file), "--models", str(models)]) == 5
        assert "not a binary PLY file of triangles" in capsys.readouterr().err


class _Harm:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def _heavy(entries):
    rows, columns, values = entries
    return rows, columns, values * 1.1


def _negative(entries):
    rows, columns, values = entries
    values = values.copy()
    values[:2] = (-0.5, 1.5)
    return rows, columns, values


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda p, e: write_pt(p, _heavy(e)), "adds up to 1 within 0.1"),
        (lambda p, e: write_pt(p, _negative(e)), "entries of at least 0"),
        (lambda p, e: torch.save(torch.zeros(6890, 7), p), "no sparse tensor"),
        (lambda p, e: torch.save(torch.zeros(5, 7).to_sparse(), p), "a matrix of (5, 7)"),
        (lambda p, e: torch.save({"a": _Harm()}, p), "not a correspondence file"),
        (lambda p, e: p.write_bytes(pickle.dumps({"mtx": _Harm()})), "refused"),
        (lambda p, e: p.write_bytes(b"nothing"), "not a"),
        (lambda p, e: p.write_bytes(pickle.dumps({"other": 1})), "no sparse matrix under mtx"),
    ],
)
def test_what_is_no_correspondence_is_refused(
    models, tmp_path, entries, monkeypatch, capsys, spoil, words
):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file.bin"
    spoil(file, entries)
    assert cli.run(["maps", "add", str(file), "--models", str(models)]) == 5
    text = capsys.readouterr().err
    assert words in text and str(file) in text and text.count("\n") == 1
    assert not Path("harmed").exists() and not (models / "maps").exists()


def test_a_correspondence_to_smpl_is_none_to_the_stand_in(tmp_path, entries, capsys):
    file = write_pt(tmp_path / "a.pt", entries)
    folder = str(default_body_directory())
    assert cli.run(["maps", "add", str(file), "--models", folder]) == 5
    assert "holds the licence-free stand-in" in capsys.readouterr().err


def test_an_npz_of_other_members_is_refused(models, tmp_path, capsys):
    file = tmp_path / "a.npz"
    with zipfile.ZipFile(file, "w") as archive:
        stream = io.BytesIO()
        np.save(stream, np.zeros(3))
        archive.writestr("triangle_ids.npy", stream.getvalue())
    assert cli.run(["maps", "add", str(file), "--models", str(models)]) == 5
    assert "triangle_ids (6890) and baryc_coords" in capsys.readouterr().err


def repacked(path: Path) -> Path:
    """The zip with members compressed as zipfile can and numpy never does, and damaged."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    path = path.with_name(f"repacked{path.suffix}")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
        places = [info.header_offset + 60 + len(info.filename) for info in archive.infolist()]
    data = bytearray(path.read_bytes())
    for place in places:
        data[place : place + 8] = bytes(8)
    path.write_bytes(data)
    return path


def test_zips_are_stored_or_deflated(tmp_path, entries):
    """Other ways of packing raise errors of their own: each of these readers refuses them."""
    np.savez(tmp_path / "a.npz", v_template=np.zeros((6890, 3)))
    plain, tensors = tmp_path / "a.npz", write_pt(tmp_path / "a.pt", entries)
    for file, read in (
        (plain, SurfaceMap.read),
        (plain, read_calibrations),
        (plain, lambda path: load_smpl(path, "male")),
        (tensors, load_torch_file),
    ):
        with pytest.raises((ModelFileError, PickleError), match="compressed in a way") as caught:
            read(repacked(file))
        assert str(caught.value).count("\n") == 0
