"""Draw the plots and fill in the tables of docs/results.md from the comparisons in docs/results/*.json.

    .venv/bin/faap compare contrastive_1st infonce_3rd infonce_3rd_fix2 infonce_4th wgan_7th moco_4th \\
        --seeds 5 --jobs 2 --images_per_epoch 480 --widths 24,48,96 --output_dir faap_outputs/systems
    .venv/bin/faap compare infonce_4th --ablate --seeds 3 --jobs 2 --images_per_epoch 480 --widths 24,48,96 \\
        --output_dir faap_outputs/ablation
    .venv/bin/python tools/write_results.py systems=faap_outputs/systems/compare.json \\
        ablation=faap_outputs/ablation/compare.json

Without arguments it uses what docs/results holds. It draws the plots that docs/results.md names. A table stands between
`<!-- NAME: test -->` (or `validation`, or `paired`) and `<!-- end -->`; that of `equal`'s runs, from the seeds.json of
the generator that ships (tools/ship_generator.py), after `<!-- equal: seeds -->`, there, in docs/recipes/equal.md and
both READMEs; every run of a published recipe after `<!-- NAME: runs -->`, on its page in docs/recipes.
"""

import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from faap.evaluation import HEADLINE, t_interval
from faap.promenade import shipped_run
from faap.report import comparison_figures, words
from faap.report.charts import ANCHOR_COLOUR, GAP_COLOUR, QUIET, REFERENCE_COLOUR, style
from faap.runs import Run

DOCS = Path(__file__).parents[1] / "docs"
SEEDS_MARK = "<!-- equal: seeds -->\n"
HEADINGS = (
    "",
    "seeds",
    "AP gap",
    "its change",
    "AR gap",
    "women's AP",
    "men's AP",
    "criteria met",
    "chosen epochs",
    "seconds",
    "detector passes",
)

RECORDED = DOCS / "results" / "measured"
BOUNDS = {"ladder": "trained at it", "lower": "trained at .10, lowered afterwards"}


def number(value: float, sign: bool = False) -> str:
    """A number without the nought before its point; unlike `words.number`, a signed zero keeps its sign."""
    text = words.number(value, sign=sign)
    return ("+" if sign and text == "0.0000" else "") + text.replace("0.", ".", 1)


def spread(values: list[float]) -> str:
    return number(fmean(values)) + (f" ± {number(stdev(values))}" if len(values) > 1 else "")


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


MEASURED = (
    "",
    "gap without it",
    "gap that is left",
    "closed",
    "women's AP",
    "change",
    "men's AP",
    "change",
    "PSNR, dB",
)
MEASURED_HEAD = (row(*MEASURED), row("---", *["---:"] * 8))


def test_table(comparison: dict[str, Any]) -> list[str]:
    """The test split at the chosen epochs: means and standard deviations over seeds."""
    base = comparison["baseline"]
    lines = [
        row(*HEADINGS),
        row("---", *["---:"] * 10),
        row(
            "detector alone",
            "",
            number(base["ap_gap"]),
            "",
            *(number(base[key]) for key in list(HEADLINE)[1:]),
            "",
            "",
            "",
            "",
        ),
    ]
    for recipe in comparison["recipes"]:
        runs = recipe["runs"]
        gap, *rest = (spread([run[key] for run in runs]) for key in HEADLINE)
        met = ", ".join(f"{recipe['success'][key]}/{len(runs)}" for key in HEADLINE)
        epochs = ", ".join(str(run["epoch"]) for run in runs)
        passes = f"{recipe['detector_passes']['forward']:,} + {recipe['detector_passes']['backward']:,}"
        change = number(recipe["summary"]["ap_gap"]["change"], sign=True)
        cost = f"{recipe['seconds']['mean']:.0f}"
        lines.append(row(f"`{recipe['name']}`", str(len(runs)), gap, change, *rest, met, epochs, cost, passes))
    return lines


