"""The page: what it says, that it carries everything with it, and what it does with incomplete runs."""

import base64
import copy
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from faap.errors import FaapError
from faap.report import charts, summary, words, write_report
from faap.report.charts import ANCHOR_COLOUR, REFERENCE_COLOUR
from faap.training.monitor import _line

CONFIG = {
    "name": "infonce_4th",
    "description": "Attract <the> anchor group & wait.",
    "temperature": 0.1,
    "epochs": 24,
    "skip_bad": False,
    "terms": None,
}
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Text by element, attributes of every tag, and whether tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def read(path):
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def full(tmp_path_factory, metrics, log, write_run, example):
    folder = write_run(tmp_path_factory.mktemp("run"), metrics(), log(5), CONFIG)
    examples = [example("female" if i % 2 else "male", seed=i, name=f"{i:06}.jpg") for i in range(8)]
    path = write_report(folder, examples)
    assert path == folder / "report.html"
    return read(path)


def test_nothing_is_fetched_from_elsewhere(full):
    for tag, attributes in full.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    assert not full.all("script")
    assert not full.all("link")


def test_the_result_comes_first_in_two_sentences(full):
    first, second = full.words.index("On the test split the AP gap"), full.words.index("The AP of female images")
    assert first < second < full.words.index("Success criteria") < full.words.index("Metrics of each group")
    assert "decreased from 0.0978 to 0.0902 (−0.0076, −7.8 %); the change is distinguishable from noise" in full.words
    assert "(95 % interval −0.0121 to −0.0029, p = 0.002)" in full.words


def test_failed_criteria_are_shown_as_failed(full, metrics):
    met = [entry["met"] for entry in metrics()["success"].values()]
    assert full.words.count("✓ met") == sum(met) == 1
    assert full.words.count("✗ not met") == 4 - sum(met)


def test_every_metric_of_both_groups_before_after_and_change(full, metrics):
    data = metrics()
    rows = [(name, data["changes"]["female"][name]) for name in data["baseline"]["female"]]
    rows += [(name, data["gaps"]["female"][name]) for name in ("AP", "AP50", "AP75", "AR100")]
    for name, row in rows:
        wanted = [name]
        for key, sure, sign in (
            ("baseline", "baseline_ci95", ""),
            ("perturbed", "perturbed_ci95", ""),
            ("change", "ci95", "+"),
        ):
            wanted += [f"{row[key]:{sign}.4f}", *f"{row[sure][0]:{sign}.4f} to {row[sure][1]:{sign}.4f}".split()]
        assert re.sub(r"[+−](0\.0000)", r"\1", " ".join(wanted).replace("-", "−")) in full.words


def test_configuration_and_hash_are_there(full, metrics):
    assert metrics()["detector_sha256"] in full.words
    assert "temperature 0.1" in full.words
    assert CONFIG["description"] in full.words


def test_charts_are_drawings_with_descriptions(full):
    titles = [image["alt"] for image in full.all("img")]
    for wanted in ("AP gap", "AR gap", "AP of both groups", "InfoNCE", "Detection weight", "Learning rate"):
        assert any(title.startswith(wanted) for title in titles)
    assert len(titles) == 14
    for image in full.all("img"):
        drawing = base64.b64decode(image["src"].removeprefix("data:image/svg+xml;base64,")).decode()
        assert ElementTree.fromstring(drawing).tag.endswith("svg")
        if image["alt"].startswith("AP of both groups"):
            assert ANCHOR_COLOUR.lower() in drawing
            assert REFERENCE_COLOUR.lower() in drawing


def test_six_examples_with_detections_above_the_threshold(full, example):
    assert len([attributes for attributes in full.all("svg") if "viewbox" in attributes]) == 6 * 3
    assert "0.91" in full.words
    assert "0.42" not in re.search("Examples.*Training", full.words)[0]
    found = [rect for rect in full.all("rect") if rect["class"] == "found"]
    assert len(found) == 6 * 4
    assert {rect["stroke"] for rect in found} == {ANCHOR_COLOUR, REFERENCE_COLOUR}
    truth = [rect for rect in full.all("rect") if rect["class"] == "truth"]
    assert len(truth) == 6 * 2 * 2
    x, y, w, h = example("male", seed=0).record.boxes[0]
    assert [float(truth[0][key]) for key in ("x", "y", "width", "height")] == [x, y, w, h]


