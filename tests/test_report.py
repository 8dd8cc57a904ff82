"""The report page: numbers against the columns, safety of the page, pictures of real fits."""

from __future__ import annotations

import base64
import html
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline import open_dataset
from pipeline.errors import InputError, OutputError
from skel_fit.anatomy import POSE_NAMES
from skel_fit.default_body import default_body_directory
from skel_fit.joint_limits import limits
from stages import wording
from stages.drawing import charts
from stages.drawing.pictures import ERROR_COLORS, Poser, error_colors
from stages.inspection.people import person, typical_and_worst
from stages.inspection.statistics import (
    angle_statistics,
    collect,
    error_statistics,
    genders,
    spread_worst,
)
from stages.report import report
from tests.demo_rows import EVIL, EVIL_SPLIT, REAL, convert_labels, fitted_demo
from tests.faults.harness import TRIVIAL, label_columns
from tests.label_files import amass

ROWS = 60
BAD_ROWS = (3, 17)
VOID = {"meta", "img", "input", "br", "line", "rect", "path"}


class _Page(HTMLParser):
    """Checks nesting and collects what a test may want to see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.sources: list[str] = []
        self.scripts = 0
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.scripts += tag == "script"
        self.ids |= {named["id"]} if "id" in named else set()
        self.links |= {named["href"]} if "href" in named else set()
        self.sources += [named["src"]] if "src" in named else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += f" {data}"

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


@pytest.fixture(scope="module")
def labels() -> dict[str, np.ndarray]:
    """Label columns with known segments and genders; two rows are broken."""
    columns = label_columns(ROWS)
    columns["pose_cam"][:, 4] = np.linspace(-1, 1.4, ROWS)  # an angle that meets a limit above 1
    for row in BAD_ROWS:
        columns["pose_cam"][row, 5] = np.nan
    columns["imgname"] = columns["imgname"].astype("<U60")
    pairs = [("male", "male"), ("female", "female"), ("neutral", "male"), ("neutral", "female")]
    columns["gender"] = np.array([pairs[row % 4][0] for row in range(ROWS)])
    columns["skel_gender"] = np.array([pairs[row % 4][1] for row in range(ROWS)])
    columns["segment"] = np.arange(ROWS) // 5
    columns["split"] = np.where(np.arange(ROWS) < 40, b"train", b"test")
    return columns


@pytest.fixture(scope="module")
def plain(tmp_path_factory, labels) -> Path:
    """Converted by a fitter whose results are known: error = 5 mm + |betas[0]| mm."""
    folder = tmp_path_factory.mktemp("plain")
    np.savez(folder / "labels.npz", **labels)
    return convert_labels(folder, "labels.npz", TRIVIAL)


@pytest.fixture(scope="module")
def expected(labels) -> np.ndarray:
    """(rows,) error in metres, NaN for rejected rows."""
    error = (0.005 + 0.001 * np.abs(labels["shape"][:, 0])).astype(np.float32)
    error[list(BAD_ROWS)] = np.nan
    return error.astype(np.float64)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    return fitted_demo(tmp_path_factory.getbasetemp())


def read(directory: Path) -> tuple[str, _Page]:
    text = (directory / "report.html").read_text(encoding="utf-8")
    return text, _Page(text)


def test_statistics_equal_those_of_the_columns(plain, expected, labels):
    columns = collect(open_dataset(plain))
    np.testing.assert_allclose(columns.error, expected, rtol=1e-6)
    good = expected[np.isfinite(expected)]
    every = error_statistics("all", columns, np.ones(ROWS, bool))
    assert (every.rows, every.fitted, every.limited) == (ROWS, ROWS - len(BAD_ROWS), 0)
    np.testing.assert_allclose(
        [every.mean, every.median, every.p95, every.p99, every.maximum],
        [good.mean(), *np.quantile(good, (0.5, 0.95, 0.99)), good.max()],
        rtol=1e-6,
    )
    nobody = error_statistics("none", columns, np.zeros(ROWS, bool))
    assert nobody.rows == 0
    assert nobody.mean is None


def test_gender_pairs_stand_apart(plain, expected):
    found = {item.name: item for item in genders(collect(open_dataset(plain)))}
    assert list(found) == ["all rows", "same gender", "neutral → female", "neutral → male"]
    kind = np.arange(ROWS) % 4
    for name, chosen in (
        ("same gender", kind < 2), ("neutral → male", kind == 2), ("neutral → female", kind == 3)
    ):  # fmt: skip
        assert found[name].rows == chosen.sum()
        assert found[name].mean == pytest.approx(np.nanmean(expected[chosen]), rel=1e-6)


def test_angles_count_limit_hits_and_spread(plain, labels):
    found = angle_statistics(collect(open_dataset(plain)), "default")
    assert [item.name for item in found] == list(POSE_NAMES)
    good = np.setdiff1d(np.arange(ROWS), BAD_ROWS)
    poses = labels["pose_cam"][good, :46]
    np.testing.assert_array_equal([item.hits for item in found], (poses > 1.0).sum(axis=0))
    degrees = np.degrees(poses * 0.5)  # what the fitter makes of them
    for item, values in zip(found, degrees.T, strict=True):
        low, median, high = np.quantile(values, (0.01, 0.5, 0.99))
        np.testing.assert_allclose((item.p01, item.median, item.p99), (low, median, high), 1e-5)
        assert item.deviation == pytest.approx(values.std(), rel=0.02)
    knee = POSE_NAMES.index("knee_angle_r")
    assert found[knee].limit_high == pytest.approx(np.degrees(limits("default")[knee, 1]))
    free = angle_statistics(collect(open_dataset(plain)), "none")[knee]
    assert np.isinf(free.limit_high)


def test_angles_around_a_half_turn_have_a_small_spread(tmp_path, labels):
    columns = dict(labels)
    turned = np.where(np.arange(ROWS) % 2, np.pi - 0.1, -np.pi + 0.1)  # 0.2 rad apart
    columns["pose_cam"] = labels["pose_cam"].copy()
    columns["pose_cam"][:, 1] = 2 * turned
    np.savez(tmp_path / "labels.npz", **columns)
    item = angle_statistics(
        collect(open_dataset(convert_labels(tmp_path, "labels.npz", TRIVIAL))), "none"
    )[1]
    assert item.deviation == pytest.approx(np.degrees(0.1), rel=0.02)
    assert sorted(round(abs(v)) for v in (item.p01, item.p99)) == pytest.approx([174, 174], abs=1.3)


def test_shown_rows_are_medians_of_pairs_and_the_worst(plain, expected):
    shown = typical_and_worst(collect(open_dataset(plain)))
    order = np.argsort(-np.nan_to_num(expected))[:3]
    assert [row for why, row in shown if "worst" in why] == order.tolist()
    medians = [row for why, row in shown if "median" in why]
    assert len(medians) == 4
    for row in medians:
        group = expected[(np.arange(ROWS) % 4 == row % 4) & np.isfinite(expected)]
        assert expected[row] == pytest.approx(np.quantile(group, 0.5, method="inverted_cdf"))


def test_the_page_is_whole_safe_and_says_the_numbers(plain, expected, capsys):
    report(plain)
    assert capsys.readouterr().out.strip() == str(plain / "report.html")
    text, page = read(plain)
    assert page.scripts == 0
    assert {link[1:] for link in page.links} <= page.ids
    assert {"errors", "genders", "by-segment", "by-split", "angles", "provenance"} <= page.ids
    assert not re.search(r"(?:https?:)?//[a-z]", text)  # nothing is fetched
    assert "STAND-IN" not in text
    assert "NOT COMPLETE" not in text
    assert f"mean error, mm {np.nanmean(expected) * 1000:.1f}" in page.words
    assert "rejected:non_finite_pose 2 3.3 %" in page.words
    assert open_dataset(plain).attrs["digest"] in page.words
    assert "No pictures: fitter" in page.words
    # Segment numbers are ordered as numbers.
    segments = re.search(r'id="by-segment".*?</table>', text, re.S).group()
    assert re.findall(r"<tr><td>(\d+)</td>", segments) == [str(i) for i in range(12)]


def test_an_incomplete_dataset_says_so(tmp_path, labels):
    np.savez(tmp_path / "labels.npz", **labels)
    out = convert_labels(tmp_path, "labels.npz", TRIVIAL)
    (out / "shards" / "shard-00001.h5").unlink()
    report(out)
    _, page = read(out)
    said = f"NOT COMPLETE Shards missing, failed or damaged: 1 of 4; {ROWS - 16} of {ROWS} rows"
    assert said in page.words


def test_a_dataset_without_any_fitted_row_still_gets_a_page(tmp_path, labels):
    columns = dict(labels, pose_cam=np.full_like(labels["pose_cam"], np.nan))
    np.savez(tmp_path / "labels.npz", **columns)
    out = convert_labels(tmp_path, "labels.npz", TRIVIAL)
    report(out)
    _, page = read(out)
    assert "No row was fitted" in page.words
    assert f"rejected:non_finite_pose {ROWS} 100.0 %" in page.words


def test_real_fits_get_pictures_a_banner_and_the_models(fitted, tmp_path):
    picture = tmp_path / "people.png"
    report(fitted, picture=picture)
    text, page = read(fitted)
    assert "STAND-IN BODY" in page.words
    assert page.scripts == 0
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    dataset = open_dataset(fitted)
    shown = typical_and_worst(collect(dataset))
    assert len(page.sources) == 5 * len(shown)
    for source in page.sources:
        data = base64.b64decode(source.partition(",")[2])
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert image.shape == (480, 480, 3)
        assert image.std() > 5
    turned = [f"bodies.html#frame={place}" for place in range(len(shown))]
    assert set(turned) <= page.links
    bodies = (fitted / "bodies.html").read_text(encoding="utf-8")
    assert all(f'"row {row}"' in bodies for row in (dataset["source_row"][p] for _, p in shown))
    for model in dataset.plan.models:
        assert model.sha256 in text
    people = cv2.imread(str(picture))
    assert people.shape[0] == 340
    assert picture.stat().st_size < 600_000


def test_drawn_bodies_are_the_fitted_ones(fitted):
    """The distance of the drawn meshes is the stored residual, in front of the row's own camera."""
    dataset = open_dataset(fitted)
    poser = Poser(default_body_directory())
    for row in range(len(dataset)):
        bodies = poser.bodies(person(dataset, row, poser))
        distances = bodies.distances()
        assert distances.mean() == pytest.approx(dataset["vertex_error_mean"][row], abs=2e-5)
        assert distances.max() == pytest.approx(dataset["vertex_error_max"][row], abs=2e-5)
        np.testing.assert_array_equal(bodies.cam_int, dataset["cam_int"][row])
        left, top, side = bodies.window()
        gtkps = dataset["gtkps"][row]
        gtkps = gtkps[gtkps[:, 2] > 0][:, :2]
        assert (gtkps >= [left, top]).all()
        assert (gtkps <= [left + side, top + side]).all()
        # The skeleton is inside: never beyond the box of its skin by more than a centimetre.
        assert (bodies.bones.min(0) > bodies.skin.min(0) - 0.01).all()
        assert (bodies.bones.max(0) < bodies.skin.max(0) + 0.01).all()


