"""experiments.report: numbers to the digit, colours where they belong, errors clear."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image
from running import call, driver

from dsolo_jax import draw, images
from dsolo_jax.datasets import PROTOCOLS
from dsolo_jax.utils.files import csv_line, write_csv
from experiments import ablation, charts, per_image
from experiments.bootstrap import Interval
from experiments.reports import runs, table
from experiments.reports.published import BENCHMARKS, PICTURES, PUBLISHED

report = driver("report")


def write_run(folder, matrices, *, miou, dataset="ade20k", names=("cat", "dog"), **config):
    """A result as experiments.eval leaves it, of confusion matrices by picture."""
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
    rows = (
        per_image.row(id_, [np.array(matrix)], np.sum(matrix)) for id_, matrix in matrices.items()
    )
    write_csv(folder / "per_image.csv", [per_image.columns([]), *rows])
    return folder


def write_scored(folder, right, **more):
    """Of 2000 pixels of class 0 so many are right, the others called 1: mIoU is right / 4000."""
    miou = right / 4000
    return write_run(folder, {"a": [[right, 2000 - right], [0, 0]]}, miou=miou, **more)


@pytest.fixture
def one_picture_is_all(monkeypatch):
    """As if the benchmarks were of one picture each."""
    monkeypatch.setattr(table, "PICTURES", dict.fromkeys(PICTURES, 1))


def as_csv(rows):
    return "".join(map(csv_line, table.as_cells(rows)))


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
def eight(tmp_path, one_picture_is_all):
    """A result on each of the eight."""
    for name, right in zip(BENCHMARKS, (1234, 702, 511, 999, 801, 640, 333, 420), strict=True):
        write_scored(tmp_path / name, right, dataset=name)
    return tmp_path


def test_our_row_is_right_to_the_digit(eight):
    (ours,) = table.ours(runs.read(eight)[0])
    lines = list(csv.DictReader(io.StringIO(as_csv([ours]))))
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


def test_an_average_needs_all_pictures_of_all_eight(eight, monkeypatch):
    found, _ = runs.read(eight)
    assert table.ours(found[1:])[0].average is None
    monkeypatch.setattr(table, "PICTURES", PICTURES | dict.fromkeys(list(PICTURES)[1:], 1))
    (ours,) = table.ours(found)
    assert ours.average is None and ours.partial == {"voc21"}


def test_methods_are_rows_told_apart_by_what_differs(tmp_path):
    write_scored(tmp_path / "a", 200, readings="robust,tau=0.3")
    write_scored(tmp_path / "b", 400, readings="robust,tau=0.5")
    write_scored(tmp_path / "c", 600, preset="dslo_l14", clip="openai/clip-vit-large-patch14")
    write_scored(tmp_path / "d", 800, method="path", short_side=448)
    write_scored(tmp_path / "e", 800, method="path", short_side=336, dataset="voc21")
    rows = table.ours(runs.read(tmp_path)[0])
    assert {r.method: r.miou for r in rows} == {
        "ours: dslo_b16 velocity readings=robust,tau=0.3": {"ade20k": 5.0},
        "ours: dslo_b16 velocity readings=robust,tau=0.5": {"ade20k": 10.0},
        "ours: dslo_l14 velocity": {"ade20k": 15.0},
        "ours: dslo_b16 path": {"ade20k": 20.0, "voc21": 20.0},  # the size is the benchmark's
    }
    assert {r.scale for r in table.differences(rows[2:3])} == {"L/14"}


def test_a_further_result_of_a_method_has_a_row_by_its_folder(tmp_path):
    for name, right in (("a", 200), ("b", 400), ("c", 600)):
        write_scored(tmp_path / name, right)
    write_scored(tmp_path / "d", 800, dataset="voc21")
    rows = table.ours(runs.read(tmp_path)[0])
    assert {r.method: r.miou for r in rows} == {
        "ours: dslo_b16 velocity": {"ade20k": 5.0, "voc21": 20.0},
        "ours: dslo_b16 velocity again in b": {"ade20k": 10.0},
        "ours: dslo_b16 velocity again in c": {"ade20k": 15.0},
    }


def test_folders_of_pictures_go_by_where_they_are(tmp_path):
    for name, right in (("cats", 200), ("dogs", 400)):
        write_scored(tmp_path / name, right, dataset="folder", images=f"/data/{name}/images")
    (ours,) = table.ours(runs.read(tmp_path)[0])
    assert ours.miou == {"cats/images": 5.0, "dogs/images": 10.0}


@pytest.mark.parametrize(
    "config, partial",
    [
        ({}, False),
        ({"limit": 1}, True),
        ({"split": "training"}, True),
        ({"dataset": "voc21"}, True),
    ],
)
def test_what_is_not_the_whole_official_set_is_marked(config, partial, tmp_path, monkeypatch):
    monkeypatch.setattr(table, "PICTURES", {"ade20k": 1 + bool(config.get("limit")), "voc21": 1449})
    write_scored(tmp_path / "a", 1000, **config)
    rows = table.ours(runs.read(tmp_path)[0])
    for text in (table.markdown(rows), table.markdown(table.differences(rows))):
        assert ("\\*" in text) == ("not the whole official set" in text) == partial
    assert (f",{config.get('dataset', 'ade20k')},here," in as_csv(rows)) == partial


def test_a_borrowed_name_makes_no_scale(tmp_path):
    write_scored(tmp_path / "a", 1000, clip="a/folder/of/ones/own")
    (ours,) = table.ours(runs.read(tmp_path)[0])
    assert ours.scale == "?" and not [r for r in table.differences([ours]) if r.scale == "B/16"]


# ---- reading results -----------------------------------------------------------------------------


def test_the_confusion_matrix_is_the_sum_of_the_pictures(tmp_path):
    pictures = {"a": [[3, 1], [0, 2]], "b": [[1, 0], [4, 0]]}
    folder = write_run(tmp_path / "deep" / "er", pictures, miou=(4 / 9 + 2 / 7) / 2)
    ((found,), notes) = runs.read(tmp_path)
    assert found.folder == folder and found.classes == ("cat", "dog") and not notes
    rows = list(found.pictures.values())
    np.testing.assert_array_equal(runs.confusion(found, rows), [[4, 1], [4, 2]])
    np.testing.assert_array_equal(runs.confusion(found, rows[1:]), [[1, 0], [4, 0]])


def rewrite(run, matrix):
    """Another row, as experiments.eval would write it."""
    row = per_image.row("a", [np.array(matrix)], np.sum(matrix))
    write_csv(run / "per_image.csv", [per_image.columns([]), row])


@pytest.mark.parametrize(
    "damage, error",
    [
        (lambda run: (run / "results.json").unlink(), "run: it was cut off, start"),
        (lambda run: (run / "results.json").write_text('{"dataset": '), "results.json is damaged"),
        (lambda run: (run / "results.json").write_text("[]"), "results.json is damaged .it holds"),
        (lambda run: (run / "results.json").write_text('{"miou": 1}'), "it has no dataset, method"),
        (lambda run: (run / "per_image.csv").unlink(), "run: it has no per_image.csv"),
        (lambda run: (run / "per_image.csv").write_text("id\na\n"), "line 1 of .*per_image.csv is"),
        (lambda run: rewrite(run, [[0, 0, 0], [0, 0, 0], [0, 0, 5]]), "has other classes than"),
        (
            lambda run: rewrite(run, [[5, 0], [0, 0]]),
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


def test_runs_that_say_nothing_are_left_out_and_told(tmp_path):
    write_scored(tmp_path / "whole", 1000)
    (write_scored(tmp_path / "cut", 1000) / "results.json").unlink()
    write_run(tmp_path / "empty", {"a": [[0, 0], [0, 0]]}, miou=None)
    found, notes = runs.read(tmp_path)
    assert [run.folder.name for run in found] == ["whole"]
    assert notes == [
        f"left out {tmp_path}/cut: it was cut off, start it again",
        f"left out {tmp_path}/empty: no pixel is labelled",
    ]


def test_the_worst_are_those_of_the_lowest_miou(tmp_path):
    pictures = {
        name: [[right, 10 - right], [0, 0]]
        for name, right in zip("abcd", (5, 1, 9, 2), strict=True)
    } | {"e": [[0, 0], [0, 0]]}
    write_run(tmp_path / "run", pictures, miou=17 / 80)
    ((found,), _) = runs.read(tmp_path)
    assert report.pictures(found, [], 2) == ["b", "d"]
    assert report.pictures(found, ["c", "b"], 1) == ["b", "c"]
    assert report.pictures(found, ["e"], 9) == ["e", "b", "d", "a", "c"]


# ---- charts --------------------------------------------------------------------------------------


def test_bars_are_as_long_as_the_iou():
    iou = np.array([0.25, np.nan, 1.0, 0.5])
    (axes,) = charts.iou_bars("title", ["a", "b", "c", "d"], iou).axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([100, 50, 25, 0])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c", "d", "a", "b"]
    assert [text.get_text() for text in axes.texts] == ["100.0", "50.0", "25.0", "nowhere"]
    (mean,) = axes.lines
    assert mean.get_xdata()[0] == pytest.approx(175 / 3)


def test_confusion_cells_are_shares_of_their_row():
    matrix = np.array([[10, 0, 0, 0], [0, 0, 0, 0], [5, 0, 3, 2], [0, 0, 0, 4]])
    axes, _ = charts.confusion("title", ["a", "b", "c", "d"], matrix).axes
    shown = axes.images[0].get_array().filled(np.nan)
    expected = [[100, 0, 0, 0], [np.nan] * 4, [50, 0, 30, 20], [0, 0, 0, 100]]
    np.testing.assert_allclose(shown, expected)
    assert [t.get_text() for t in axes.texts] == ["100", "50", "30", "20", "100"]


@pytest.mark.parametrize("count", [1, 60])
def test_no_name_is_clipped(count, tmp_path):
    names = [f"a class of a rather long name, number {c}" for c in range(count)]
    charts.write(tmp_path / "a.png", charts.iou_bars("title " * 9, names, np.linspace(0, 1, count)))
    matrix = np.eye(count, dtype=int)
    charts.write(tmp_path / "b.png", charts.confusion("title " * 9, names, matrix))
    for name in ("a.png", "b.png"):
        pixels = np.asarray(Image.open(tmp_path / name).convert("L"))
        edges = (pixels[:4], pixels[-4:], pixels[:, :4], pixels[:, -4:])
        assert all((edge == 255).all() for edge in edges) and pixels.std() > 1


def test_a_table_is_a_picture(tmp_path):
    cells = {"robust": Interval(40, 50, 55), "paper": Interval(1, 2, 3)}
    rows = {"I logits": cells, "V path": cells}
    charts.draw_table(tmp_path / "ladder.png", "ladder", rows)
    picture = Image.open(tmp_path / "ladder.png").convert("RGB")
    colours = np.unique(np.asarray(picture).reshape(-1, 3), axis=0)
    assert min(picture.size) > 300 and len(colours) > 10


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
        {"left": [[3, 0], [2, 2]], "right": [[3, 0], [0, 4]]},
        miou=(6 / 8 + 6 / 8) / 2,
        dataset="folder",
        images=str(folder / "images"),
        labels=str(folder / "labels"),
        classes=str(folder / "classes.txt"),
        ignore=255,
        label_offset=0,
        protocol=dataclasses.asdict(PROTOCOLS["folder"]),
    )
    images.write_png(folder / "results" / "run" / "predictions" / "left.png", predicted)
    return folder


def test_report_writes_tables_charts_and_panels(labelled, tmp_path):
    flags = (f"--results={labelled}/results", f"--output_dir={tmp_path}", "--worst=1")
    write_scored(labelled / "results" / "ade", 1000)
    done = call("report", *flags, "--ids=right")
    assert done.returncode == 0, done.stderr
    assert "| 75.0 |" in " ".join(done.stdout.split())
    # A run without predictions has no panels, and one whose chosen picture has none neither.
    assert done.stderr.count("evaluate again with --save_predictions") == 2
    for name in ("table.csv", "differences.csv", "ade/iou.png", "run/iou.png", "run/confusion.png"):
        assert (tmp_path / name).stat().st_size > 0, name
    assert not (tmp_path / "run" / "panels").exists()

    benchmarks, _, others, _ = (tmp_path / "table.md").read_text().split("## ")[1:]
    place = f"{labelled.name}/images"
    assert "CorrCLIP" in benchmarks and "25.0\\*" in benchmarks and place not in benchmarks
    assert place in others and "CorrCLIP" not in others
    (line,) = csv.DictReader((tmp_path / "others.csv").open())
    assert line[place] == "75.000" and "ade20k" not in line

    (labelled / "results" / "ade" / "results.json").unlink()
    done = call("report", *flags)
    assert done.returncode == 0 and "left out" in done.stderr
    assert not (tmp_path / "differences.csv").exists()
    assert "CorrCLIP" not in (tmp_path / "table.md").read_text()
    assert [path.name for path in (tmp_path / "run" / "panels").iterdir()] == ["left.png"]

    # Each pixel is 160 x 160; the picture, the truth and the prediction stand side by side.
    pixels = np.asarray(Image.open(tmp_path / "run" / "panels" / "left.png"))
    step, top = 640 + 13, 2 * 26
    (cat, dog), none = draw.palette(2), draw._NAMELESS
    for part, expected in (
        (0, [[(77,) * 3] * 4] * 2),
        (1, [[cat, cat, dog, dog], [cat, none, dog, dog]]),
        (2, [[cat, cat, cat, dog], [cat, cat, cat, dog]]),
    ):
        shown = pixels[top + 80 :: 160, part * step + 80 :][:2, :640:160]
        np.testing.assert_array_equal(shown, expected)
    below = {tuple(colour) for colour in pixels[top + 320 :].reshape(-1, 3).tolist()}
    assert {tuple(cat.tolist()), tuple(dog.tolist()), none} <= below


def test_panels_need_predictions_and_the_dataset(labelled, tmp_path):
    ((run,), _) = runs.read(labelled / "results" / "run")
    with pytest.raises(FileNotFoundError, match=r"right\.png; evaluate again with --save_pred"):
        report.draw_panels(run, ["right"], tmp_path)
    moved = run.results | {"config": run.results["config"] | {"images": str(tmp_path / "moved")}}
    with pytest.raises(FileNotFoundError, match="no folder of pictures at .*moved"):
        report.draw_panels(run._replace(results=moved), ["left"], tmp_path)
    images.write_png(run.folder / "predictions" / "lefd.png", np.zeros((2, 4), int))
    with pytest.raises(ValueError, match="unknown picture of folder 'lefd' .did you mean 'left'"):
        report.draw_panels(run, ["lefd"], tmp_path)