def test_the_perturbation_is_magnified_around_grey_as_it_says(full, example):
    factor = int(re.search(r"magnified (\d+) times", full.words)[1])
    images = [image["href"] for image in full.all("image")]
    original, perturbed, magnified = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))).astype(int) for uri in images[:3]
    )
    shown = example("male", seed=0)
    np.testing.assert_array_equal(original, shown.pixels)
    np.testing.assert_array_equal(perturbed, shown.perturbed)
    np.testing.assert_array_equal(magnified, 128 + factor * (perturbed - original))
    assert factor == 127 // np.abs(perturbed - original).max()


def test_scores_do_not_cover_each_other(tmp_path, metrics, write_run, example):
    crowded = example()
    crowded.before.scores[:] = 0.9
    page = read(write_report(write_run(tmp_path, metrics()), [crowded]))
    places = [(float(text["x"]), float(text["y"])) for text in page.all("text")][:3]
    width, height = crowded.record.width / 9, crowded.record.width / 18
    for i, (x, y) in enumerate(places):
        assert 0 <= x <= crowded.record.width - 0.9 * width
        assert 0 <= y <= crowded.record.height
        assert all(abs(x - other) >= width or abs(y - below) >= height for other, below in places[:i])


def test_large_photographs_are_embedded_small(tmp_path, metrics, write_run, example):
    page = read(write_report(write_run(tmp_path, metrics()), [example(width=1600, height=1000)]))
    for image in page.all("image"):
        assert (image["width"], image["height"]) == ("1600", "1000")
        with Image.open(io.BytesIO(base64.b64decode(image["href"].split(",")[1]))) as embedded:
            assert embedded.size == (640, 400)


def test_group_names_come_from_the_data_and_are_escaped(tmp_path, metrics, log, write_run, example):
    anchor, reference = "<b>old</b>", "young & $x$"
    config = {"name": "<script>alert(1)</script>"}
    folder = write_run(tmp_path, metrics(anchor, reference), log(2, anchor, reference), config)
    path = write_report(folder, [example(anchor, name="<i>.jpg")])
    text = path.read_text(encoding="utf-8")
    assert "<b>old" not in text
    assert "<script>" not in text
    assert "<i>.jpg" not in text
    page = read(path)
    assert f"AP gap ({reference} − {anchor})" in page.words
    assert "female" not in page.words


def bare(text):
    """Where a group that is a number stands as if something were counted."""
    return re.findall(r".{20}(?<!group )\b[16] (?:images|AP|[−(]|to group).{9}|− [16]\b|\d [16]\b[ ,]", text)


def test_groups_that_are_numbers_are_called_groups(tmp_path, metrics, log, write_run, example):
    data, rows = metrics("6", "1"), log(2, "6", "1")
    data["categories_left_out"] = {"dog": ["6"]}
    text = read(write_report(write_run(tmp_path, data, rows), [example("6")])).words
    assert "The AP of group 6 images rose" in text
    assert "dog (group 6 has none)" in text
    assert "000017.jpg · group 6" in text
    console = Console(file=io.StringIO(), width=300)
    console.print(summary(data), _line(rows[0], 2))
    shown = console.file.getvalue().partition("epoch 0 of 0 to 1")
    assert "600 group 6, 600 group 1 images" in shown[0]
    assert "group 6 0.3" in shown[2]
    assert bare(text) + bare(shown[0]) == []


