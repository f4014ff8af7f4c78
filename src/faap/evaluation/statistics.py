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


def t_interval(mean: float, std: float, count: int) -> list[float]:
    """95 % interval of a mean of `count` ≥ 2 numbers with sample standard deviation `std`.

    Few seeds call for Student's quantile, which is far from 2.
    """
    half_width = float(t.ppf(0.975, count - 1)) * std / math.sqrt(count)
    return [mean - half_width, mean + half_width]