def validation_table(comparison: dict[str, Any]) -> list[str]:
    """The validation split at the end of training, whatever epoch was chosen, and how rough the way there was."""
    base = comparison["validation_baseline"]
    lines = [
        row("", "epochs", "AP gap at the end", "women's AP", "men's AP", "score gap", "roughness of women's AP"),
        row("---", *["---:"] * 6),
        row("detector alone", "", *(number(base[key]) for key in ("ap_gap", "anchor_ap", "reference_ap")), "", ""),
    ]
    for recipe in comparison["recipes"]:
        curves = [run["curves"] for run in recipe["runs"]]
        last = [
            spread([each["validation"][key][-1] for each in curves]) for key in ("ap_gap", "anchor_ap", "reference_ap")
        ]
        score = spread([each["train"]["score_gap"][-1] for each in curves])
        ways = [each["validation"]["anchor_ap"] for each in curves]
        rough = spread([fmean(abs(b - a) for a, b in pairwise(way)) for way in ways])
        lines.append(row(f"`{recipe['name']}`", str(recipe["epochs"]), *last, score, rough))
    return lines


def difference(values: list[float]) -> str:
    """A mean with its 95 % interval by Student's t; a single value has none."""
    if len(values) == 1:
        return number(values[0], sign=True)
    low, high = t_interval(fmean(values), stdev(values), len(values))
    return f"{number(fmean(values), sign=True)} ({number(low, sign=True)} to {number(high, sign=True)})"


def paired_table(comparison: dict[str, Any]) -> list[str]:
    """The differences to infonce_4th, else to the first, seed by seed, and how far the score gap went in training."""
    keys = ("anchor_ap", "reference_ap", "ap_gap")
    recipes = comparison["recipes"]
    fourth = next((recipe for recipe in recipes if recipe["name"] == "infonce_4th"), recipes[0])
    last = {run["seed"]: {key: run["curves"]["validation"][key][-1] for key in keys} for run in fourth["runs"]}
    tested = {run["seed"]: run["ap_gap"] for run in fourth["runs"]}
    lines = [
        row("", "women's AP", "men's AP", "AP gap", "AP gap on test, chosen epoch", "score gap, lowest to highest"),
        row("---", *["---:"] * 5),
    ]
    for recipe in comparison["recipes"]:
        differences = [
            [run["curves"]["validation"][key][-1] - last[run["seed"]][key] for run in recipe["runs"]] for key in keys
        ]
        differences.append([run["ap_gap"] - tested[run["seed"]] for run in recipe["runs"]])
        cells = [""] * 4 if recipe is fourth else [difference(values) for values in differences]
        scores = [value for run in recipe["runs"] for value in run["curves"]["train"]["score_gap"]]
        lines.append(row(f"`{recipe['name']}`", *cells, f"{number(min(scores))} to {number(max(scores))}"))
    return lines


def seeds_table(seeds: dict[str, Any], metrics: dict[str, Any]) -> list[str]:
    """What each run of `equal` left on the test split, beside detector and control; intervals are of the images."""
    runs, control, before = seeds["runs"], seeds["control"], metrics["baseline"]
    gaps = (number(metrics["gap"][name]["baseline"]) for name in ("AP", "AR"))
    alone = [number(control["AP"]["groups"][group]["value"]) for group in ("female", "male")]
    lines = [
        row("", "AP gap", "AR gap", "women's AP", "change", "men's AP", "change"),
        row("---", *["---:"] * 6),
        row("detector alone", *gaps, number(before["female"]["AP"]), "", number(before["male"]["AP"]), ""),
    ]

    own = (within(control[name]["value"], control[name]["ci95"]) for name in ("AP", "AR"))
    lines.append(row("control: trained without the bias", *own, alone[0], "", alone[1], ""))
    for each in runs:
        left = (within(each["gap"][name]["perturbed"], each["gap"][name]["perturbed_ci95"]) for name in ("AP", "AR"))
        moved = (each["AP"][group] for group in ("female", "male"))
        aps = (cell for m in moved for cell in (number(m["perturbed"]), within(m["change"], m["ci95"], sign=True)))
        lines.append(row(f"`equal`, seed {each['seed']}", *left, *aps))
    means = [spread([each["gap"][name]["perturbed"] for each in runs]) for name in ("AP", "AR")]
    for group in ("female", "male"):
        means += [spread([each["AP"][group]["perturbed"] for each in runs])]
        means += [number(fmean(each["AP"][group]["change"] for each in runs), sign=True)]
    return [*lines, row("mean ± standard deviation of the seeds", *means)] if len(runs) > 1 else lines


def within(value: float, bounds: list[float], sign: bool = False) -> str:
    """A number with its 95 % interval."""
    low, high = (number(each, sign=True) for each in bounds)
    return f"{number(value, sign=sign)} ({low} to {high})"


