"""Intervals and p-values of replicates: none where too few images have what is measured."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, t

Floats = npt.NDArray[np.float64]
# what is below this is shown as none, because four decimals are printed; nothing is a share of it
VISIBLE = 5e-5

# With k of many images to find something in, a share exp(-k) of the replicates has nothing to find: more than this if k
# is three or less. Those that have something then hardly differ, which is no certainty.
_NOTHING = 0.025
# from fewer replicates no twentieth can be told
_FEWEST = 40


def known(replicates: Floats) -> Floats:
    """Return the replicates that are finite; none of them where more than a fortieth is not, or only one is."""
    finite = replicates[np.isfinite(replicates)]
    return finite if len(finite) > max(1, (1 - _NOTHING) * len(replicates)) else finite[:0]


def percentile_interval(replicates: Floats) -> list[float] | None:
    """95 % percentile interval of `known` replicates; none of fewer than 40."""
    finite = known(replicates)
    return np.percentile(finite, [2.5, 97.5]).tolist() if len(finite) >= _FEWEST else None


def p_value(replicates: Floats) -> float | None:
    """Two-sided: twice the smaller share of `known` replicates on either side of zero, each count raised by one."""
    finite = known(replicates)
    tail = 1 + min(int((finite <= 0).sum()), int((finite >= 0).sum()))
    return min(1.0, 2.0 * tail / (1 + len(finite))) if len(finite) else None


def estimate(values: Floats) -> dict[str, Any]:
    """Return a value with its error from the value itself and, after it, its replicates."""
    finite = known(values[1:])
    spread = float(finite.std(ddof=1)) if len(finite) else None
    return {"value": float(values[0]), "standard_error": spread, "ci95": percentile_interval(finite)}


def change(old: Floats, new: Floats) -> dict[str, Any]:
    """Say what becomes of a number, from itself and, after it, its replicates; both of the same redrawn images.

    Returns:
        baseline, perturbed, change = perturbed − baseline, relative_change = change / baseline (None if that is below
        `VISIBLE`); of the change standard_error, ci95 (percentile interval) and p_value = 2·min(P(change* ≤ 0),
        P(change* ≥ 0)), one added to each count, at most 1; baseline_ci95 and perturbed_ci95. Errors are None without
        `known` replicates.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 16.
    """
    moved = estimate(new - old)
    by = moved.pop("value")
    said = {"baseline": float(old[0]), "perturbed": float(new[0]), "change": by}
    share = None if abs(old[0]) < VISIBLE else by / float(old[0])
    said |= {"relative_change": share} | moved | {"p_value": p_value((new - old)[1:])}
    return said | {
        f"{name}_ci95": percentile_interval(each[1:]) for name, each in (("baseline", old), ("perturbed", new))
    }


def t_interval(mean: float, std: float, count: int, besides: float = 0.0) -> list[float]:
    """95 % interval of a mean of `count` ≥ 2 numbers with sample standard deviation `std`.

    Few seeds call for Student's quantile, which is far from 2. `besides` is the standard error that all of the numbers
    share, from a second source of chance.
    """
    half_width = math.hypot(float(t.ppf(0.975, count - 1)) * std / math.sqrt(count), float(norm.ppf(0.975)) * besides)
    return [mean - half_width, mean + half_width]
