"""Reading official SKEL and SMPL files: formats, clear refusals, hostile files."""

import io
import os
import pickle
import shutil
import struct
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import smplx
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import skel_fit
from skel_fit.errors import ModelFileError
from skel_fit.model_files import load_joint_regressor, load_skel, load_smpl, model_file

SMALL_SKELETON = 40


@pytest.fixture(scope="module")
def skel_dict(golden_skel_dict):
    """Golden contents with a small bone mesh and the correctives in float32."""
    data = dict(golden_skel_dict)
    n = SMALL_SKELETON
    data["skel_template_v"] = data["skel_template_v"][:n]
    data["skel_template_f"] = data["skel_template_f"][: n - 2]
    for key in ("skel_weights", "skel_weights_rigid"):
        data[key] = sp.coo_matrix(data[key].toarray()[:n])
    return data


@pytest.fixture
def write_skel(skel_dict, tmp_path):
    """Writes skel_male.pkl with some entries replaced (None: removed) and returns its path."""

    def write(protocol=4, **changes):
        data = {**skel_dict, **changes}
        data = {key: value for key, value in data.items() if value is not None}
        path = tmp_path / "skel_male.pkl"
        path.write_bytes(pickle.dumps(data, protocol=protocol))
        return path

    return write


def write_npz(path, data):
    arrays = {k: v.toarray() if sp.issparse(v) else v for k, v in data.items()}
    np.savez(path, **{k: v for k, v in arrays.items() if isinstance(v, np.ndarray)})
    return path


def refusal(path, loader=load_skel, gender="male"):
    with pytest.raises(ModelFileError) as caught:
        loader(path, gender)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


# ---- which file --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "gender", "name"),
    [
        ("skel", "male", "skel_male.pkl"),
        ("skel", "female", "skel_models_v1.1/skel_female.pkl"),
        ("smpl", "neutral", "smpl/SMPL_NEUTRAL.pkl"),
        ("smpl", "male", "SMPL_MALE.pkl"),
        ("smpl", "female", "SMPL_FEMALE.npz"),
        ("smpl", "neutral", "basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl"),
        ("smpl", "female", "basicmodel_f_lbs_10_207_0_v1.1.0.pkl"),
        ("smpl", "male", "basicModel_m_lbs_10_207_0_v1.0.0.pkl"),
    ],
)
def test_official_names_are_found_in_a_folder(tmp_path, kind, gender, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"x")
    assert model_file(tmp_path, kind, gender) == file
    assert model_file(str(file), kind, gender) == file


def test_missing_files_say_what_to_do(tmp_path):
    for kind, word in (("skel", "skel_male.pkl"), ("smpl", "SMPL_MALE.pkl")):
        with pytest.raises(ModelFileError, match=rf"{word}.*download"):
            model_file(tmp_path, kind, "male")
        with pytest.raises(ModelFileError, match=r"no such file or folder.*download"):
            model_file(tmp_path / "nowhere", kind, "male")
    with pytest.raises(ModelFileError, match="no neutral SKEL"):
        model_file(tmp_path, "skel", "neutral")
    with pytest.raises(ModelFileError, match="expected one of neutral, male, female"):
        model_file(tmp_path, "smpl", "robot")
    with pytest.raises(ModelFileError, match="expected kind"):
        model_file(tmp_path, "mano", "male")


# ---- formats -----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol_reads_the_same(write_skel, skel_dict, protocol):
    # Text protocols are slow and large, so the correctives are cheap there.
    cheap = np.zeros((6890, 3, 207), np.float32) if protocol < 2 else skel_dict["posedirs"]
    skel = load_skel(write_skel(protocol, posedirs=cheap), "male")
    np.testing.assert_array_equal(
        skel.template.numpy(), skel_dict["skin_template_v"].astype(np.float32)
    )
    np.testing.assert_array_equal(skel.posedirs.numpy(), cheap)
    np.testing.assert_allclose(
        skel.joint_regressor.numpy(), skel_dict["J_regressor_osim"].toarray(), atol=1e-7
    )
    assert skel.gender == "male" and skel.path.name == "skel_male.pkl" and not skel.standin
    assert skel.parents[0] == -1 and len(skel.parents) == 24
    assert skel.faces.dtype == torch.int64 and skel.skeleton_weights.shape == (SMALL_SKELETON, 24)


