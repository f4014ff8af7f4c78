"""Intervals and p-values of replicates, those that are finite."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import t

Floats = npt.NDArray[np.float64]


def percentile_interval(replicates: Floats) -> list[float] | None:
    """95 % percentile interval; None if fewer than two are finite."""
    finite = replicates[np.isfinite(replicates)]
    return np.percentile(finite, [2.5, 97.5]).tolist() if len(finite) > 1 else None


def p_value(replicates: Floats) -> float | None:
    """Two-sided: twice the smaller share of replicates on either side of zero, each count raised by one."""
    finite = replicates[np.isfinite(replicates)]
    tail = 1 + min(int((finite <= 0).sum()), int((finite >= 0).sum()))
    return min(1.0, 2.0 * tail / (1 + len(finite))) if len(finite) > 1 else None


def estimate(values: Floats) -> dict[str, Any]:
    """Return a value with its error from the value itself and, after it, its replicates."""
    finite = values[1:][np.isfinite(values[1:])]
    spread = float(finite.std(ddof=1)) if len(finite) > 1 else None
    return {"value": float(values[0]), "standard_error": spread, "ci95": percentile_interval(finite)}


def change(old: Floats, new: Floats) -> dict[str, Any]:
    """Say what becomes of a number, from itself and, after it, its replicates; both of the same redrawn images.

    Returns:
        baseline, perturbed, change = perturbed − baseline, relative_change = change / baseline (None for zero); of the
        change standard_error, ci95 (percentile interval) and p_value = 2·min(P(change* ≤ 0), P(change* ≥ 0)), one added
        to each count, at most 1; baseline_ci95 and perturbed_ci95. Without replicates errors are None; replicates
        without ground truth are left out.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 16.
    """
    moved = estimate(new - old)
    by = moved.pop("value")
    said = {"baseline": float(old[0]), "perturbed": float(new[0]), "change": by}
    said |= {"relative_change": by / float(old[0]) if old[0] else None} | moved | {"p_value": p_value((new - old)[1:])}
    return said | {
        f"{name}_ci95": percentile_interval(each[1:]) for name, each in (("baseline", old), ("perturbed", new))
    }


def t_interval(mean: float, std: float, count: int) -> list[float]:
    """95 % interval of a mean of `count` ≥ 2 numbers with sample standard deviation `std`.

    Few seeds call for Student's quantile, which is far from 2.
    """
    half_width = float(t.ppf(0.975, count - 1)) * std / math.sqrt(count)
    return [mean - half_width, mean + half_width]