def test_other_models_than_those_of_the_conversion_are_refused(fitted, tmp_path):
    for path in default_body_directory().iterdir():
        if path.suffix == ".pkl" and "skel_male" not in path.name:
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "skel_male.pkl").write_bytes(b"something else")
    with pytest.raises(InputError, match=r"skel_male\.pkl"):
        report(fitted, models=tmp_path)


def test_sequences_get_their_angles_over_time(tmp_path):
    """Three of four sequences, the worst first; a rejected frame is a gap of the line."""
    (tmp_path / "amass").mkdir()
    for number in range(4):
        content = amass(8, seed=number) | {"mocap_framerate": np.array(4.0)}
        content["poses"][3, 5] = np.nan
        np.savez(tmp_path / "amass" / f"take{number}_poses.npz", **content)
    out = convert_labels(tmp_path, "amass", REAL, models="default-body")
    report(out)
    text, page = read(out)
    assert "Angles over time" in page.words
    dataset = open_dataset(out)
    names, errors = dataset["sequence"], dataset["vertex_error_mean"]
    means = {name: np.nanmean(errors[names == name]) for name in np.unique(names)}
    worst = max(means, key=lambda name: means[name])
    assert f"{worst} the worst sequence: mean {1000 * means[worst]:.1f} mm" in page.words
    charts = re.findall(r'<svg class="curve".*?</svg>', text, re.S)
    assert len(charts) == 3 * 4
    assert all(chart.count("<polyline") == 2 for chart in charts)
    assert "1.5 s" in charts[0] and "2 s" not in charts[0]  # 8 frames at 4 a second