@pytest.mark.filterwarnings("error")
def test_names_in_any_script_are_whole_and_keep_to_their_numbers(tmp_path, metrics, log, write_run):
    anchor, reference = "여성", "גברים בוגרים"
    page = read(write_report(write_run(tmp_path, metrics(anchor, reference), log(2, anchor, reference))))
    assert f"(\u2068{reference}\u2069 − {anchor})" in page.words
    drawn = "".join(base64.b64decode(each["src"].partition(",")[2]).decode() for each in page.all("img"))
    assert f">{reference} − {anchor}<" in drawn


def test_an_evaluation_without_training_has_no_curves(tmp_path, metrics, write_run):
    page = read(write_report(write_run(tmp_path, metrics())))
    assert not page.all("img")
    assert "Training" not in page.words
    assert "Examples" not in page.words
    assert "Success criteria" in page.words


def test_missing_values_are_dashes_and_one_epoch_is_no_curve(tmp_path, metrics, log, write_run):
    rows = log(2)
    for row in rows:
        row["train"]["sim_f2f"] = row["train"]["infonce"] = None
        row["validation"]["gap"]["AR"] = row["validation"]["perturbed"]["male"]["AR100"] = None
    data = metrics()
    for which in ("baseline", "perturbed"):
        data[which]["female"]["APs"] = None
    data["gap"]["AP"].update(ci95=None, p_value=None)
    for row in (data["changes"]["female"]["APs"], data["gaps"]["female"]["AR100"], data["gap"]["AR"]):
        row.update(dict.fromkeys(row))
    data["perturbation"]["psnr_db"] = None
    page = read(write_report(write_run(tmp_path, data, rows)))
    assert "APs – – – – – –" in page.words
    assert "AR100 – – – – – – – –" in page.words
    assert "no interval was computed, so nothing can be said about noise" in page.words
    titles = [image["alt"] for image in page.all("img")]
    assert not any(title.startswith(("InfoNCE", "AR gap")) for title in titles)
    assert any(title.startswith("Similarity") for title in titles)
    (tmp_path / "one").mkdir()
    page = read(write_report(write_run(tmp_path / "one", data, rows[:1])))
    assert not page.all("img")
    assert "Of 1 epoch, counted from 0, epoch 0 was chosen" in page.words


def test_the_page_says_what_was_done_and_how_sure_each_groups_change_is(tmp_path, metrics, write_run):
    data = metrics()
    data["provenance"]["dataset"] = "/somewhere/people"
    page = read(write_report(write_run(tmp_path, data)))
    detector = data["provenance"]["detector"]["name"].split("/")[-1]
    assert f"before the detector {detector}, on people" in page.words
    for group, row in data["changes"].items():
        assert f"{group} AP {words.change(row['AP'])[2][0]} ({words.change(row['AP'])[2][1]})" in page.words


def test_where_nothing_is_sure_the_best_detection_is_drawn_with_its_score(tmp_path, metrics, write_run, example):
    shown = example()
    scores = np.full(len(shown.after.scores), 0.06)
    unsure = dataclasses.replace(shown, after=dataclasses.replace(shown.after, scores=scores))
    page = write_report(write_run(tmp_path, metrics()), [unsure]).read_text()
    assert page.count('class="found under"') == 1
    assert ">0.06</text>" in page
    assert "0 detections" in page


def test_the_chosen_epoch_is_the_one_of_the_selection_rule(tmp_path, metrics, log, write_run):
    rows = log(4)
    for epoch, row in enumerate(rows):
        gap = 0.05 if epoch == 2 else 0.08
        for group, value in (("male", 0.45), ("female", 0.45 - gap)):
            row["validation"]["perturbed"][group]["AP"] = value
        row["validation"]["gap"]["AP"] = gap
    page = read(write_report(write_run(tmp_path, metrics(), rows, CONFIG)))
    assert "Of 4 epochs, counted from 0, epoch 2 was chosen" in page.words


