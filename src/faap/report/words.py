"""What the numbers say, in words."""

import math
import re
from collections.abc import Collection, Mapping
from functools import partial
from statistics import fmean
from typing import Any

from faap.data.fields import called
from faap.evaluation import HEADLINE, headline, t_interval, verdict_of
from faap.evaluation.criteria import MET, NOT_MET, UNKNOWN, is_dead
from faap.evaluation.gaps import difference
from faap.evaluation.statistics import VISIBLE

# what was done to the images before the detector saw them
_ARRIVAL = {"jpeg": "as JPEG of quality {}", "resize": "resized by {} and back", "shift": "shifted by {} pixels"}
# of COCO's numbers, those that are shown of groups and gaps alike
SHOWN = ("AP", "AP50", "AP75", "AR100")
MARKS = {MET: "✓", NOT_MET: "✗", UNKNOWN: "?"}


def named(found: Any, groups: Collection[str]) -> Any:
    """Call the groups that are numbers so (`called`), throughout a result."""
    if isinstance(found, Mapping):
        return {named(key, groups): named(each, groups) for key, each in found.items()}
    if isinstance(found, list | tuple):
        return [named(each, groups) for each in found]
    return called(found) if isinstance(found, str) and found in groups else found


def number(value: float | None, digits: int = 4, *, sign: bool = False) -> str:
    """A number with a true minus sign; a dash for what could not be computed."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def share(value: float | None, *, sign: bool = False) -> str:
    """A share as a percentage with one decimal; a dash for what could not be computed."""
    return "–" if value is None else f"{number(100 * value, 1, sign=sign)} %"


percent = partial(share, sign=True)


def p_value(value: float | None, equals: str = "") -> str:
    """A p-value with three decimals, which is never zero; a dash for what could not be computed."""
    return "< 0.001" if value is not None and value < 0.001 else f"{equals}{number(value, 3)}"


def interval(bounds: list[float] | None, *, sign: bool = True) -> str:
    """An interval as "low to high"; a dash for what could not be computed."""
    return "–" if bounds is None else " to ".join(number(bound, sign=sign) for bound in bounds)


def spread(values: Mapping[str, float | None], sign: str = " ± ") -> str:
    """A mean with its standard deviation, if there is one."""
    std = values["std"]
    return number(values["mean"]) + ("" if std is None else f"{sign}{number(std)}")


def change(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A number before and after, and its change; each with its 95 % interval."""
    sides = [(number(found[key]), interval(found[f"{key}_ci95"], sign=False)) for key in ("baseline", "perturbed")]
    return [*sides, (number(found["change"], sign=True), interval(found["ci95"]))]


def cost(metrics: Mapping[str, Any]) -> str:
    """How large a generator is, and what its training took, as far as it is known."""
    size, spent = metrics.get("provenance", {}).get("generator", {}).get("parameters"), metrics.get("training")
    said = f"{size:,} parameters" if size else "size unknown"
    return f"{said}, trained on {spent['images']:,} images in {spent['seconds'] / 60:.0f} min" if spent else said


def measured_on(result: Mapping[str, Any]) -> str:
    """The split of an evaluation or a comparison, with how many images of which group, and what was done to them."""
    images = f"{', '.join(f'{n} {group}' for group, n in result['images'].items())} images"
    return f"{result['split']} split ({', '.join(filter(None, (images, arrival(result))))})"


def arrival(result: Mapping[str, Any]) -> str:
    """What was done to the images before the detector saw them; empty for nothing."""
    found = result.get("perturbation", {})
    return ", ".join(text.format(found[key]) for key, text in _ARRIVAL.items() if found.get(key))


def gap_sentence(metrics: Mapping[str, Any], anchor: str, reference: str) -> str:
    """What happened to the AP gap, and whether noise could have done it."""
    gap = metrics["gap"]["AP"]
    before, after, relative, bounds = (gap[key] for key in ("baseline", "perturbed", "relative_change", "ci95"))
    said = f"On the {metrics['split']} split the AP gap ({reference} − {anchor})"
    change = difference(before, after)
    if change is None:
        return f"{said} could not be computed."
    verb = "decreased" if abs(after) < abs(before) else "increased"
    verb += " in size" if min(before, before + after) < 0 else ""
    said += f" {_moved(before, after, verb, '' if relative is None else f', {percent(relative)}')}"
    sure = gap.get("perturbed_ci95") or [after]
    if min(abs(before), abs(after)) >= VISIBLE and all(end * before < 0 for end in sure):
        said += " and now points the other way"
    if bounds is None:
        return f"{said}; no interval was computed, so nothing can be said about noise."
    certainty = "is" if bounds[0] > 0 or bounds[1] < 0 else "is not"
    p = "" if gap["p_value"] is None else f", p {p_value(gap['p_value'], '= ')}"
    return f"{said}; the change {certainty} distinguishable from noise (95 % interval {interval(bounds)}{p})."