def test_names_from_the_labels_cannot_inject_markup(fitted):
    report(fitted)
    text, page = read(fitted)
    assert page.scripts == 0
    assert html.escape(EVIL) in text
    assert EVIL_SPLIT not in text
    assert EVIL_SPLIT in page.words
    assert all(source.startswith("data:") for source in page.sources)


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(InputError):
        report(tmp_path)


def test_a_page_that_cannot_be_written_is_an_output_error(plain, monkeypatch):
    (plain / "report.html").unlink(missing_ok=True)
    (plain / "report.html").mkdir()
    with pytest.raises(OutputError, match=r"report\.html"):
        report(plain)
    (plain / "report.html").rmdir()


def test_distance_colours_run_through_the_legend():
    stops = np.array([stop for stop, _ in ERROR_COLORS])
    np.testing.assert_allclose(error_colors(stops), [c for _, c in ERROR_COLORS], atol=1e-6)
    np.testing.assert_allclose(error_colors(np.array([9.0])), [ERROR_COLORS[-1][1]], atol=1e-6)


def test_ticks_are_round_and_inside():
    assert charts.ticks(0, 23.4, 8) == [0, 5, 10, 15, 20]
    assert charts.ticks(0, 1, 4) == pytest.approx([0, 0.5, 1])
    assert charts.ticks(3, 3, 4) == [3]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 %"), (1e-5, "< 0.1 %"), (0.123, "12.3 %"), (None, "–")]
)
def test_shares(value, text):
    assert wording.share(value) == text