def test_more_than_two_groups(tmp_path, metrics, write_run):
    data = metrics()
    for which in ("baseline", "perturbed"):
        data[which]["child"] = copy.deepcopy(data[which]["male"])
    data["images"]["child"] = 40
    with pytest.raises(FaapError, match=r"metrics\.json: (gaps|changes): .*child"):
        write_report(write_run(tmp_path, data))
    data["changes"]["child"], data["gaps"]["child"] = data["changes"]["male"], data["gaps"]["female"]
    page = read(write_report(write_run(tmp_path, data)))
    assert "40 child images" in page.words
    assert page.words.count("before after change relative p") == 2  # a gap of each to the reference
    assert page.words.count("before after change ") == 5
    assert "male − child before" in page.words


def test_a_run_without_metrics_is_refused(tmp_path, metrics, log, write_run):
    with pytest.raises(FaapError, match=r"metrics\.json does not exist"):
        write_report(tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(FaapError, match=r"metrics\.json: not JSON"):
        write_report(tmp_path)
    write_run(tmp_path, metrics())
    (tmp_path / "train_log.jsonl").write_text(json.dumps(log(1)[0]) + '\n{"epo')
    with pytest.raises(FaapError, match=r"train_log\.jsonl, line 2: not JSON"):
        write_report(tmp_path)


def test_the_three_verdicts_are_shown_with_their_intervals(tmp_path, metrics, write_run):
    data = metrics()
    data["success"]["reference_ap"] |= {"verdict": "cannot be told", "met": False, "ci95": [-0.0071, 0.0005]}
    words = read(write_report(write_run(tmp_path, data))).words
    for verdict, count in (("✓ met", 1), ("✗ not met", 2), ("? cannot be told", 1)):
        assert words.count(verdict) == count
    assert "? cannot be told 0.4424 0.4391 ≥ 0.4424 −0.0071 to +0.0005" in words


def test_warnings_and_left_out_categories_come_before_the_numbers(tmp_path, metrics, write_run):
    data = metrics()
    data["warnings"] = ["The detector finds nobody: right checkpoint? <b>"]
    data["categories_left_out"] = {"dog": ["female"], "tie": ["female", "male"]}
    words = read(write_report(write_run(tmp_path, data))).words
    first, second = words.index(data["warnings"][0]), words.index("dog (female has none), tie (female, male have none)")
    assert first < second < words.index("Success criteria")


def test_where_a_result_comes_from(full, metrics):
    source = metrics()["provenance"]
    for text in (source["dataset"], source["split_sha256"], source["date"], *source["detector"].values()):
        assert text in full.words
    assert f"light, ε 0.09, {source['generator']['sha256']}" in full.words
    assert "faap 0.9, torch 2.8, transformers 4.56" in full.words


def test_a_result_of_an_earlier_version_is_shown(tmp_path, metrics, write_run):
    data = metrics()
    for name in ("provenance", "warnings"):
        del data[name]
    for entry in data["success"].values():
        for name in ("verdict", "difference", "ci95"):
            del entry[name]
    page = read(write_report(write_run(tmp_path, data)))
    assert page.words.count("✓ met") == 1
    assert page.words.count("✗ not met") == 3
    assert data["detector_sha256"] in page.words


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (["baseline"], {}, "baseline"),
        (["baseline", "female", "AP"], "high", "'high'; it should be a finite number"),
        (["perturbed", "male"], None, "male"),
        (["gap", "AP"], [], "AP"),
        (["gap", "AR", "ci95"], ["low", "high"], "ci95"),
        (["gap", "AR", "ci95"], [0.1], "ci95"),
        (["success", "ap_gap", "ci95"], [None, 1.0], "ci95"),
        (["success"], {"ap_gap": True}, "ap_gap"),
        (["images"], 7, "images"),
        (["provenance", "detector"], "detr", "detector"),
        (["provenance", "generator"], {}, "arch"),
        (["categories_left_out"], {"dog": "female"}, "dog"),
        (["warnings"], "none", "warnings"),
        (["perturbation", "psnr_db"], True, "psnr_db"),
    ],
)
def test_a_broken_result_is_one_error(tmp_path, metrics, write_run, place, value, said):
    data = metrics()
    entry = data
    for key in place[:-1]:
        entry = entry[key]
    entry[place[-1]] = value
    with pytest.raises(FaapError, match=re.escape(said)) as error:
        write_report(write_run(tmp_path, data))
    assert "metrics.json" in str(error.value)