@pytest.mark.parametrize("form", ["csr", "csc", "dense", "old scipy", "duplicates", "sparse array"])
def test_weights_in_any_form(write_skel, skel_dict, form):
    weights = skel_dict["skin_weights"].tocoo()
    if form in ("csr", "csc"):
        stored = weights.asformat(form)
    elif form == "dense":
        stored = np.asfortranarray(weights.toarray())
    elif form == "sparse array":
        stored = sp.coo_array(weights)
    elif form == "duplicates":
        twice = (np.tile(weights.data / 2, 2), (np.tile(weights.row, 2), np.tile(weights.col, 2)))
        stored = sp.coo_matrix(twice, shape=weights.shape)
    else:
        stored = weights
    path = write_skel(skin_weights=stored)
    if form == "old scipy":
        path.write_bytes(old_scipy(skel_dict))
    found = load_skel(path, "male", dtype=torch.float64).skin_weights.numpy()
    np.testing.assert_allclose(found, weights.toarray(), atol=1e-15)


def old_scipy(data):
    """Pickle as scipy < 1.8 wrote it: module scipy.sparse.coo, fields row and col."""
    module = types.ModuleType("scipy.sparse.coo")

    class coo_matrix:
        def __init__(self, matrix):
            self._shape, self.data = matrix.shape, matrix.data
            self.row, self.col = matrix.row, matrix.col
            self.has_canonical_format, self.maxprint = True, 50

    coo_matrix.__module__, coo_matrix.__qualname__ = "scipy.sparse.coo", "coo_matrix"
    module.coo_matrix = coo_matrix
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "scipy.sparse.coo", module)
        old = {k: coo_matrix(v.tocoo()) if sp.issparse(v) else v for k, v in data.items()}
        return pickle.dumps(old, protocol=2)


