"""experiments.report: numbers to the digit, colours where they belong, errors clear."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image
from running import driver
from running import run as drive

from dsolo_jax import draw, images
from experiments import ablation
from experiments.reports import charts, runs, table
from experiments.reports.published import BENCHMARKS, PUBLISHED

report = driver("report")


def write_run(folder, matrices, *, miou, dataset="ade20k", names=("cat", "dog"), **config):
    """A result as experiments.eval leaves it: `matrices` by picture, (mIoU of it, matrix)."""
    folder.mkdir(parents=True)
    config = {"preset": "dslo_b16", "method": "velocity", "dataset": dataset, **config}
    results = {
        "dataset": dataset,
        "method": config["method"],
        "miou": miou,
        "per_class": dict.fromkeys(names),
        "num_images": len(matrices),
        "config": config,
    }
    (folder / "results.json").write_text(json.dumps(results))
    lines = ["id,miou,accuracy,confusion"]
    for id_, (score, matrix) in matrices.items():
        cells = [f"{t}:{p}:{matrix[t][p]}" for t, p in np.ndindex(2, 2) if matrix[t][p]]
        lines.append(f"{id_},{score},0.5,{' '.join(cells)}")
    (folder / "per_image.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_scored(folder, right, **more):
    """Of 2000 pixels of class 0 so many are right, the others called 1: mIoU is right / 4000."""
    miou = right / 4000
    return write_run(folder, {"a": (miou, [[right, 2000 - right], [0, 0]])}, miou=miou, **more)


def row(rows, method, scale="B/16"):
    (found,) = (r for r in rows if r.method == method and r.scale == scale)
    return found


# ---- published numbers ---------------------------------------------------------------------------


def test_published_averages_are_those_of_the_eight():
    complete = [r for r in PUBLISHED if len(r.miou) == 8]
    assert len(complete) >= 20
    for r in complete:
        assert np.mean(list(r.miou.values())) == pytest.approx(r.average, abs=0.0501), r.method


def test_published_rows_agree_with_the_ladder():
    columns = ("voc21", "coco_stuff", "cityscapes", "ade20k")  # those of ablation.PAPER_SETS
    for name, step in (("DSLO O.P.", "V path"), ("DSLO M.V.", "VI velocity")):
        ours = [row(PUBLISHED, name).miou[dataset] for dataset in columns]
        assert tuple(ours) == ablation.PAPER[step]
    # Of the three columns that could not be had, the average leaves the sum.
    assert set(BENCHMARKS) - set(row(PUBLISHED, "DSLO M.V.").miou) == {
        "coco_object", "voc20", "context59",
    }  # fmt: skip


# ---- the table -----------------------------------------------------------------------------------


@pytest.fixture
def eight(tmp_path):
    """A result on each of the eight."""
    for name, right in zip(BENCHMARKS, (1234, 702, 511, 999, 801, 640, 333, 420), strict=True):
        write_scored(tmp_path / name, right, dataset=name)
    return tmp_path


def test_our_row_is_right_to_the_digit(eight):
    (ours,) = table.ours(runs.read(eight)[0])
    lines = list(csv.DictReader(io.StringIO(table.as_csv([ours]))))
    assert {name: lines[0][name] for name in BENCHMARKS} == {
        "voc21": "30.850", "context60": "17.550", "coco_object": "12.775", "voc20": "24.975",
        "cityscapes": "20.025", "context59": "16.000", "ade20k": "8.325", "coco_stuff": "10.500",
    }  # fmt: skip
    assert lines[0]["average"] == "17.625"  # 141.0 / 8
    assert lines[0]["method"] == "ours: dslo_b16 velocity"


def test_differences_are_ours_less_theirs(eight):
    apart = table.differences(table.ours(runs.read(eight)[0]))
    paper = row(apart, "ours: dslo_b16 velocity − DSLO M.V.")
    assert paper.miou == pytest.approx(
        {"voc21": -36.95, "context60": -20.75, "cityscapes": -23.275, "ade20k": -14.675,
         "coco_stuff": -18.4}
    )  # fmt: skip
    assert paper.average == pytest.approx(17.625 - 46.9)
    best = row(apart, "ours: dslo_b16 velocity − CLIP")
    assert best.miou["ade20k"] == pytest.approx(5.125) and best.average == pytest.approx(3.825)
    assert {r.scale for r in apart} == {"B/16"}
    printed = table.markdown([best], sign="+").split()
    assert {"+12.2", "-24.1", "+3.8"} <= set(printed)


def test_markdown_has_the_papers_columns_and_ours_beside_the_published(eight):
    ours = table.ours(runs.read(eight)[0])
    head, _, *body = table.markdown(table.together(ours)).splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        "method", "CLIP", "VOC21", "PC60", "Object", "VOC20", "City", "PC59", "ADE", "Stuff",
        "average", "source",
    ]  # fmt: skip
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in body]
    assert ["DSLO M.V.", "B/16", "67.8", "38.3", "–", "–", "43.3", "–", "23.0", "28.9", "46.9",
            "notes"] in cells  # fmt: skip
    place = [c[0] for c in cells].index("ours: dslo_b16 velocity")
    assert cells[place - 1][1] == "B/16" and cells[place + 1][1] == "L/14"
    assert len({len(line) for line in body}) == 1  # aligned as text


def test_an_average_needs_all_eight_and_other_datasets_have_columns_of_their_own(tmp_path):
    write_scored(tmp_path / "a", 1000, dataset="voc21")
    write_scored(tmp_path / "b", 1600, dataset="folder")
    (ours,) = table.ours(runs.read(tmp_path)[0])
    assert ours.average is None and ours.miou == {"voc21": 25.0, "folder": 40.0}
    assert table.columns([ours]) == [*BENCHMARKS, "folder"]


def test_methods_are_rows_told_apart_by_what_differs(tmp_path):
    write_scored(tmp_path / "a", 200, readings={"tau": 0.3, "start": "kk"})
    write_scored(tmp_path / "b", 400, readings={"tau": 0.5, "start": "kk"})
    write_scored(tmp_path / "c", 600, preset="dslo_l14", clip="openai/clip-vit-large-patch14")
    write_scored(tmp_path / "d", 800, method="path", short_side=448)
    write_scored(tmp_path / "e", 800, method="path", short_side=336, dataset="voc21")
    rows = table.ours(runs.read(tmp_path)[0])
    assert {r.method: r.miou for r in rows} == {
        "ours: dslo_b16 velocity tau=0.3": {"ade20k": 5.0},
        "ours: dslo_b16 velocity tau=0.5": {"ade20k": 10.0},
        "ours: dslo_l14 velocity": {"ade20k": 15.0},
        "ours: dslo_b16 path": {"ade20k": 20.0, "voc21": 20.0},  # the size is the benchmark's
    }
    assert {r.scale for r in table.differences(rows[2:3])} == {"L/14"}


def test_two_results_of_one_method_on_one_benchmark_are_refused(tmp_path):
    write_scored(tmp_path / "a", 200, short_side=336)
    write_scored(tmp_path / "b", 400, short_side=448)
    with pytest.raises(
        ValueError, match=r"/a and .*/b are both .* ade20k \(short_side 336 and 448"
    ):
        table.ours(runs.read(tmp_path)[0])


def test_results_of_the_first_pictures_only_are_marked(tmp_path):
    write_scored(tmp_path / "a", 1000, limit=100)
    (ours,) = table.ours(runs.read(tmp_path)[0])
    assert "| 25.0\\* |" in table.markdown([ours]) and "\\* only" in table.markdown([ours])
    assert ",ade20k,here," in table.as_csv([ours])


# ---- reading results -----------------------------------------------------------------------------


def test_the_confusion_matrix_is_the_sum_of_the_pictures(tmp_path):
    pictures = {"a": (0.5, [[3, 1], [0, 2]]), "b": (0.25, [[1, 0], [4, 0]])}
    folder = write_run(tmp_path / "deep" / "er", pictures, miou=(4 / 9 + 2 / 7) / 2)
    ((found,), unfinished) = runs.read(tmp_path)
    assert found.folder == folder and found.classes == ("cat", "dog") and not unfinished
    np.testing.assert_array_equal(runs.confusion(found, found.pictures), [[4, 1], [4, 2]])
    np.testing.assert_array_equal(runs.confusion(found, found.pictures[1:]), [[1, 0], [4, 0]])


@pytest.mark.parametrize(
    "damage, error",
    [
        (lambda run: (run / "results.json").unlink(), "1 runs there were cut off"),
        (lambda run: (run / "results.json").write_text('{"dataset": '), "results.json is damaged"),
        (lambda run: (run / "results.json").write_text("[]"), "no result of experiments.eval: it"),
        (lambda run: (run / "results.json").write_text('{"miou": 1}'), "it has no dataset, method"),
        (lambda run: (run / "per_image.csv").unlink(), "results.json but no per_image.csv"),
        (lambda run: (run / "per_image.csv").write_text("id\na\n"), "per_image.csv is damaged"),
        (
            lambda run: (run / "per_image.csv").write_text("id,miou,confusion\na,1,0:7:5\n"),
            "per_image.csv is damaged",
        ),
        (
            lambda run: (run / "per_image.csv").write_text("id,miou,confusion\na,1,0:0:5\n"),
            "says mIoU 0.250000 of 1 pictures, but per_image.csv beside it adds up to 1.000000 of",
        ),
    ],
)
def test_folders_that_hold_no_result_are_named(damage, error, tmp_path):
    run = write_scored(tmp_path / "run", 1000)
    damage(run)
    with pytest.raises((ValueError, FileNotFoundError), match=error) as raised:
        runs.read(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_runs_that_were_cut_off_are_left_out_and_told(tmp_path):
    write_scored(tmp_path / "whole", 1000)
    (write_scored(tmp_path / "cut", 1000) / "results.json").unlink()
    found, unfinished = runs.read(tmp_path)
    assert [run.folder.name for run in found] == ["whole"]
    assert unfinished == [tmp_path / "cut"]


def test_the_worst_are_those_of_the_lowest_miou(tmp_path):
    pictures = {
        name: (score, [[1, 0], [0, 1]])
        for name, score in zip("abcd", (0.5, 0.1, 0.9, 0.2), strict=True)
    }
    pictures["e"] = ("nan", [[0, 0], [0, 0]])
    write_run(tmp_path / "run", pictures, miou=1.0)
    ((found,), _) = runs.read(tmp_path)
    assert [p.id for p in report.pictures(found, [], 2)] == ["b", "d"]
    assert [p.id for p in report.pictures(found, ["c", "b"], 1)] == ["b", "c"]
    assert [p.id for p in report.pictures(found, ["e"], 9)] == ["e", "b", "d", "a", "c"]


# ---- charts --------------------------------------------------------------------------------------


def blank_margins(picture, width=24):
    pixels = np.asarray(picture)
    edges = (pixels[:width], pixels[-width:], pixels[:, :width], pixels[:, -width:])
    return all((edge == 255).all() for edge in edges)


def test_bars_are_as_long_as_the_iou():
    iou = np.array([0.25, np.nan, 1.0, 0.5])
    pixels = np.asarray(charts.iou_bars("title", ["a", "b", "c", "d"], iou))
    lengths = (pixels == charts._BAR).all(-1).sum(1)
    bars = [
        lengths[rows].max()
        for rows in np.split(np.arange(len(lengths)), np.flatnonzero(np.diff(lengths > 0)) + 1)
    ]
    full, half, quarter = (length for length in bars if length)
    # The mean's line hides some pixels.
    assert full == pytest.approx(charts._FULL, abs=4)
    assert half == pytest.approx(full / 2, abs=4) and quarter == pytest.approx(full / 4, abs=4)


def test_confusion_cells_are_shaded_by_share_of_their_row():
    matrix = np.array([[10, 0, 0, 0], [0, 0, 0, 0], [5, 0, 3, 2], [0, 0, 0, 4]])
    picture = charts.confusion("title", ["a", "b", "c", "d"], matrix)
    pixels, cell = np.asarray(picture).astype(int), charts._CELLS[1]
    top, left = (
        np.flatnonzero((pixels == charts._FAINT).all(-1).sum(axis) > 4 * cell) for axis in (1, 0)
    )
    corner = 8  # of a cell: beside its number
    shades = pixels[top[0] + 1 + corner :: cell, left[0] + 1 + corner :: cell][:4, :4].sum(-1)
    darkest = sum(charts._SHADES[-1])
    assert shades[0, 0] == shades[3, 3] == darkest
    assert (shades[0, 1:] == 765).all() and (shades[3, :3] == 765).all()
    assert darkest < shades[2, 0] < shades[2, 2] < shades[2, 3] < 765
    assert (shades[1] == sum(charts._GRID)).all()


@pytest.mark.parametrize("count", [1, 171])
def test_no_name_is_clipped(count):
    names = [f"a class of a rather long name, number {c}" for c in range(count)]
    assert blank_margins(charts.iou_bars("title " * 9, names, np.linspace(0, 1, count)))
    assert blank_margins(charts.confusion("title " * 9, names, np.eye(count, dtype=int)))


# ---- the driver ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A result of two pictures with what it was made of; one pixel of `left` does not count."""
    folder = tmp_path_factory.mktemp("labelled")
    truth = np.array([[0, 0, 1, 1], [0, 255, 1, 1]])
    predicted = np.array([[0, 0, 0, 1], [0, 0, 0, 1]])
    for name in ("left", "right"):
        images.write_png(folder / "images" / f"{name}.png", np.full((2, 4, 3), 77, np.uint8))
        images.write_png(folder / "labels" / f"{name}.png", truth)
    (folder / "classes.txt").write_text("cat\ndog, hound\n")
    write_run(
        folder / "results" / "run",
        {"left": (0.55, [[3, 0], [2, 2]]), "right": (1.0, [[3, 0], [0, 4]])},
        miou=(6 / 8 + 6 / 8) / 2,
        dataset="folder",
        images=str(folder / "images"),
        labels=str(folder / "labels"),
        classes=str(folder / "classes.txt"),
        ignore=255,
        label_offset=0,
    )
    images.write_png(folder / "results" / "run" / "predictions" / "left.png", predicted)
    return folder