def group_sentence(metrics: Mapping[str, Any], anchor: str, reference: str) -> str:
    """What happened to the AP of both groups, and which of them moved the gap."""
    a, r = (metrics["baseline"][group]["AP"] for group in (anchor, reference))
    a_after, r_after = (metrics["perturbed"][group]["AP"] for group in (anchor, reference))
    text = f"The AP of {anchor} images {_moved(a, a_after)}, that of {reference} images {_moved(r, r_after)}"
    lifted, raised = difference(a, a_after), difference(r, r_after)
    low, high = metrics["gap"]["AP"]["ci95"] or (1, 1)
    if lifted is not None and raised is not None and abs(raised - lifted) >= VISIBLE:
        ends = [row["AP"]["ci95"] or [-1] for row in metrics.get("changes", {}).values()][:2]
        if max(lifted, raised) <= -VISIBLE and all(end[-1] < 0 for end in ends):
            text += "; both groups are found less well than before"
        elif abs(r_after - a_after) < abs(r - a) and not low <= 0 <= high:
            moves = [(anchor, lifted), (reference, raised)]
            (worse, up), (better, down) = moves if r > a else moves[::-1]
            group, how = (worse, "better") if up > -down else (better, "less well")
            text += f"; the gap is smaller mostly because {group} images are found {how}"
    return f"{text}."


def _moved(before: float | None, after: float | None, verb: str = "", note: str = "") -> str:
    by = difference(before, after)
    if by is None:
        return "could not be computed"
    if abs(by) < VISIBLE:
        return f"stayed at {number(before)}"
    verb = verb or ("rose" if by > 0 else "fell")
    return f"{verb} from {number(before)} to {number(after)} ({number(by, sign=True)}{note})"


def notes(metrics: Mapping[str, Any]) -> list[str]:
    """What a reader must know before any number: warnings, and categories that are not measured."""
    lacking = metrics.get("categories_left_out", {}).items()
    left_out = [f"{name} ({', '.join(each)} {'has' if len(each) == 1 else 'have'} none)" for name, each in lacking]
    said = [f"Left out, since not all groups have them: {', '.join(left_out)}."] if left_out else []
    return [*metrics.get("warnings", []), *said]


def columns(anchor: str, reference: str, formula: str = "") -> dict[str, str]:
    """How the numbers of `HEADLINE` are called; the formula is added to a gap."""
    whom = {"anchor": anchor, "reference": reference}
    return {
        key: f"{metric} gap{formula}" if whose == "gap" else f"{whom[whose]} {metric}"
        for key, (whose, metric) in HEADLINE.items()
    }


def criteria_rows(metrics: Mapping[str, Any], anchor: str, reference: str) -> list[tuple[str, ...]]:
    """The success criteria as text: name, before, after, target, interval of the difference to it, verdict."""
    before = headline(metrics["baseline"], anchor, reference)
    rows: list[tuple[str, ...]] = []
    for key, name in columns(anchor, reference, f" ({reference} − {anchor})").items():
        criterion = metrics["success"][key]
        target = f"{'size ≤' if HEADLINE[key][0] == 'gap' else '≥'} {number(criterion['target'])}"
        bounds, verdict = interval(criterion.get("ci95")), verdict_of(criterion)
        rows.append((name, number(before[key]), number(criterion["value"]), target, bounds, verdict))
    return rows


def provenance_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where a measurement, or a comparison, comes from; before it was recorded in full, the detector's hash alone."""
    source = metrics.get("provenance")
    if source is None:
        return [("detector", metrics["detector_sha256"] or "–")]
    detector = source["detector"]
    rows = [
        ("data", f"{source['dataset']}, {metrics['split']} split {source['split_sha256']}"),
        ("detector", f"{detector['name']}, file {detector['file_sha256']}, tensors {detector['tensors_sha256']}"),
    ]
    if generator := source.get("generator"):
        rows += [("generator", f"{generator['arch']}, ε {generator['epsilon']:g}, {generator['sha256']}")]
    versions = (f"{name} {what}" for name, what in source["versions"].items())
    return [*rows, ("measured", ", ".join([*([source["date"]] if "date" in source else []), *versions]))]