class _Python2Pickler(pickle._Pickler):
    """Writes byte and text strings as Python 2 does: one 8-bit string type."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def _save_8bit(self, value):
        data = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)

    dispatch[bytes] = _save_8bit
    dispatch[str] = _save_8bit


def python2_smpl(data):
    """Official-style SMPL pickle: Python 2 strings, chumpy values."""
    chumpy, ch, reordering = (
        types.ModuleType(n) for n in ("chumpy", "chumpy.ch", "chumpy.reordering")
    )

    class Ch:
        def __init__(self, x):
            self.x = x

    class Select:
        def __init__(self, a, idxs, preferred_shape):
            self.a, self.idxs, self.preferred_shape = a, idxs, preferred_shape

    Ch.__module__, Ch.__qualname__ = "chumpy.ch", "Ch"
    Select.__module__, Select.__qualname__ = "chumpy.reordering", "Select"
    ch.Ch, reordering.Select = Ch, Select
    full = np.concatenate((data["shapedirs"], np.zeros((6890, 3, 2))), 2)
    index = np.arange(full.size).reshape(full.shape)[:, :, :10].ravel()
    old = {
        **data,
        "shapedirs": Select(Ch(full), index, (6890, 3, 10)),
        "v_template": Ch(data["v_template"]),
        "posedirs": Ch(np.asfortranarray(data["posedirs"].astype(np.float32))),
    }
    with pytest.MonkeyPatch.context() as patch:
        for module in (chumpy, ch, reordering):
            patch.setitem(sys.modules, module.__name__, module)
        stream = io.BytesIO()
        _Python2Pickler(stream, protocol=2).dump(old)
    return stream.getvalue()


def smpl_layer_call(smpl, batch=3):
    generator = torch.Generator().manual_seed(2)
    sizes = {"betas": 10, "global_orient": 3, "body_pose": 69, "transl": 3}
    inputs = {k: 0.3 * torch.randn(batch, n, generator=generator) for k, n in sizes.items()}
    with torch.no_grad():
        return smpl(**inputs)


@pytest.mark.parametrize("form", ["pickle", "npz", "python 2 with chumpy", "300 betas"])
def test_smpl_layer_equals_the_one_smplx_loads(
    golden_models, golden_smpl_dict, tmp_path, capfd, form
):
    path = tmp_path / "SMPL_MALE.pkl"
    if form == "pickle":
        shutil.copy(golden_models / path.name, path)
    elif form == "npz":
        path = write_npz(tmp_path / "SMPL_MALE.npz", golden_smpl_dict)
    elif form == "300 betas":
        extra = np.ones((6890, 3, 290), np.float32)
        directions = np.concatenate((golden_smpl_dict["shapedirs"], extra), 2)
        path.write_bytes(pickle.dumps({**golden_smpl_dict, "shapedirs": directions}, protocol=2))
    else:
        path.write_bytes(python2_smpl(golden_smpl_dict))
    smpl = load_smpl(tmp_path, "male")
    assert isinstance(smpl, smplx.SMPL) and smpl.num_betas == 10 and smpl.path == path
    assert list(smpl.parameters()) == [] and smpl.parents[0] == -1 and not smpl.standin
    assert "WARNING" not in capfd.readouterr().out
    found = smpl_layer_call(smpl)
    expected = smpl_layer_call(smplx.SMPL(str(golden_models / "SMPL_MALE.pkl"), batch_size=3))
    assert not found.vertices.requires_grad
    np.testing.assert_allclose(found.vertices.numpy(), expected.vertices.numpy(), atol=2e-6)
    np.testing.assert_allclose(found.joints.numpy(), expected.joints.numpy(), atol=2e-6)


def test_layers_work_for_any_batch_and_dtype(golden_models):
    smpl = load_smpl(golden_models, "male", dtype=torch.float64)
    assert smpl.v_template.dtype == torch.float64 and smpl.faces.shape == (13776, 3)
    for batch in (1, 2, 5):
        zeros = [torch.zeros(batch, n, dtype=torch.float64) for n in (10, 3, 69)]
        out = smpl(betas=zeros[0], global_orient=zeros[1], body_pose=zeros[2])
        assert out.vertices.shape == (batch, 6890, 3)


def test_standin_files_are_marked(write_skel, golden_smpl_dict, tmp_path):
    assert load_skel(write_skel(standin="default body"), "male").standin
    path = tmp_path / "SMPL_MALE.pkl"
    path.write_bytes(pickle.dumps({**golden_smpl_dict, "standin": True}))
    assert load_smpl(path, "male").standin


def test_python_object_arrays_in_unused_entries_do_not_matter(write_skel):
    ragged = np.array([{"a": 1}, [2]], dtype=object)
    assert load_skel(write_skel(pose_training_info=ragged), "male").gender == "male"


def test_public_names_of_the_package_are_found():
    assert all(getattr(skel_fit, name) is not None for name in skel_fit.__all__)
    assert skel_fit.load_skel is load_skel
    with pytest.raises(AttributeError, match="no attribute 'load_smplx'"):
        skel_fit.load_smplx  # noqa: B018


# ---- clear refusals ----------------------------------------------------------------------------


def test_wrong_versions(write_skel, skel_dict):
    assert "key 'version': expected version '1.1.1', found '1.0'" in refusal(
        write_skel(version="1.0")
    )
    assert "key 'version': expected version '1.1.1', found no such key" in refusal(
        write_skel(version=None)
    )
    old = refusal(write_skel(version=None, weights=skel_dict["skin_weights"], skin_weights=None))
    assert "older SKEL (v1.0)" in old


@pytest.mark.parametrize(
    "key",
    ["skin_template_v", "skin_template_f", "skel_template_v", "skel_template_f", "shapedirs",
     "posedirs", "J_regressor_osim", "per_joint_rot", "skin_weights", "skel_weights",
     "skel_weights_rigid", "osim_kintree_table", "apose_rel_transfo"],
)  # fmt: skip
def test_missing_keys(write_skel, key):
    message = refusal(write_skel(**{key: None}))
    assert f"key '{key}': expected" in message and "found no such key" in message


def changed(array, index, value):
    array = np.array(array.toarray() if sp.issparse(array) else array)
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("key", "change", "expected", "found"),
    [
        ("skin_template_v", lambda a: a[:100], "(6890, 3)", "(100, 3)"),
        ("shapedirs", lambda a: a[:, :, :8], "(6890, 3, >=10)", "(6890, 3, 8)"),
        ("posedirs", lambda a: a[:, :, :9], "(6890, 3, 207)", "(6890, 3, 9)"),
        ("skin_weights", lambda a: a.tocsr()[:, :20], "(6890, 24)", "(6890, 20)"),
        ("skel_weights", lambda a: a.tocsr()[:7], f"({SMALL_SKELETON}, 24)", "(7, 24)"),
        ("skel_template_v", lambda a: a[:0], "(N, 3)", "(0, 3)"),
        ("skin_template_v", lambda a: changed(a, (5, 1), np.nan), "finite numbers", "1 that"),
        ("J_regressor_osim", lambda a: changed(a, (3, 8), np.inf), "finite numbers", "1 that"),
        ("per_joint_rot", lambda a: changed(a, (4, 0, 0), 0.9), "orthonormal", "entry 4 (calcn_r)"),
        ("per_joint_rot", lambda a: -a, "rotations", "reflection at entry 0"),
        ("apose_rel_transfo", lambda a: changed(a, (2, 1, 1), 2.0), "orthonormal", "entry 2"),
        ("skin_template_f", lambda a: changed(a, (0, 0), 6890), "0..6889", "..6890"),
        ("skin_template_f", lambda a: a.astype(float), "integers", "float64"),
        ("osim_kintree_table", lambda a: changed(a.astype(int), (0, 7), 3), "SKEL tree", "parents"),
        ("skin_weights", lambda a: changed(a, 11, 0.0), "positive sum", "none in 11"),
        ("skin_template_v", lambda a: "hello", "numbers of shape", "a str"),
        ("skin_template_v", lambda a: a.astype(object), "numbers of shape", "Python objects"),
        ("skin_template_v", lambda a: a.astype("U8"), "numbers of shape", "type"),
        ("joints_name", lambda a: a[:5], "24 names", "5"),
    ],
)
def test_wrong_contents(write_skel, skel_dict, key, change, expected, found):
    message = refusal(write_skel(**{key: change(skel_dict[key])}))
    assert f"key '{key}': expected" in message
    assert expected in message and found in message


def test_damaged_sparse_matrices(write_skel, skel_dict):
    for name, value in (("row", 6890), ("row", -1), ("col", 24)):
        weights = skel_dict["skin_weights"].tocoo().copy()
        getattr(weights, name)[3] = value
        assert "index out of range" in refusal(write_skel(skin_weights=weights))
    weights = skel_dict["skin_weights"].tocsc().copy()
    weights.indptr = weights.indptr[:-1].copy()
    assert "damaged index" in refusal(write_skel(skin_weights=weights))


def test_wrong_smpl_files(golden_smpl_dict, tmp_path):
    def written(**changes):
        path = tmp_path / "SMPL_MALE.pkl"
        path.write_bytes(pickle.dumps({**golden_smpl_dict, **changes}))
        return path

    tree = golden_smpl_dict["kintree_table"].copy()
    tree[0, 5] = 1
    assert "the SMPL tree" in refusal(written(kintree_table=tree), load_smpl)
    wide = np.zeros((6890, 52))
    message = refusal(written(weights=wide), load_smpl)
    assert "(6890, 24)" in message and "(6890, 52)" in message
    assert "no such key" in refusal(
        write_npz(tmp_path / "a.npz", {"v_template": np.zeros((6890, 3))}), load_smpl
    )


def test_files_that_are_no_models(tmp_path):
    path = tmp_path / "skel_male.pkl"
    for content in (b"", b"hello world", b"PK\x03\x04 not a zip", b"\x80\x04.", b"\x89HDF\r\n"):
        path.write_bytes(content)
        assert "refused" in refusal(path)
    path.write_bytes(pickle.dumps([1, 2, 3]))
    assert "expected a dictionary" in refusal(path)


# ---- npz ---------------------------------------------------------------------------------------


def rewritten_zip(source, target, name, content):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.namelist():
            new.writestr(item, content(old.read(item)) if item == name else old.read(item))
    return target


@pytest.fixture(scope="module")
def smpl_npz(golden_smpl_dict, tmp_path_factory):
    return write_npz(tmp_path_factory.mktemp("npz") / "SMPL_MALE.npz", golden_smpl_dict)


def test_truncated_npz(smpl_npz, tmp_path):
    path = tmp_path / "SMPL_MALE.npz"
    content = smpl_npz.read_bytes()
    for size in (10, len(content) // 2, len(content) - 10):
        path.write_bytes(content[:size])
        assert "refused" in refusal(path, load_smpl)


def test_npz_members_are_checked_before_they_are_read(smpl_npz, tmp_path):
    path = tmp_path / "SMPL_MALE.npz"

    def lie(data):
        return data.replace(b"(6890, 3)", b"(6891, 3)")

    message = refusal(rewritten_zip(smpl_npz, path, "v_template.npy", lie), load_smpl)
    assert "key 'v_template'" in message
    cut = refusal(rewritten_zip(smpl_npz, path, "weights.npy", lambda d: d[:-8]), load_smpl)
    assert "key 'weights'" in cut and "member of" in cut

    def objects(_):
        stream = io.BytesIO()
        np.save(stream, np.array([{}], dtype=object), allow_pickle=True)
        return stream.getvalue()

    message = refusal(rewritten_zip(smpl_npz, path, "f.npy", objects), load_smpl)
    assert "key 'f'" in message and "Python objects" in message


def test_npz_with_a_huge_header_is_refused_without_memory(smpl_npz, tmp_path):
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (6890, 3, 9999999999), }"
    text = header.encode().ljust(117) + b"\n"
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
    path = rewritten_zip(smpl_npz, tmp_path / "SMPL_MALE.npz", "shapedirs.npy", lambda _: member)
    assert "key 'shapedirs'" in refusal(path, load_smpl)


def test_npz_with_two_members_of_one_name(smpl_npz, tmp_path):
    path = tmp_path / "SMPL_MALE.npz"
    shutil.copy(smpl_npz, path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("weights.npy", b"")
    assert "two members" in refusal(path, load_smpl)


def test_npz_with_a_bad_checksum(smpl_npz, tmp_path):
    content = bytearray(smpl_npz.read_bytes())
    at = content.index(b"v_template.npy") + 4000
    content[at] ^= 0xFF
    path = tmp_path / "SMPL_MALE.npz"
    path.write_bytes(bytes(content))
    assert "key 'v_template'" in refusal(path, load_smpl)


# ---- hostile pickles ---------------------------------------------------------------------------


def short_string(text):
    return b"\x8c" + bytes([len(text)]) + text.encode()


def stack_global(module, name):
    return short_string(module) + short_string(name) + b"\x93"


class _Runs:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def hostile(marker: Path) -> dict[str, bytes]:
    """Pickles that would create `marker`, exhaust memory or bend our own classes."""
    touch = f"open({str(marker)!r}, 'w').close()"
    command = f"touch {marker}"
    argument = b"(" + b"X" + struct.pack("<I", len(command)) + command.encode() + b"t"
    array = stack_global("numpy", "ndarray")
    core = "numpy._core.multiarray"
    return {
        "reduce": pickle.dumps({"version": _Runs(os.system, command)}),
        "exec": pickle.dumps(_Runs(exec, touch)),
        "eval, protocol 0": pickle.dumps(_Runs(eval, touch), protocol=0),
        "inside an array": pickle.dumps(np.array([_Runs(os.system, command)], dtype=object)),
        "global": b"cposix\nsystem\n" + argument + b"R.",
        "inst": b"(X" + struct.pack("<I", len(command)) + command.encode() + b"iposix\nsystem\n.",
        "obj": b"(cposix\nsystem\nX" + struct.pack("<I", len(command)) + command.encode() + b"o.",
        "dotted name": b"\x80\x04" + stack_global("numpy", "ndarray.tofile") + b".",
        "getattr": b"\x80\x04" + stack_global("builtins", "getattr") + b")R.",
        "allowed module, other name": b"\x80\x04" + stack_global(core, "fromfile") + b")R.",
        "module of ours": b"\x80\x04" + stack_global("skel_fit.model_files", "load_skel") + b")R.",
        "numpy load": b"\x80\x04" + stack_global("numpy", "load") + b")R.",
        "name that is no text": b"\x80\x04]]\x93.",
        "state for a class": b"\x80\x04" + array + b"}" + short_string("fill") + b"Nsb.",
        "slot state for a class": b"\x80\x04" + array + b"N}" + short_string("numpy")
        + b"Ns\x86b.",
        "state for a function": b"\x80\x04" + stack_global("_codecs", "encode") + b"}"
        + short_string("__globals__") + b"Nsb.",
        "items for a class": b"\x80\x04" + array + b"K\x01a.",
        "call of a dictionary": b"\x80\x04})R.",
        "newobj of a function": b"\x80\x04" + stack_global("_codecs", "encode") + b")\x81.",
        "persistent id": b"Pcommand\n.",
        "binary persistent id": b"\x80\x04K\x01Q.",
        "extension": b"\x82\x01.",
        "out-of-band buffer": b"\x80\x05\x97.",
        "huge memo": b"\x80\x04}r\xff\xff\xff\xff.",
        "huge bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
        "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
        "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"}.",
        "void type": b"\x80\x04" + stack_global("numpy", "dtype") + short_string("V8")
        + b"\x85R.",
        "type of a class": b"\x80\x04" + stack_global("numpy", "dtype") + array + b"\x85R.",
        "array of another class": b"\x80\x04" + stack_global(core, "_reconstruct")
        + stack_global("numpy", "dtype") + b"\x85R.",
        "stack underflow": b"\x80\x04R.",
        "mark underflow": b"\x80\x04u.",
        "unhashable key": b"\x80\x04}]Ns.",
    }  # fmt: skip


HOSTILE_NAMES = list(hostile(Path("marker")))


def load_24_joints(path, _gender):
    return load_joint_regressor(path, 24)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("loader", [load_skel, load_smpl, load_24_joints])
def test_hostile_pickles_are_refused_and_run_nothing(tmp_path, monkeypatch, name, loader):
    marker = tmp_path / "marker"
    path = tmp_path / "model.pkl"
    path.write_bytes(hostile(marker)[name])
    imported = []
    monkeypatch.setattr("builtins.__import__", spy(imported, __import__))
    message = refusal(path, loader)
    monkeypatch.undo()
    assert not marker.exists()
    assert "refused" in message or "expected" in message
    assert not {"posix", "os", "subprocess"} & set(imported)


def spy(calls, function):
    def called(name, *args, **kwargs):
        calls.append(name)
        return function(name, *args, **kwargs)

    return called


def test_the_marker_test_can_fail(tmp_path):
    # The same bytes do run when an ordinary unpickler reads them.
    marker = tmp_path / "marker"
    pickle.loads(hostile(marker)["global"])
    assert marker.exists()


def test_hostile_entry_beside_good_ones(write_skel, tmp_path):
    marker = tmp_path / "marker"
    path = write_skel(notes=_Runs(os.system, f"touch {marker}"))
    assert "refused: the pickle asks for" in refusal(path) and not marker.exists()


# ---- joint regressors --------------------------------------------------------------------------


REGRESSOR = np.random.default_rng(0).random((24, 6890)) * (np.arange(6890) < 40)
REGRESSOR_FORMS = {
    "dense.pkl": lambda path: path.write_bytes(pickle.dumps(REGRESSOR, protocol=2)),
    "sparse.pkl": lambda path: path.write_bytes(pickle.dumps(sp.csc_matrix(REGRESSOR))),
    "plain.npy": lambda path: np.save(path, REGRESSOR),
    "fortran.npy": lambda path: np.save(path, np.asfortranarray(REGRESSOR)),
}


@pytest.mark.parametrize("name", REGRESSOR_FORMS)
def test_joint_regressors(tmp_path, name):
    REGRESSOR_FORMS[name](tmp_path / name)
    found = load_joint_regressor(tmp_path / name, 24)
    assert found.dtype == np.float64 and np.array_equal(found, REGRESSOR)
    with pytest.raises(ModelFileError, match=r"of shape \(19, 6890\), found shape \(24, 6890\)"):
        load_joint_regressor(tmp_path / name, 19)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (np.full((24, 6890), np.nan), "finite numbers, found 165360 that are not"),
        (np.full((24, 6890), "a"), "found type <U1"),
        (np.full((24, 6890), None), "found an array of Python objects"),
        ({"a": REGRESSOR}, "found a dict"),
        (sp.coo_matrix((10**7, 10**7)), "found shape (10000000, 10000000)"),
    ],
)
def test_wrong_joint_regressors(tmp_path, content, expected):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content))
    assert expected in refusal(path, load_24_joints)


def test_damaged_joint_regressors(tmp_path):
    assert "cannot be read" in refusal(tmp_path / "absent.npy", load_24_joints)
    path = tmp_path / "a.npy"
    np.save(path, np.array([[print]], dtype=object), allow_pickle=True)
    assert "Python objects; save it as plain numbers" in refusal(path, load_24_joints)
    np.save(path, REGRESSOR)
    path.write_bytes(path.read_bytes()[:-8])
    assert "an array whose header says" in refusal(path, load_24_joints)


# ---- damaged files -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_pickles():
    contents = {
        "version": "1.1.1",
        "skin_template_v": np.ones((4, 3)),
        "skin_template_f": np.ones((2, 3), np.uint32),
        "weights": sp.csc_matrix(np.eye(3)),
        "skin_weights": sp.coo_matrix(np.eye(3)),
        "number": np.float64(2),
        "names": ["a", "b"],
    }
    return [pickle.dumps(contents, protocol=p) for p in range(6)]


@given(data=st.data())
@settings(max_examples=300)
def test_damaged_pickles_only_ever_raise_model_file_errors(small_pickles, tmp_path_factory, data):
    content = bytearray(data.draw(st.sampled_from(small_pickles)))
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    content = content[:cut] if data.draw(st.booleans()) else content
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(bytes(content))
    refusal(path)
