"""Holding a box against its image and its area, so that no other convention is read as xywh in pixels."""

from collections.abc import Sequence

from faap.data.problems import MakeProblem

BOX_TOLERANCE = 1.0


def against_area(box: Sequence[float], area: float, slack: float) -> str:
    """Say how a box xywh contradicts its area, which may be that of a smaller mask; empty if it does not."""
    left, top, across, down = box
    if abs(area - across * down) <= slack * area:
        return ""
    if across > left and down > top and abs(area - (across - left) * (down - top)) <= slack * area:
        return f"bbox {box} is [left, top, right, bottom], by its area {area}; it should be [x, y, width, height]"
    # a box may be rounded
    if area > (1 + slack) * (across + 1) * (down + 1):
        return f"bbox {box} is smaller than its area {area}; both should be in pixels of the image"
    return ""


def as_corners(box: Sequence[float], size: tuple[int, int]) -> str | None:
    """Say that a box fits its image as corners alone; empty if it does as xywh alone, None if that cannot be told."""
    left, top, across, down = box
    fits = _fits(left, top, across, down, size)
    if fits == _fits(left, top, across - left, down - top, size):
        return None
    told = f"bbox {box} leaves its image, which is {size[0]}x{size[1]} pixels"
    hint = "it would fit as [left, top, right, bottom], but should be [x, y, width, height]"
    return "" if fits else f"{told}; {hint}"


def check_box(box: Sequence[float], size: tuple[int, int], problem: MakeProblem) -> list[float]:
    """Return a box xywh in pixels, cut at the border of its image.

    Args:
        box: four finite numbers.
        size: width and height of the image in pixels.
        problem: makes a Problem of a kind and a reason.

    Raises:
        Problem: it has no area, is in fractions of the image, or leaves its image by more than `BOX_TOLERANCE` pixels.
    """
    left, top, across, down = map(float, box)
    width, height = size
    ends = max(left, 0), max(top, 0), min(left + across, width), min(top + down, height)
    if across <= 0 or down <= 0:
        wrong = "has no area; width and height should be positive"
    elif max(size) > 2 and max(map(abs, (left, top, across, down))) <= 1:
        wrong = "lies in [0, 1], as fractions of the image do; it should be in pixels"
    elif not _fits(left, top, across, down, size):
        others = {
            "[left, top, right, bottom]": _fits(left, top, across - left, down - top, size),
            "[centre x, centre y, width, height]": _fits(left - across / 2, top - down / 2, across, down, size),
            f"a box of the image turned by 90°, {height}x{width}": _fits(left, top, across, down, size[::-1]),
        }
        hints = " or ".join(way for way, fits in others.items() if fits)
        hint = f"; it would fit as {hints}, but should be [x, y, width, height]" if hints else ""
        wrong = f"leaves its image, which is {width}x{height} pixels{hint}"
    elif ends[2] <= ends[0] or ends[3] <= ends[1]:
        wrong = f"lies outside its image, which is {width}x{height} pixels"
    else:
        return [ends[0], ends[1], ends[2] - ends[0], ends[3] - ends[1]]
    raise problem("bad_box", f"bbox {box} {wrong}")


def _fits(left: float, top: float, across: float, down: float, size: tuple[int, int]) -> bool:
    rim = max(left + across - size[0], top + down - size[1], -left, -top)
    return across > 0 and down > 0 and rim <= BOX_TOLERANCE
