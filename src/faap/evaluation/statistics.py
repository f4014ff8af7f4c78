"""Intervals and p-values."""

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import t


def percentile_interval(replicates: npt.NDArray[np.float64]) -> list[float] | None:
    """95 % percentile interval of the finite replicates; None if fewer than two are."""
    finite = replicates[np.isfinite(replicates)]
    return [float(bound) for bound in np.percentile(finite, [2.5, 97.5])] if len(finite) > 1 else None


def p_value(replicates: npt.NDArray[np.float64]) -> float | None:
    """Two-sided: twice the smaller share of replicates on either side of zero, each count raised by one."""
    finite = replicates[np.isfinite(replicates)]
    if len(finite) < 2:
        return None
    tail = 1 + min(int((finite <= 0).sum()), int((finite >= 0).sum()))
    return min(1.0, 2.0 * tail / (1 + len(finite)))


def t_interval(mean: float, std: float, count: int) -> list[float]:
    """95 % interval of a mean of `count` ≥ 2 numbers with sample standard deviation `std`.

    Few seeds call for Student's quantile, which is far from 2.
    """
    half_width = float(t.ppf(0.975, count - 1)) * std / math.sqrt(count)
    return [mean - half_width, mean + half_width]