def measured_row(name: str, measured: dict[str, Any]) -> str:
    """What one measurement of a generator left; intervals are of the images."""
    gap, changes = measured["gap"]["AP"], measured["changes"]
    closed = f"{100 * (1 - abs(gap['perturbed']) / abs(gap['baseline'])):.0f} %".replace("-", "−")
    cells = [number(gap["baseline"]), within(gap["perturbed"], gap["perturbed_ci95"]), closed]
    for group in ("female", "male"):
        moved = changes[group]["AP"]
        cells += [number(moved["perturbed"]), within(moved["change"], moved["ci95"], sign=True)]
    return row(name, *cells, f"{measured['perturbation']['psnr_db']:.1f}")


def arrivals_table(rows: list[dict[str, Any]]) -> list[str]:
    """Each generator through what others do to its images."""
    found = [each for each in rows if each["kind"] == "arrival"]
    named = ((f"`{each['generator']}`, {words.arrival(each) or 'as made'}", each) for each in found)
    return [*MEASURED_HEAD, *(measured_row(name, each) for name, each in named)]


def bounds_table(rows: list[dict[str, Any]]) -> list[str]:
    """Generators at several bounds, the largest first."""
    others = sorted((each for each in rows if each["kind"] != "arrival"), key=bound_of, reverse=True)
    named = [(f"ε {bound_of(rows[0]):g}, trained at it", rows[0])]
    named += [(f"ε {bound_of(each):g}, {BOUNDS[each['kind']]}", each) for each in others]
    return [*MEASURED_HEAD, *(measured_row(name, each) for name, each in named)]


def bound_of(measured: dict[str, Any]) -> float:
    return float(measured["perturbation"]["epsilon"])


def with_ends(axes: Axes, bounds: list[float], moved: list[tuple[float, list[float]]], **look: Any) -> None:
    """Draw values, each with the two ends of its interval, over the bounds."""
    values = [value for value, _ in moved]
    errors = [[value - low for value, (low, _) in moved], [high - value for value, (_, high) in moved]]
    axes.errorbar(bounds, values, errors, capsize=3, **look)


