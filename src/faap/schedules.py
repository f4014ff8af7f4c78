"""What changes from epoch to epoch, as plain functions of the epoch.

Epochs count from 0. Source of all: spec/recipes.md, "Schedules".
"""

import math


def epsilon(
    epoch: int, epochs: int, start: float, peak: float, final: float, warmup: int, hold: int, decay: int
) -> float:
    """Rise linearly from start to peak over the warm-up, hold, then fall linearly to final over the decay and stay.

    A decay of 0 takes the epochs that remain, at the end of which final would be reached.
    """
    if epoch < warmup:
        return start + (peak - start) * epoch / warmup
    if epoch < warmup + hold:
        return peak
    fallen = (epoch - warmup - hold) / (decay or epochs - warmup - hold)
    return peak - (peak - final) * min(1.0, fallen)


def warmed_up(epoch: int, value: float, warmup: int) -> float:
    """Rise linearly to the value over the warm-up's epochs, of which the last has it in full, and stay there."""
    return value * min(1.0, (epoch + 1) / max(warmup, 1))


def linear(epoch: int, epochs: int, first: float, last: float) -> float:
    """Go linearly from the value of the first epoch to that of the last; a single epoch has the first."""
    return first + (last - first) * epoch / max(epochs - 1, 1)


def learning_rate(epoch: int, epochs: int, peak: float, lowest: float, warmup: int) -> float:
    """Rise linearly toward the peak over the warm-up, reach it in the epoch after, then follow half a cosine down."""
    if epoch < warmup:
        return peak * (epoch + 1) / (warmup + 1)
    progress = (epoch - warmup) / (epochs - warmup)
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * progress)) / 2