def test_sizes():
    assert [wording.rate(v) for v in (0.0, 0.0217, 3.14)] == [
        "0.0 rows/s", "0.022 rows/s", "3.1 rows/s",
    ]  # fmt: skip
    assert [wording.size(v) for v in (7, 1500, 3_200_000)] == ["7 B", "1.5 kB", "3.2 MB"]


def test_worst_rows_are_spread_over_sequences() -> None:
    """The worst of each sequence first; more than there are sequences: the next ones; never NaN."""
    errors = np.array([9.0, 8.0, 7.0, 1.0, np.nan, 3.0])
    group = np.array([0, 0, 0, 1, 2, 1], np.int32)
    assert spread_worst(errors, group, 2).tolist() == [0, 5]
    assert spread_worst(errors, group, 3).tolist() == [0, 1, 5]
    assert spread_worst(errors, group, 9).tolist() == [0, 1, 2, 5, 3]


def test_angle_percentiles_are_those_of_the_values(plain, monkeypatch) -> None:
    """To the last digit, however many passes memory allows."""
    dataset = open_dataset(plain)
    poses = dataset["skel_poses"][np.isfinite(dataset["vertex_error_mean"])].astype(np.float64)
    expected = np.degrees(np.quantile(poses[:, 6], (0.01, 0.5, 0.99)))
    for held in (1 << 27, 1):
        monkeypatch.setattr("stages.inspection.statistics._HELD_BYTES", held)
        item = angle_statistics(collect(dataset), "default")[6]
        np.testing.assert_allclose([item.p01, item.median, item.p99], expected, rtol=1e-12)
