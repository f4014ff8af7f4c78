"""What changes from epoch to epoch, as plain functions of the epoch.

Epochs count from 0. Source of all: spec/recipes.md, "Schedules".
"""

import math


def epsilon(epoch: int, epochs: int, start: float, peak: float, final: float, warmup: int, hold: int) -> float:
    """Rise linearly from start to peak over the warm-up, hold, then fall linearly toward final over what remains."""
    if epoch < warmup:
        return start + (peak - start) * epoch / warmup
    if epoch < warmup + hold:
        return peak
    return peak - (peak - final) * (epoch - warmup - hold) / (epochs - warmup - hold)


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