@style()
def draw_bounds(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw what is left of the gap, and both groups' change, over the bound."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kind, marker, dashes in (("ladder", "o", "-"), ("lower", "s", "--")):
        found = [rows[0], *(each for each in rows if each["kind"] == kind)]
        if len(found) < 2:
            continue
        found = sorted(found, key=bound_of)
        bounds, look = [bound_of(each) for each in found], {"marker": marker, "linestyle": dashes}
        gaps = [(each["gap"]["AP"]["perturbed"], each["gap"]["AP"]["perturbed_ci95"]) for each in found]
        with_ends(left, bounds, gaps, color=GAP_COLOUR, label=BOUNDS[kind], **look)
        for group, colour, name in (("female", ANCHOR_COLOUR, "women"), ("male", REFERENCE_COLOUR, "men")):
            moved = [(each["changes"][group]["AP"]["change"], each["changes"][group]["AP"]["ci95"]) for each in found]
            with_ends(right, bounds, moved, color=colour, label=f"{name}, {BOUNDS[kind]}", **look)
    left.axhline(rows[0]["gap"]["AP"]["baseline"], color=QUIET, linestyle=":", label="detector alone")
    for axes, title in ((left, "AP gap (men − women)"), (right, "change of AP")):
        axes.axhline(0, color=QUIET, linewidth=0.8)
        axes.set(title=title, xlabel="bound ε (normalised units)", xticks=sorted({bound_of(each) for each in rows}))
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def coverage_table(measured: dict[str, Any]) -> list[str]:
    """How often intervals hold the truth, by the number of images."""
    names = {
        "AP baseline_ci95": "AP gap",
        "AP ci95": "its change",
        "AR100 baseline_ci95": "AR gap",
        "AR100 ci95": "its change",
    }
    head = [row("images of a group", *names.values()), row("---:", *["---:"] * len(names))]
    return [
        *head,
        *(
            row(str(each["images"]), *(f"{100 * each['covered'][key]:.1f} %" for key in names))
            for each in measured["rows"]
        ),
    ]


def runs_table(name: str, comparisons: dict[str, dict[str, Any]]) -> list[str]:
    """Every run of a published recipe: as it was published, and at `equal`'s training."""
    base = comparisons["systems"]["baseline"]
    lines = [
        row("", "images", "AP gap", "its change", "women's AP", "men's AP"),
        row("---", *["---:"] * 5),
        row("detector alone", "", number(base["ap_gap"]), "", number(base["anchor_ap"]), number(base["reference_ap"])),
    ]
    for place, suffix, training in (("systems", "", "as published"), ("long", "_long", "at `equal`'s training")):
        for run in (run for r in comparisons[place]["recipes"] if r["name"] == name + suffix for run in r["runs"]):
            change = within(run["ap_gap_change"], run["ap_gap_ci95"], sign=True)
            cells = number(run["ap_gap"]), change, number(run["anchor_ap"]), number(run["reference_ap"])
            lines.append(row(f"{training}, seed {run['seed']}", f"{run['images']:,}", *cells))
    return lines


def fill_in(text: str, mark: str, table: list[str]) -> tuple[str, int]:
    """Put a table between a mark and the next end; return how often there was such a place."""
    content = mark + "\n".join(table) + "\n"
    return re.subn(re.escape(mark) + r".*?(?=<!-- end -->)", lambda _: content, text, flags=re.DOTALL)


def fill_page(page: Path, mark: str, table: list[str]) -> None:
    """Put a table into a page that has one such place."""
    text, count = fill_in(page.read_text(encoding="utf-8"), mark, table)
    if count != 1:
        raise SystemExit(f"{page} must have {mark.strip()} … <!-- end --> once; it has it {count} times")
    page.write_text(text, encoding="utf-8")


def together(earlier: dict[str, Any], comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Add to the recipes of an earlier comparison, on the same images, those of a new one, which replace their like."""
    alike = [earlier[key] == comparison[key] for key in ("detector_sha256", "images")]
    for key in ("baseline", "validation_baseline"):  # another machine rounds otherwise
        alike += [abs(value - comparison[key][name]) < 1e-3 for name, value in earlier[key].items()]
    if not all(alike):
        raise SystemExit("the comparisons are of other images or another detector, and cannot stand in one table")
    names = [recipe["name"] for recipe in comparison["recipes"]]
    return [*(recipe for recipe in earlier["recipes"] if recipe["name"] not in names), *comparison["recipes"]]


def main() -> None:
    for argument in sys.argv[1:]:
        name, _, source = argument.partition("=")
        comparison, place = json.loads(Path(source).read_text()), DOCS / "results" / f"{name}.json"
        for recipe in comparison["recipes"]:
            for run in recipe["runs"]:
                del run["run_dir"]  # where it lay says nothing to a reader
        if place.exists():
            comparison["recipes"] = together(json.loads(place.read_text()), comparison)
        place.write_text(json.dumps(comparison) + "\n")
    comparisons = {path.stem: json.loads(path.read_text()) for path in sorted((DOCS / "results").glob("*.json"))}
    page = DOCS / "results.md"
    text = page.read_text(encoding="utf-8")
    for name, comparison in comparisons.items():
        for kind, fill in (("test", test_table), ("validation", validation_table), ("paired", paired_table)):
            fill_page(page, f"<!-- {name}: {kind} -->\n", fill(comparison))
        for slug, _, figure in comparison_figures(comparison):
            picture = f"images/results_{name}_{slug}.png"
            if picture in text:
                figure.savefig(DOCS / picture, dpi=110)
    for recipe in comparisons["systems"]["recipes"]:
        mark = f"<!-- {recipe['name']}: runs -->\n"
        fill_page(DOCS / "recipes" / f"{recipe['name']}.md", mark, runs_table(recipe["name"], comparisons))
    rows = json.loads((RECORDED / "survival.json").read_text())
    draw_bounds(rows, DOCS / "images" / "survival_bounds.png")
    for name, table in (("arrivals", arrivals_table(rows)), ("bounds", bounds_table(rows))):
        fill_page(page, f"<!-- survival: {name} -->\n", table)
    coverage = json.loads((RECORDED / "coverage.json").read_text())
    fill_page(DOCS / "evaluation.md", "<!-- coverage -->\n", coverage_table(coverage))
    shipped = Run(shipped_run())
    table = seeds_table(json.loads((shipped.path / "seeds.json").read_text()), shipped.read_metrics())
    readmes = (DOCS.parent / "README.md", DOCS.parent / "README.ko.md")
    for page in (DOCS / "results.md", DOCS / "recipes" / "equal.md", *readmes):
        fill_page(page, SEEDS_MARK, table)


if __name__ == "__main__":
    main()
