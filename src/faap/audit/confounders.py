"""What the pictures of two groups differ in, and how much of a gap goes away once they are alike in it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.ndimage import laplace
from scipy.stats import rankdata

from faap.data import Record, read_image
from faap.evaluation.matching import Weights
from faap.evaluation.statistics import Floats

# cells that values are sorted into, and how many boxes each group must have in one for it to be compared
CELLS, FEWEST = 8, 5
# rounds of raking, after which nothing moves any more
_ROUNDS = 15
# pairs of boxes that are looked at together
_PAIRS = 10**7
# the weights of the channels in a picture's brightness (ITU-R BT.601)
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def describe(record: Record, whom: str = "people") -> dict[str, Floats]:
    """Say what may make the boxes of an image easy or hard to find, whoever is in them: name -> (n,).

    Box size (square root of its area, pixels), box shape (height / width), position across and down (of its middle, as
    a share of the image), cut off (1 at the border of the image), covered (the largest share of it that another box
    covers), people in the image (under the name that `whom` gives them, what is annotated there); of its pixels
    brightness (mean of 255), and, which a change of light alone does not change, contrast (standard deviation / mean)
    and sharpness (standard deviation of the Laplacian / that of the pixels); and what is annotated
    (`Record.conditions`).

    Raises:
        FaapError: the image cannot be read.
    """
    luma = np.asarray(read_image(record.path)).astype(np.float32) @ _LUMA
    light, spread, edges = (float(value) for value in (luma.mean(), luma.std(), laplace(luma).std()))
    left, top, width, height = record.boxes.T
    right, bottom, n = left + width, top + height, len(record.boxes)
    covered, order = np.zeros(n), np.argsort(left)
    begins, reach = left[order], np.maximum.accumulate(right[order])  # as far as this box, or one before it, goes
    for some in np.array_split(order, n * n // _PAIRS + 1):
        # what ends before them or begins after them covers none of them
        first = np.searchsorted(reach, left[some].min(initial=np.inf))
        near = order[first : np.searchsorted(begins, right[some].max(initial=0))]
        across = np.minimum(right[some, None], right[near]) - np.maximum(left[some, None], left[near])
        down = np.minimum(bottom[some, None], bottom[near]) - np.maximum(top[some, None], top[near])
        shared = across.clip(0) * down.clip(0) * (some[:, None] != near)
        covered[some] = shared.max(axis=1, initial=0.0) / (width * height)[some]
    border = (left < 1) | (top < 1) | (right > record.width - 1) | (bottom > record.height - 1)
    found = {
        "box size": np.sqrt(width * height),
        "box shape": height / width,
        "position across": (left + width / 2) / record.width,
        "position down": (top + height / 2) / record.height,
        "cut off": border.astype(float),
        "covered": covered,
    }
    whole = {f"{whom} in the image": (~record.crowd).sum(), "brightness": light}
    whole |= {"contrast": spread / max(light, 1), "sharpness": edges / max(spread, 1)}
    return found | {name: np.full(n, float(value)) for name, value in whole.items()} | dict(record.conditions)


def cells_of(values: Floats) -> npt.NDArray[np.intp]:
    """Sort values into at most `CELLS` cells of about as many each, equal ones into the same; unknown ones apart.

    A value that many have (all boxes but a few are not covered) takes the cell in the middle of its ranks, so that what
    is below it and what is above it have cells of their own.
    """
    cells, known = np.full(len(values), CELLS + 1), np.isfinite(values)
    different, place = np.unique(values[known], return_inverse=True)
    if len(different) > CELLS:
        place = np.floor(CELLS * (rankdata(values[known]) - 0.5) / len(place)).astype(int)
    cells[known] = place
    return cells


def balance(cells: Sequence[Sequence[npt.NDArray[np.intp]]], copies: Sequence[Weights]) -> list[Floats]:
    """Weigh the boxes of two groups so that both have the same distribution over cells: the mean of their own.

    Several properties are raked, one after the other until all fit (Deming and Stephan, 1940). A cell in which either
    group has fewer than `FEWEST` boxes cannot be compared and gets no weight in either.

    Args:
        cells: of each group, for every property (boxes,) the cell of each box.
        copies: of each group, (boxes, R) how often each box occurs.

    Returns:
        Of each group (boxes, R) factors by which its boxes count, 1 in the mean over those that occur.
    """
    kept = [np.ones(len(each), dtype=bool) for each in copies]
    last = None
    while last != (last := [int(each.sum()) for each in kept]):
        for parts in zip(*cells, strict=True):
            size = 1 + max(int(part.max(initial=0)) for part in parts)
            counts = [np.bincount(part[mine], minlength=size) for part, mine in zip(parts, kept, strict=True)]
            both = np.minimum(*counts) >= FEWEST
            kept = [mine & both[part] for part, mine in zip(parts, kept, strict=True)]
    factors = [np.zeros(each.shape) + mine[:, None] for mine, each in zip(kept, copies, strict=True)]
    for _ in range(_ROUNDS if len(cells[0]) > 1 else 1):
        for parts in zip(*cells, strict=True):
            size = 1 + max(int(part.max(initial=0)) for part in parts)
            shares = []
            for part, each, factor in zip(parts, copies, factors, strict=True):
                table = (part == np.arange(size)[:, None]).astype(float) @ (each * factor)
                shares.append(table / np.maximum(table.sum(axis=0), 1e-300))
            target = np.where((shares[0] > 0) & (shares[1] > 0), shares[0] + shares[1], 0.0) / 2
            for part, factor, share in zip(parts, factors, shares, strict=True):
                factor *= (target / np.where(share > 0, share, 1.0))[part]
    for each, factor in zip(copies, factors, strict=True):
        factor *= each.sum(axis=0) / np.maximum((each * factor).sum(axis=0), 1e-300)
    return factors


def effective_size(weights: Floats) -> Floats:
    """Kish's effective number of boxes: that of equal weights with the same error of a mean, (R,)."""
    total = weights.sum(axis=0)
    return np.asarray(total**2 / np.maximum((weights**2).sum(axis=0), 1e-300))
