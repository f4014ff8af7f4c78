"""Draw the plots and fill in the tables of docs/results.md from the comparisons in docs/results/*.json.

    .venv/bin/faap compare contrastive_1st infonce_3rd infonce_3rd_fix2 infonce_4th wgan_7th moco_4th \\
        --seeds 5 --jobs 2 --images_per_epoch 480 --widths 24,48,96 --output_dir faap_outputs/systems
    .venv/bin/faap compare infonce_4th --ablate --seeds 3 --jobs 2 --images_per_epoch 480 --widths 24,48,96 \\
        --output_dir faap_outputs/ablation
    .venv/bin/python tools/write_results.py systems=faap_outputs/systems/compare.json \\
        ablation=faap_outputs/ablation/compare.json

Without arguments it uses what docs/results holds. It draws the plots that docs/results.md names. A table stands between
`<!-- NAME: test -->` (or `validation`, or `paired`) and `<!-- end -->`.
"""

import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from faap.evaluation import HEADLINE, t_interval
from faap.report import comparison_figures, words

DOCS = Path(__file__).parents[1] / "docs"
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


def number(value: float, sign: bool = False) -> str:
    """A number without the nought before its point; unlike `words.number`, a signed zero keeps its sign."""
    text = words.number(value, sign=sign)
    return ("+" if sign and text == "0.0000" else "") + text.replace("0.", ".", 1)


def spread(values: list[float]) -> str:
    return number(fmean(values)) + (f" ± {number(stdev(values))}" if len(values) > 1 else "")


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


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
    """A mean with its 95 % interval by Student's t."""
    low, high = t_interval(fmean(values), stdev(values), len(values))
    return f"{number(fmean(values), sign=True)} ({number(low, sign=True)} to {number(high, sign=True)})"


def paired_table(comparison: dict[str, Any]) -> list[str]:
    """The differences to infonce_4th, seed by seed, and how far the score gap went in all of training."""
    keys = ("anchor_ap", "reference_ap", "ap_gap")
    (fourth,) = (recipe for recipe in comparison["recipes"] if recipe["name"] == "infonce_4th")
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


def fill(text: str, comparisons: dict[str, dict[str, Any]]) -> str:
    """Put every table between its marks."""
    for name, comparison in comparisons.items():
        for kind, table in (("test", test_table), ("validation", validation_table), ("paired", paired_table)):
            mark = f"<!-- {name}: {kind} -->\n"
            pattern = re.compile(re.escape(mark) + r".*?(?=<!-- end -->)", re.DOTALL)
            content = mark + "\n".join(table(comparison)) + "\n"
            text, count = pattern.subn(lambda _, content=content: content, text)
            if count != 1:
                raise SystemExit(
                    f"docs/results.md must have {mark.strip()} … <!-- end --> once; it has it {count} times"
                )
    return text


def main() -> None:
    for argument in sys.argv[1:]:
        name, _, source = argument.partition("=")
        comparison = json.loads(Path(source).read_text())
        for recipe in comparison["recipes"]:
            for run in recipe["runs"]:
                del run["run_dir"]  # where it lay says nothing to a reader
        (DOCS / "results" / f"{name}.json").write_text(json.dumps(comparison) + "\n")
    comparisons = {path.stem: json.loads(path.read_text()) for path in sorted((DOCS / "results").glob("*.json"))}
    page = DOCS / "results.md"
    text = page.read_text(encoding="utf-8")
    for name, comparison in comparisons.items():
        for slug, _, figure in comparison_figures(comparison):
            picture = f"images/results_{name}_{slug}.png"
            if picture in text:
                figure.savefig(DOCS / picture, dpi=110)
    page.write_text(fill(text, comparisons), encoding="utf-8")


if __name__ == "__main__":
    main()
