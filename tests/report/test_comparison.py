"""The page and the table that hold recipes side by side: their numbers, their pictures, and what is missing."""

import base64
import copy
import io
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from faap.evaluation.criteria import MET, NOT_MET, UNKNOWN
from faap.report import comparison_figures, comparison_table, write_comparison
from faap.report.charts import draw_trade_off
from faap.report.page import render

KEYS = ("ap_gap", "ar_gap", "anchor_ap", "reference_ap")
NAMES = ("infonce_4th", "moco_4th", "wgan_7th")


class Page(HTMLParser):
    """Its text, its tables as lists of rows of cells, and the attributes of every tag."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.tags, self.text, self.style = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.style = tag in ("style", "title")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        self.style = False
        if tag == "table":
            self.tables.append([[]])  # what follows is in no cell

    def handle_data(self, data):
        if not self.style:
            self.text.append(data)
            if self.tables and self.tables[-1] and self.tables[-1][-1]:
                self.tables[-1][-1][-1] += f" {data}"

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())

    def row(self, table, *beginning):
        """The one row of a table (0: recipes, 1: runs) whose first cells are as given."""
        rows = [[" ".join(cell.split()) for cell in row] for row in [t for t in self.tables if any(t)][table]]
        (found,) = [row for row in rows if row[: len(beginning)] == list(beginning)]
        return found


def read(data):
    """The page without its pictures, which take long to draw."""
    return Page(render("comparison.html", comparison=data, drawn={}))


def read_whole(data, tmp_path):
    path = tmp_path / "compare.html"
    assert write_comparison(data, path) == path
    return Page(path.read_text(encoding="utf-8"))


def shown(value, sign=""):
    return f"{value:{sign}.4f}".replace("-", "−")


def printed(data, width=120):
    console = Console(file=io.StringIO(), width=width)
    console.print(comparison_table(data, width))
    return console.file.getvalue()


def figures(data):
    return {slug: figure for slug, _, figure in comparison_figures(data)}


def with_gaps(recipe, mean, **summary):
    """The recipe with that mean AP gap, the same in all runs."""
    recipe["summary"]["ap_gap"].update(mean=mean, **summary)
    for run in recipe["runs"]:
        run["ap_gap"] = mean


def lines(axes, colour):
    return [line for line in axes.lines if line.get_color() == colour]


def test_every_recipe_has_its_numbers_in_its_row(comparison):
    data = comparison()
    data["recipes"][1]["success"] = {"ap_gap": 0, "ar_gap": 1, "anchor_ap": 2, "reference_ap": 3}
    page = read(data)
    assert page.row(0, "recipe")[1:5] == ["AP gap", "AR gap", "female AP", "male AP"]
    assert page.row(0, "baseline")[1:5] == ["0.0763", "0.0094", "0.3905", "0.4668"]
    for recipe in data["recipes"]:
        epochs, batch = recipe["epochs"], recipe["batch_size"]
        row = page.row(0, f"{recipe['name']} {epochs} epochs, batches of {batch}")
        for cell, key in zip(row[1:5], KEYS, strict=True):
            values = [run[key] for run in recipe["runs"]]
            mean, std = shown(np.mean(values)), shown(np.std(values, ddof=1))
            change = shown(np.mean(values) - data["baseline"][key], "+")
            assert cell == f"{mean} ± {std} {change} ± 0.0021 {recipe['success'][key]}/3"
        assert row[5:] == [f"{12.7 * epochs + 1:.0f}", f"{980 * epochs:,}", f"{480 * epochs:,}"]


def test_every_run_has_its_numbers_in_its_row(comparison):
    data = comparison()
    page = read(data)
    for recipe in data["recipes"]:
        for run in recipe["runs"]:
            row = page.row(1, recipe["name"], str(run["seed"]))
            marks = [f"{shown(run[key])} {'✓' if run['success'][key] else '✗'}" for key in KEYS]
            interval = " to ".join(shown(bound, "+") for bound in run["ap_gap_ci95"])
            rest = [shown(run["ap_gap_change"], "+"), interval, f"{run['seconds']:.0f}"]
            assert row[2:] == [str(run["epoch"]), *marks, *rest]


@pytest.mark.parametrize(("error", "told"), [(0.001, "is more than"), (0.0035, "could be")])
def test_seeds_and_images_are_both_chance(comparison, error, told):
    data = comparison()
    for recipe, gap, change in zip(data["recipes"], (0.07, -0.08, 0.0663), (-0.0063, -0.1563, -0.01), strict=True):
        with_gaps(recipe, gap, std=0.003, change=change, images_error=error)
    reach = math.sqrt((4.302653 * 0.003 / math.sqrt(3)) ** 2 + (1.959964 * error) ** 2)
    bounds = f"{shown(-0.01 - reach, '+')} to {shown(-0.01 + reach, '+')}"
    said = f"and {told} that of seeds and images together ({bounds})."
    assert said in read(data).words
    assert said in " ".join(printed(data).split())


def test_one_seed_has_no_spread_and_no_verdict(comparison):
    data = comparison(seeds=1)
    page = read(data)
    row = page.row(0, "moco_4th 10 epochs, batches of 8")
    assert row[1].split()[0] == shown(data["recipes"][1]["runs"][0]["ap_gap"])
    assert all(cell.split()[1] != "±" and cell.split()[2:4] == ["±", "0.0021"] for cell in row[1:5])
    assert "over 1 seed," in page.words
    assert "chance of the seeds" not in page.words
    assert "±" not in printed(data)
    (run,) = data["recipes"][0]["runs"]
    for interval, told in (([-0.02, -0.001], "is more than"), ([-0.02, 0.001], "could be"), (None, "could be")):
        run |= {"ap_gap": 0.001, "ap_gap_ci95": interval}
        bounds = " to ".join(shown(bound, "+") for bound in interval) if interval else "–"
        said = f"This change {told} the chance of the images (95 % interval {bounds}); one seed says nothing of others."
        assert said in read(data).words


def test_the_terminals_table_is_whole_at_80_columns(comparison):
    data = comparison()
    data["recipes"][0]["name"] = "infonce_4th_x"
    data["recipes"][1]["success"] = {"ap_gap": 0, "ar_gap": 1, "anchor_ap": 2, "reference_ap": 3}
    # gaps that have turned round take a sign more
    turned = data["recipes"][2]
    for key in ("ap_gap", "ar_gap"):
        for run in turned["runs"]:
            run[key] = -abs(run[key])
        turned["summary"][key]["mean"] = np.mean([run[key] for run in turned["runs"]])
    turned["summary"]["ap_gap"]["change"] = turned["summary"]["ap_gap"]["mean"] - data["baseline"]["ap_gap"]
    narrow, wide = printed(data, 80).splitlines(), printed(data, 120).splitlines()
    assert max(map(len, narrow)) <= 80
    assert "700 female, 700 male images" in narrow[0]
    assert "baseline .0763 .0094 .3905 .4668" in " ".join(" ".join(narrow).split())
    assert "AP gap change AR gap female AP male AP criteria seconds" in " ".join(" ".join(wide).split())
    assert "…" not in "".join(narrow)
    for recipe in data["recipes"]:
        cells = []
        for key in KEYS:
            values = [run[key] for run in recipe["runs"]]
            cells.append(f"{np.mean(values):.4f}±{np.std(values, ddof=1):.4f}".replace("0.", ".").replace("-", "−"))
        change = shown(np.mean([run["ap_gap"] for run in recipe["runs"]]) - data["baseline"]["ap_gap"], "+")
        cells.insert(1, change.replace("0.", "."))
        cells.append("-".join(str(recipe["success"][key]) for key in KEYS) + "/3")
        row = next(line.split() for line in narrow if line.startswith(recipe["name"][:9]))
        assert row[1:] == cells
        row = next(line.split() for line in wide if line.startswith(recipe["name"]))
        assert row == [recipe["name"], *cells, f"{recipe['seconds']['mean']:.0f}"]


@pytest.mark.parametrize(("spread", "told"), [(0.0019, "is more than"), (0.0022, "could be")])
def test_the_best_recipe_and_its_change_are_said_first(comparison, spread, told):
    data = comparison()
    for recipe, gap, change in zip(data["recipes"], (0.07, -0.08, 0.0663), (-0.0063, -0.1563, -0.005), strict=True):
        with_gaps(recipe, gap, std=spread, change=change, images_error=None)
    said = "wgan_7th has the smallest AP gap (male − female) by its mean size (0.0663): "
    said += f"0.0663 ± {spread:.4f} over 3 seeds, against 0.0763"
    reach = 4.302653 * spread / math.sqrt(3)  # Student's t with two degrees of freedom, from a table
    bounds = f"{shown(-0.005 - reach, '+')} to {shown(-0.005 + reach, '+')}"
    verdict = f"This change {told} the chance of the seeds (95 % interval of its mean {bounds})."
    words = read(data).words
    assert words.index(said) < words.index(verdict) < words.index("Recipes on the test split")
    assert f"(−0.0050, −6.6 %). {verdict}" in words
    assert "no recipe makes the gap smaller" not in words
    assert f"{verdict} As the best of 3 by these very numbers it is favoured by chance" in words
    flat = " ".join(printed(data).split())
    assert said in flat
    assert verdict in flat
    del data["recipes"][1:]
    assert "favoured by chance" not in read(data).words


def test_it_is_said_when_no_recipe_helps(comparison):
    data = comparison()
    for recipe in data["recipes"]:
        with_gaps(recipe, -0.09, change=-0.1663)
    assert "no recipe makes the gap smaller than it was" in read(data).words


def test_gaps_of_either_sign_are_no_small_gap(comparison):
    data = comparison()
    for recipe, gaps in zip(
        data["recipes"], ((0.06, -0.06, 0.05), (0.017, 0.018, 0.019), (0.07, None, -0.08)), strict=True
    ):
        for run, gap in zip(recipe["runs"], gaps, strict=True):
            run["ap_gap"] = gap
        recipe["summary"]["ap_gap"]["mean"] = np.mean([gap for gap in gaps if gap is not None])
    assert "moco_4th has the smallest AP gap (male − female) by its mean size (0.0180): 0.0180" in read(data).words
    data["recipes"][1]["runs"] = []
    assert "infonce_4th has the smallest AP gap (male − female) by its mean size (0.0567): 0.0167" in read(data).words
    data["recipes"][0]["runs"] = []
    words = read(data).words
    assert "wgan_7th has the smallest AP gap (male − female) by its mean size (0.0750): −0.0050" in words
    assert "over 2 seeds" in words
    assert "no recipe makes" not in words
    data["recipes"][2]["runs"][0]["ap_gap"] = 0.08
    assert "no recipe makes the gap smaller than it was" in read(data).words


def test_a_change_is_no_share_of_a_gap_that_is_shown_as_none(comparison):
    data = comparison()
    data["baseline"]["ap_gap"] = 1e-17
    said = re.search(r"against 0\.0000 at the baseline \(([^)]*)\)", read(data).words)
    assert said
    assert "%" not in said[1]


def test_recipes_that_meet_all_criteria_are_counted(comparison):
    data = comparison()
    for recipe in data["recipes"]:
        recipe["success"] = dict.fromkeys(KEYS, 3)
    data["recipes"][0]["success"]["ar_gap"] = 2
    assert "2 of 3 recipes meet all four success criteria in all seeds." in read(data).words
    data["recipes"][1]["success"]["ap_gap"] = 0
    assert "1 of 3 recipes meets all four" in read(data).words


def test_failed_runs_come_before_the_result(comparison):
    data = comparison()
    data["failed"] = [{"recipe": "wgan_7th", "seed": 7, "error": "<b>loss</b> is not finite"}]
    words = read(data).words
    assert words.index("1 run failed") < words.index("wgan_7th, seed 7: <b>loss</b> is not finite")
    assert words.index("seed 7") < words.index("has the smallest AP gap")
    assert "in every run that finished" in words
    assert "wgan_7th, seed 7, failed: <b>loss</b> is not finite" in printed(data)


def test_nothing_but_failures(comparison):
    data = comparison(names=())
    nothing = dict.fromkeys(KEYS)
    data |= {"baseline": nothing, "validation_baseline": nothing, "images": {}, "shared": {}, "detector_sha256": None}
    data["failed"] = [{"recipe": "moco_4th", "seed": seed, "error": "out of luck"} for seed in (0, 1)]
    page = read(data)
    assert "2 runs failed and are in none of the numbers" in page.words
    assert page.words.count("out of luck") == 2
    assert "No run has measured an AP gap." in page.words
    assert comparison_figures(data) == []
    assert printed(data).count("out of luck") == 2


def test_unknown_numbers_are_dashes(comparison):
    data = comparison()
    recipe, run = data["recipes"][0], data["recipes"][0]["runs"][0]
    recipe["summary"]["ar_gap"] = dict.fromkeys(("mean", "std", "change", "images_error"))
    recipe["seconds"]["mean"] = recipe["detector_passes"]["forward"] = recipe["success"]["ar_gap"] = None
    run |= dict.fromkeys(("epoch", "ap_gap", "reference_ap", "ap_gap_ci95", "seconds"))
    run["curves"]["validation"]["ap_gap"] = [None] * 24
    run["curves"]["train"]["total"][3] = None
    for other in data["recipes"][0]["runs"]:
        other["curves"]["train"]["sim_f2m"] = [None] * 24
    for other in data["recipes"][2]["runs"]:
        other["curves"]["train"]["wasserstein"] = [None] * 30
    data["baseline"]["ar_gap"] = None
    page = read(data)
    row = page.row(0, "infonce_4th 24 epochs, batches of 8")
    assert row[2] == "– – –/3"
    assert row[5:7] == ["–", "–"]
    row = page.row(1, "infonce_4th", "0")
    assert row[2:4] == ["–", f"– {'✓' if run['success']['ap_gap'] else '✗'}"]
    assert row[8:] == ["–", "–"]
    drawn = figures(data)
    assert [len(axes.lines) for axes in drawn["similarity"].axes[:2]] == [1 + 1, 1 + 2 + 1]  # one is left, and marks
    assert len(drawn["loss_wasserstein"].axes) == 2
    assert "–" in printed(data)
    for which in ("baseline", "validation_baseline"):
        data[which] = dict.fromkeys(KEYS)
    assert read(data).row(0, "baseline")[1:5] == ["–"] * 4
    assert "ap" not in figures(data)


def test_everything_is_escaped(comparison, tmp_path):
    evil = "<script>alert(1)</script> & $x$"
    data = comparison(names=(evil, "other"), anchor="<b>old</b>", reference="[b]young[/b]")
    data["recipes"][0]["description"] = data["rule"] = evil
    data["recipes"][1]["differs"] = {"head": evil}
    data["shared"] = {"dataset_root": evil}
    page = read_whole(data, tmp_path)
    assert not [tag for tag, _ in page.tags if tag in ("script", "b")]
    assert page.words.count(evil) >= 6 + 3
    assert "[b]young[/b] − <b>old</b>" in page.words
    assert "female" not in page.words
    text = printed(data, 200)
    assert evil in text
    assert "<b>old</b> AP  [b]young[/b] AP" in text


def test_nothing_is_fetched_and_pictures_are_drawings(comparison, tmp_path):
    page = read_whole(comparison(), tmp_path)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link")
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    style = re.search(r"<style>(.*)</style>", (tmp_path / "compare.html").read_text(), re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 5 + 6  # of loss terms there are six
    for image in images:
        drawing = base64.b64decode(image["src"].removeprefix("data:image/svg+xml;base64,"))
        assert ElementTree.fromstring(drawing).tag.endswith("svg")
        assert image["alt"]


@pytest.mark.parametrize("count", [1, 5, 15])
def test_a_panel_for_each_recipe_with_the_same_limits(comparison, count):
    data = comparison(names=[f"recipe_{i}" for i in range(count)], seeds=1)
    drawn = figures(data)
    assert list(drawn)[:7] == [
        "ap_gap", "ap", "trade_off", "similarity", "score_gap", "loss_total", "loss_detection",
    ]  # fmt: skip
    for slug in set(drawn) - {"trade_off"}:
        panels = drawn[slug].axes
        assert len({(axes.get_xlim(), axes.get_ylim()) for axes in panels}) == 1
        if slug not in ("loss_infonce", "loss_momentum", "loss_adversarial"):
            assert [axes.get_title(loc="left") for axes in panels] == [recipe["name"] for recipe in data["recipes"]]
    assert [axes.get_title(loc="left") for axes in drawn["loss_infonce"].axes] == [
        recipe["name"] for recipe in data["recipes"][::3]
    ]
    assert not {f"loss_{name}" for name in ("n_f", "n_m", "queue", "delta_l2", "gradient_norm", "sim_f2m")} & set(drawn)


def test_panels_show_mean_band_baseline_choices_and_the_first_recipe(comparison):
    data = comparison()
    data["recipes"][1]["runs"][0]["epoch"] = data["recipes"][1]["runs"][1]["epoch"] = 4
    data["recipes"][1]["runs"][2]["epoch"] = 7
    first, second, _ = figures(data)["ap_gap"].axes
    runs = np.array([run["curves"]["validation"]["ap_gap"] for run in data["recipes"][1]["runs"]])
    beside, baseline, mean, marks = second.lines
    np.testing.assert_allclose(mean.get_ydata(), runs.mean(0))
    (band,) = second.collections
    corners = band.get_paths()[0].vertices
    for epoch in range(10):
        heights = corners[corners[:, 0] == epoch, 1]
        assert (heights.min(), heights.max()) == pytest.approx((runs[:, epoch].min(), runs[:, epoch].max()))
    assert baseline.get_ydata()[0] == data["validation_baseline"]["ap_gap"]
    assert baseline.get_linestyle() == "--"
    assert list(marks.get_xdata()) == [4, 4, 7]
    assert marks.get_ydata()[0] == marks.get_ydata()[2] < marks.get_ydata()[1]
    np.testing.assert_array_equal(beside.get_ydata(), first.lines[1].get_ydata())
    assert len(first.lines) == 3
    low, high = second.get_ylim()
    assert low < runs.min() <= runs.max() < high


def test_group_curves_are_changes_against_the_validation_baseline(comparison):
    data = comparison(seeds=1)
    axes = figures(data)["ap"].axes[0]
    for line, key in zip(axes.lines[1:3], ("anchor_ap", "reference_ap"), strict=True):
        curve = np.array(data["recipes"][0]["runs"][0]["curves"]["validation"][key])
        np.testing.assert_allclose(line.get_ydata(), curve - data["validation_baseline"][key])
    assert list(axes.lines[0].get_ydata()) == [0, 0]


def test_the_score_gap_shows_where_zero_is(comparison):
    data = comparison()
    for recipe in data["recipes"]:
        for run in recipe["runs"]:
            run["curves"]["train"]["score_gap"] = [0.1] * recipe["epochs"]
    for axes in figures(data)["score_gap"].axes:
        assert axes.get_ylim()[0] < 0
        assert list(axes.lines[0].get_ydata()) == [0, 0]


def test_a_dot_for_each_run_and_a_name_for_each_mean(comparison):
    data = comparison(names=[f"recipe_{i}" for i in range(15)])
    data["recipes"][2]["runs"][1]["anchor_ap"] = None
    [(_, _, figure)] = draw_trade_off(data)
    (axes,) = figure.axes
    base = data["baseline"]["reference_ap"], data["baseline"]["anchor_ap"]
    marks = [line for line in axes.lines if line.get_marker() != "None"]
    points = [tuple(point) for line in marks for point in np.transpose(line.get_data()) if np.isfinite(point).all()]
    assert len(points) == 1 + 15 * 3 - 1 + 15
    assert base in points
    (legend,) = axes.figure.legends
    signs = dict(zip([text.get_text().strip() for text in legend.get_texts()], legend.legend_handles, strict=True))
    styles = {}
    for recipe in data["recipes"]:
        mean = tuple(recipe["summary"][key]["mean"] for key in ("reference_ap", "anchor_ap"))
        (line,) = [line for line in marks if tuple(np.transpose(line.get_data())[0]) == mean]
        styles[recipe["name"]] = line.get_color(), line.get_marker()
        sign = signs[recipe["name"]]
        assert (sign.get_color(), sign.get_marker()) == styles[recipe["name"]]
        (runs,) = [line for line in marks if line.get_data()[0][0] == recipe["runs"][0]["reference_ap"]]
        assert (runs.get_color(), runs.get_marker()) == styles[recipe["name"]]
        assert runs.get_markersize() < line.get_markersize()
    assert len(set(styles.values())) == 15
    (diagonal,) = [line for line in axes.lines if hasattr(line, "get_slope")]
    assert diagonal.get_xy1() == base
    assert diagonal.get_slope() == 1
    assert axes.get_aspect() == 1
    figure.draw_without_rendering()
    assert axes.yaxis.label.get_window_extent().x0 > 0  # the axis's name is on the picture


def test_the_line_of_no_gap_is_drawn_where_it_is_in_sight(comparison):
    data = comparison()
    for recipe in data["recipes"]:
        recipe["runs"][0]["reference_ap"] = recipe["runs"][0]["anchor_ap"]
    [(_, _, figure)] = draw_trade_off(data)
    (axes,) = figure.axes
    diagonals = [line for line in axes.lines if hasattr(line, "get_slope")]
    assert [line.get_xy1()[0] == line.get_xy1()[1] for line in diagonals] == [False, True]


def test_what_was_run_is_told(comparison):
    data = comparison()
    words = read(data).words
    assert "test split: 700 female images, 700 male images" in words
    assert words.index(data["rule"]) < words.index("has the smallest AP gap")
    assert data["detector_sha256"] in words
    assert "images_per_epoch 480 dataset_root promenade" in words
    for recipe in data["recipes"]:
        assert recipe["description"] in words
    assert "temperature: 0.07 · epochs: 10" in words


def test_data_detector_and_versions_are_named(comparison):
    data = comparison()
    source = {"dataset": "/somewhere/people", "split_sha256": "ab" * 32, "versions": {"faap": "0.9", "torch": "2.8"}}
    source["detector"] = {"name": "models/detr.pth", "file_sha256": "cd" * 32, "tensors_sha256": "ef" * 32}
    words = read(data | {"provenance": source}).words
    assert "the same frozen detector, detr.pth, on people." in words
    assert f"data /somewhere/people, test split {'ab' * 32}" in words
    assert f"detector models/detr.pth, file {'cd' * 32}, tensors {'ef' * 32}" in words
    assert "measured faap 0.9, torch 2.8" in words


def test_the_input_is_left_as_it_is(comparison):
    data = comparison()
    before = copy.deepcopy(data)
    read(data)
    printed(data)
    assert data == before


def with_verdicts(data, verdicts):
    """Judge every run alike, as three-state results are gathered."""
    for recipe in data["recipes"]:
        for run in recipe["runs"]:
            run["verdicts"] = dict(zip(KEYS, verdicts, strict=True))
            run["success"] = {key: verdict == MET for key, verdict in run["verdicts"].items()}
        count = len(recipe["runs"])
        recipe["verdicts"] = {
            key: {name: count * (name == verdict) for name in (MET, NOT_MET, UNKNOWN)}
            for key, verdict in zip(KEYS, verdicts, strict=True)
        }
        recipe["success"] = {key: counts[MET] for key, counts in recipe["verdicts"].items()}
    return data


def test_what_cannot_be_told_is_neither_met_nor_missed(comparison):
    data = with_verdicts(comparison(), [MET, NOT_MET, UNKNOWN, MET])
    page = read(data)
    assert page.row(0, "moco_4th 10 epochs, batches of 8")[3].endswith("0/3 3 ?")
    cells = page.row(1, "moco_4th", "0")[3:7]
    assert [cell.split()[1] for cell in cells] == ["✓", "✗", "?", "✓"]
    assert "0 of 3 recipes meet all four success criteria in all seeds." in page.words
    data = with_verdicts(comparison(), [MET, MET, UNKNOWN, UNKNOWN])
    data["recipes"][0] = with_verdicts(comparison(), [MET] * 4)["recipes"][0]
    said = "1 of 3 recipes meets all four success criteria in all seeds; of 2 it cannot be told."
    assert said in read(data).words
    assert said in " ".join(printed(data).split())


def test_a_detector_that_finds_nobody_makes_no_recipe_a_success(comparison):
    """Also where the runs were judged by an earlier version, which called them met."""
    data = comparison()
    dead = {"ap_gap": 0.0, "ar_gap": 0.0, "anchor_ap": 0.0, "reference_ap": 0.0}
    for recipe in data["recipes"]:
        recipe["success"] = dict.fromkeys(KEYS, 3)
        for key in KEYS:
            recipe["summary"][key]["mean"] = 0.0
    page = read(data)
    assert "0 of 3 recipes meet all four" in page.words
    data["baseline"] = dead
    data["warnings"] = ["Without the generator the detector finds nobody <b>: right checkpoint?"]
    for text in (read(data).words, " ".join(printed(data).split())):
        assert "The detector alone finds nobody: right checkpoint? right class names?" in text
        assert "meet all four" not in text
        assert "smallest AP gap" not in text
        assert data["warnings"][0] in text


def test_groups_that_are_numbers_are_called_groups(comparison, tmp_path):
    data = comparison(("equal",), seeds=1, anchor="6", reference="1")
    table, text = printed(data, 300), " ".join(read_whole(data, tmp_path).text)
    assert "700 group 6, 700 group 1 images" in table
    assert "smallest AP gap (group 1 − group 6)" in table
    assert "the gap between group 6 (the anchor group, to be lifted) and group 1" in text
    assert not re.search(r"(?<!group )\b[16] (images|AP|−|\()", table + text)
    assert "group 6 AP" in figures(data)["trade_off"].axes[0].get_ylabel()