def test_report_writes_tables_charts_and_panels(labelled, tmp_path):
    done = drive("report", f"--results={labelled}/results", f"--output_dir={tmp_path}", "--worst=1")
    assert done.returncode == 0, done.stderr
    assert "| 75.0 |" in " ".join(done.stdout.split())
    assert "CorrCLIP" in (tmp_path / "table.md").read_text()
    for name in ("table.csv", "differences.csv", "run/iou.png", "run/confusion.png"):
        assert (tmp_path / name).stat().st_size > 0, name
    assert [path.name for path in (tmp_path / "run" / "panels").iterdir()] == ["left.png"]

    # Each pixel is 160 x 160; the picture, the truth and the prediction stand side by side.
    pixels = np.asarray(Image.open(tmp_path / "run" / "panels" / "left.png"))
    step, top = images._PANEL + images._PANEL_FONT // 2, 2 * images._PANEL_FONT
    cat, dog = draw.palette(2)
    for part, expected in (
        (0, [[(77,) * 3] * 4] * 2),
        (1, [[cat, cat, dog, dog], [cat, images._IGNORED, dog, dog]]),
        (2, [[cat, cat, cat, dog], [cat, cat, cat, dog]]),
    ):
        shown = pixels[top + 80 :: 160, part * step + 80 :][:2, :640:160]
        np.testing.assert_array_equal(shown, expected)
    beside = {tuple(colour) for colour in pixels[top:, 3 * step :].reshape(-1, 3).tolist()}
    assert {tuple(cat.tolist()), tuple(dog.tolist()), images._IGNORED} <= beside


def test_panels_need_predictions_and_the_dataset(labelled, tmp_path):
    ((run,), _) = runs.read(labelled / "results")
    left, right = run.pictures
    with pytest.raises(FileNotFoundError, match=r"right\.png; evaluate again with --save_pred"):
        report.draw_panels(run, [right], tmp_path)
    moved = run.results | {"config": run.results["config"] | {"images": str(tmp_path / "moved")}}
    with pytest.raises(FileNotFoundError, match="no folder of pictures at .*moved"):
        report.draw_panels(run._replace(results=moved), [left], tmp_path)
    with pytest.raises(ValueError, match="unknown picture of folder 'lefd' .did you mean 'left'"):
        report.draw_panels(run, [left._replace(id="lefd")], tmp_path)