@pytest.mark.parametrize(
    "change", [{"epoch": "one"}, {"train": 3}, {"validation": {}}, {"schedule": {"beta": "x"}}, {"losses": 3}]
)
def test_a_broken_log_or_configuration_is_one_error(tmp_path, metrics, log, write_run, change):
    rows = log(2)
    rows[1] |= change
    with pytest.raises(FaapError, match=r"train_log\.jsonl"):
        write_report(write_run(tmp_path, metrics(), rows))
    (tmp_path / "train_log.jsonl").unlink()
    for text in ("a: [", "- 1", "\x00"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(FaapError, match=r"config\.yaml"):
            write_report(tmp_path)


def test_a_crowd_is_not_counted_among_those_to_be_found(tmp_path, metrics, example, write_run):
    shown = example("female", seed=0)
    crowd = shown.record.crowd.copy()
    crowd[0] = True
    crowded = dataclasses.replace(shown, record=dataclasses.replace(shown.record, crowd=crowd))
    page = read(write_report(write_run(tmp_path, metrics()), [crowded]))
    assert f"of {len(crowd) - 1} found (IoU of .50)" in page.words
    assert f"of {len(crowd)} found" not in page.words


@pytest.fixture
def curves():
    def each(share):
        values = np.linspace(1, 0, 101)
        return {
            group: {"precision": np.stack([values**power, values**power - 0.1, values**power + 0.1]) * share,
                    "recall": np.stack([values * share] * 3)}
            for group, power in (("female", 2), ("male", 1))
        }  # fmt: skip

    return each(0.5), each(1.0)


def test_precision_and_recall_of_each_group_before_and_after(tmp_path, metrics, write_run, curves):
    page = read(write_report(write_run(tmp_path, metrics()), curves=curves))
    assert "Thresholds" in page.words
    precision, recall = (each["alt"] for each in page.all("img"))
    halves = ("female: 0.5000, 0.1250, 0.0000", "male: 0.5000, 0.2500, 0.0000")
    assert precision.startswith("Precision over recall. before " + "; before ".join(halves))
    assert "after female: 1.0000, 0.2500, 0.0000; after male: 1.0000, 0.5000, 0.0000" in precision
    assert recall.endswith("after male: 1.0000, 0.5000, 0.0000")


def test_bands_and_lines_of_a_group_have_its_colour(curves):
    (_, _, figure), _ = charts.draw_curves(*curves)
    for axes, found in zip(figure.axes, curves, strict=True):
        for line, band, colour, group in zip(
            axes.get_lines(), axes.collections, (ANCHOR_COLOUR, REFERENCE_COLOUR), found, strict=True
        ):
            assert line.get_color() == colour
            np.testing.assert_array_equal(line.get_ydata(), found[group]["precision"][0])
            edge = band.get_paths()[0].vertices[:, 1]
            assert edge.max() == pytest.approx(found[group]["precision"][2].max())


def test_the_values_of_a_figure_are_those_that_are_drawn():
    figure = charts.Figure()
    left, right = figure.subplots(1, 2)
    left.set_title("one", loc="left")
    left.plot([0, 1, 2], [0.5, np.nan, 0.75], label=" women")
    left.axhline(0.1)
    right.plot([1], [0.25], "x", label="baseline")
    right.plot([1, 2], [0.3, 0.4], "o")
    assert charts.values_in(figure) == "one women: 0.5000, 0.7500, 0.7500; baseline: 1.0000, 0.2500"


def test_every_colour_has_a_light_and_a_dark_value(tmp_path, metrics, write_run):
    text = write_report(write_run(tmp_path, metrics())).read_text()
    assert "screen and (prefers-color-scheme: dark)" in text
    named = set(re.findall(r"var\(--(\w+)\)", text))
    light, dark = (set(re.findall(r"--(\w+):", block)) for block in re.findall(r":root \{([^}]*)\}", text))
    assert named <= light == dark
