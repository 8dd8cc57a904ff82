"""Generated subsets of any size: manifests with `rows` and `seed`, their labels and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import open_dataset
from pipeline.demo import SEED, SPLITS, demo_columns, write_demo
from pipeline.manifest import load_manifest
from pipeline.takes import take
from skel_fit.default_body import default_body_directory
from stages import cli
from stages.regressor.config import load_recipe
from stages.regressor.data.rows import Place, load_collection
from tests.faults.harness import TRIVIAL, tree
from tests.regressor_files import ROWS as DEMO_ROWS
from tests.regressor_files import demo

ROWS, OWN_SEED = 64, 7
LABELS = "more/labels.npz"


def manifest(folder: Path, name: str = "more", image_root: str = "more", **source) -> Path:
    """A manifest of a generated subset in `folder`."""
    path = folder / f"{name}.yaml"
    content = {
        "name": name,
        "source": {"generator": "demo", "path": LABELS, **source},
        "image_root": image_root,
        "genders": {"smpl": "column", "skel": "column"},
        "models": "default-body",
        "shard_rows": 32,
    }
    path.write_text(json.dumps(content))
    return path


def run(
    capsys: pytest.CaptureFixture[str], verb: str, subset: Path, data: Path, *options: str | Path
) -> tuple[int, str, str]:
    """A command line in this process: (exit code, stdout, stderr)."""
    code = cli.run([verb, str(subset), "--data-root", str(data), "--quiet", *map(str, options)])
    found = capsys.readouterr()
    return code, found.out, found.err


def convert(capsys, subset: Path, root: Path, *options: str) -> tuple[int, str, str]:
    """Convert `subset` from root/data into root/out, with a fitter that costs nothing."""
    out = ("--out", root / "out", "--fitter", TRIVIAL, *options)
    return run(capsys, "convert", subset, root / "data", *out)


def test_rows_and_seed_of_the_manifest_make_the_labels(tmp_path: Path, capsys) -> None:
    subset = manifest(tmp_path, rows=ROWS, seed=OWN_SEED)
    code, out, err = convert(capsys, subset, tmp_path, "--dry-run")
    assert code == 0 and f"rows     {ROWS}\n" in out, err
    assert not (tmp_path / "data").exists() and not (tmp_path / "out").exists()
    code, _, err = convert(capsys, subset, tmp_path)
    assert code == 0, err
    assert len(open_dataset(tmp_path / "out")) == ROWS
    made = (tmp_path / "data" / LABELS).read_bytes()
    same, other = tmp_path / "same.npz", tmp_path / "other.npz"
    write_demo(same, default_body_directory(), rows=ROWS, seed=OWN_SEED)
    write_demo(other, default_body_directory(), rows=ROWS, seed=OWN_SEED + 1)
    assert made == same.read_bytes() != other.read_bytes()
    code, out, err = convert(capsys, subset, tmp_path)
    assert code == 0 and "0 converted now, 2 done before" in out, err


def test_labels_of_other_rows_or_seed_are_refused_and_left_alone(tmp_path: Path, capsys) -> None:
    labels = tmp_path / "data" / LABELS
    labels.parent.mkdir(parents=True)
    write_demo(labels, default_body_directory(), rows=ROWS, seed=OWN_SEED)
    before = tree(tmp_path / "data")
    cases = (
        (manifest(tmp_path, "rows", rows=ROWS + 1, seed=OWN_SEED), f"{ROWS} rows"),
        (manifest(tmp_path, "seed", rows=ROWS, seed=OWN_SEED + 1), "another seed"),
        (manifest(tmp_path, "default", rows=ROWS), f"rows of seed {SEED}"),
        (manifest(tmp_path, "whole", seed=OWN_SEED), "2400 rows of seed 7"),
    )
    for subset, message in cases:
        calls = (
            convert(capsys, subset, tmp_path),
            convert(capsys, subset, tmp_path, "--dry-run"),
            run(capsys, "demo-images", subset, tmp_path / "data"),
        )
        for code, _, err in calls:
            assert code == 5 and err.count("\n") == 1, err
            assert str(labels) in err and message in err and "remove the file" in err, err
    assert tree(tmp_path / "data") == before and not (tmp_path / "out").exists()
    labels.unlink()
    code, _, err = convert(capsys, cases[1][0], tmp_path)
    assert code == 0 and labels.is_file(), err


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", "columns", "objects", "array"])
def test_a_file_that_is_no_generated_label_file_is_refused(
    tmp_path: Path, capsys, content: bytes | str
) -> None:
    labels = tmp_path / "data" / LABELS
    labels.parent.mkdir(parents=True)
    if isinstance(content, bytes):
        labels.write_bytes(content)
    else:
        with labels.open("wb") as stream:
            if content == "columns":
                np.savez(stream, imgname=np.array(["a.jpg"]), frame=np.zeros(3))
            elif content == "objects":
                np.savez(stream, frame=np.array([{}]), pose_source=np.array([print]))
            else:
                np.save(stream, np.zeros(3))
    subset = manifest(tmp_path, rows=ROWS)
    for verb in ("convert", "demo-images"):
        code, _, err = run(capsys, verb, subset, tmp_path / "data")
        assert code == 5 and err.count("\n") == 1, err
        assert str(labels) in err and "remove the file" in err


def test_pictures_go_below_the_image_root_and_training_finds_them(tmp_path: Path, capsys) -> None:
    """Labels, record and pictures of two subsets of the same picture names do not meet."""
    subset, data = manifest(tmp_path, rows=ROWS, seed=OWN_SEED), tmp_path / "data"
    code, _, err = run(capsys, "demo-images", subset, data)
    assert code == 5 and "hmr-skel convert more" in err and err.count("\n") == 1
    assert convert(capsys, subset, tmp_path)[0] == 0
    code, out, err = run(capsys, "demo-images", subset, data)
    assert code == 0 and f"{ROWS} pictures in {data / 'more'}, {ROWS} rendered now" in out, err
    assert sorted(path.name for path in data.iterdir()) == ["more"]
    names = open_dataset(tmp_path / "out")["imgname"]
    assert sorted(p.relative_to(data / "more").as_posix() for p in data.rglob("*.jpg")) == sorted(
        names.tolist()
    )
    (data / "more" / str(names[5])).unlink()
    code, out, _ = run(capsys, "demo-images", subset, data)
    assert code == 0 and ", 1 rendered now" in out
    recipe = load_recipe("tiny")
    found = load_collection([Place(tmp_path / "out", None)], recipe.data)
    assert len(found.rows) == ROWS and not found.skipped
    assert all((data / "more" / str(name)).is_file() for name in found.rows.image)
    # Another seed dresses the same row otherwise: same names and sizes tell nothing of the demo's.
    record = json.loads((data / "more" / "demo" / "pictures.json").read_text())
    assert record["seed"] not in (0, OWN_SEED) and record["pictures"] == ROWS


def test_the_pictures_of_the_demo_are_those_that_were_always_rendered(
    capsys, tmp_path, tmp_path_factory
) -> None:
    """Without a seed in the manifest the pictures are those of picture seed 0, as in the demo."""
    data = demo(tmp_path_factory.getbasetemp()).data
    subset = manifest(tmp_path, rows=DEMO_ROWS, image_root="")
    subset.write_text(subset.read_text().replace(LABELS, "demo/demo-release.npz"))
    code, out, err = run(capsys, "demo-images", subset, data)
    assert code == 0 and f"{DEMO_ROWS} pictures in {data}, 0 rendered now" in out, err


def test_demo_large_trains_on_nothing_of_the_test_split_of_the_demo() -> None:
    large, small = load_manifest("demo-large"), load_manifest("demo")
    assert large.source.generated == {"rows": 12000, "seed": 20241, "takes": 3000}
    assert small.source.generated == {}
    assert large.source.path != small.source.path and large.image_root != small.image_root
    models = default_body_directory()
    seed = large.source.generated["seed"]
    ours, theirs = demo_columns(models, rows=1700, seed=seed), demo_columns(models, rows=1700)
    for split in ("train", "validation", "test"):
        chosen, others = ours["split"] == split, theirs["split"] == split
        assert set(ours["segment"][chosen]) == {k for k, s in enumerate(SPLITS) if s == split}
        assert set(ours["frame"][chosen]) == set(theirs["frame"][others])
    train, test = ours["split"] == "train", theirs["split"] == "test"
    assert not set(ours["frame"][train]) & set(theirs["frame"][test])
    for name in ("shape", "pose_cam", "trans_cam"):
        assert not {v.tobytes() for v in ours[name]} & {v.tobytes() for v in theirs[name]}


def test_rows_of_other_actors_join_and_change_no_other(tmp_path: Path, capsys) -> None:
    models = default_body_directory()
    own = demo_columns(models, rows=ROWS, seed=OWN_SEED)
    joined = demo_columns(models, rows=ROWS, seed=OWN_SEED, takes=90)
    for name, values in own.items():
        np.testing.assert_array_equal(joined[name][:ROWS], values)
    more = {name: values[ROWS:] for name, values in joined.items()}
    assert (joined["actor"][:ROWS] == "01").all() and len(more["actor"]) == 90
    by_actor = {(a, s) for a, s in zip(more["actor"].tolist(), more["split"].tolist(), strict=True)}
    assert len(by_actor) == len({actor for actor, _ in by_actor}) == 6
    tested = more["split"] == "test-actors"
    assert tested.any() and set(more["split"][~tested]) == {"train"}
    assert not set(more["activity"][tested]) & set(more["activity"][~tested])
    for row in np.flatnonzero(more["pose_source"] == "real")[::7]:
        known = take(str(more["take"][row])).poses[more["frame"][row]]
        np.testing.assert_allclose(more["pose_cam"][row, 3:], known[3:], atol=1e-8)
    # and a manifest makes, checks and refuses them like rows and seed
    subset = manifest(tmp_path, rows=ROWS, seed=OWN_SEED, takes=90)
    code, _, err = convert(capsys, subset, tmp_path)
    assert code == 0, err
    assert len(open_dataset(tmp_path / "out")) == ROWS + 90
    with np.load(tmp_path / "data" / LABELS) as file:
        np.testing.assert_array_equal(file["actor"], joined["actor"])
    other = manifest(tmp_path, "other", rows=ROWS, seed=OWN_SEED, takes=91)
    code, _, err = convert(capsys, other, tmp_path)
    assert code == 5 and f"{ROWS + 90} rows" in err and "91 of other actors" in err, err