def last_part(name: str) -> str:
    """Name a detector or data set as a title does: without its folder, and Promenade without its version."""
    last = name.rstrip("/").rpartition("/")[2] or name
    return "Promenade" if re.fullmatch(r"promenade-[0-9a-f]{12}", last) else last


def comparison_sentences(comparison: Mapping[str, Any]) -> list[str]:
    """Which recipe is best, whether that is more than its seeds' noise, and how many meet all criteria."""
    before = comparison["baseline"]
    gaps = [[run["ap_gap"] for run in each["runs"] if run["ap_gap"] is not None] for each in comparison["recipes"]]
    # by size in each run: gaps of either sign are no closed gap
    sizes = {n: fmean(map(abs, each)) for n, each in enumerate(gaps) if each}
    if not sizes:
        return ["No run has measured an AP gap."]
    if _finds_nobody(before):
        return ["The detector alone finds nobody: right checkpoint? right class names? No recipe counts."]
    first = min(sizes, key=sizes.__getitem__)
    best, seeds = comparison["recipes"][first], len(gaps[first])
    gap, start = best["summary"]["ap_gap"], before["ap_gap"]
    name = f"AP gap ({comparison['reference']} − {comparison['anchor']})"
    said = f"{best['name']} has the smallest {name} by its mean size ({number(sizes[first])}): {spread(gap)}"
    said += f" over {seeds} seed{'s' * (seeds > 1)}"
    if start is not None:
        relative = f", {percent(gap['change'] / start)}" if abs(start) >= VISIBLE else ""
        said += f", against {number(start)} at the baseline ({number(gap['change'], sign=True)}{relative})"
        if sizes[first] >= abs(start):
            said += "; no recipe makes the gap smaller than it was"
        moved, std, error = gap["change"], gap["std"], gap.get("images_error")
        alone = next(run["ap_gap_ci95"] for run in best["runs"] if run["ap_gap"] is not None)
        chances = {"the chance of the images (95 % interval {}); one seed says nothing of others": alone}
        if std is not None:
            chances = {"the chance of the seeds (95 % interval of its mean {})": t_interval(moved, std, seeds)}
            if error is not None:
                chances["that of seeds and images together ({})"] = t_interval(moved, std, seeds, error)
        sure = {what: bounds and not bounds[0] <= 0 <= bounds[1] for what, bounds in chances.items()}
        told = [f"{'is more than' if sure[of] else 'could be'} {of.format(interval(chances[of]))}" for of in chances]
        said += f". This change {', and '.join(told)}"
    several = len(sizes) > 1 and start is not None
    chosen = f" As the best of {len(sizes)} by these very numbers it is favoured by chance, of which no interval knows."
    return [f"{said}.{chosen * several}", _criteria_sentence(comparison)]


def _criteria_sentence(comparison: Mapping[str, Any]) -> str:
    """How many recipes meet all criteria, and of how many it cannot be told."""
    full = unknown = 0
    for recipe in comparison["recipes"]:
        runs, verdicts = len(recipe["runs"]), recipe.get("verdicts", {})
        met = [recipe["success"][key] or 0 for key in HEADLINE]
        not_missed = [count + verdicts.get(key, {}).get(UNKNOWN, 0) for key, count in zip(HEADLINE, met, strict=True)]
        if min(met) == runs:
            full += not _finds_nobody({key: recipe["summary"][key]["mean"] for key in HEADLINE})
        else:
            unknown += min(not_missed) == runs
    where = "every run that finished" if comparison["failed"] else "all seeds"
    rest = f"; of {unknown} it cannot be told" if unknown else ""
    verb = "meets" if full == 1 else "meet"
    return f"{full} of {len(comparison['recipes'])} recipes {verb} all four success criteria in {where}{rest}."


def _finds_nobody(numbers: Mapping[str, float | None]) -> bool:
    return all(is_dead({"AP": numbers[key]}) for key in ("anchor_ap", "reference_ap"))
