"""The size of an image as it is meant to be seen, without decoding it."""

from pathlib import Path

from PIL import ExifTags, Image

_TURNED = (5, 6, 7, 8)

Size = tuple[int, int]


def orientation_of(image: Image.Image) -> int:
    """Return an opened image's EXIF orientation, 1 to 8; 1 where EXIF says none, or cannot be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow's parsers raise many kinds of errors on broken EXIF; the pixels may well be whole
        return 1
    return int(found) if found in range(1, 9) else 1


def read_header(path: Path) -> tuple[Size, int]:
    """Read an image file's stored size (width, height) in pixels and its EXIF orientation, 1 to 8.

    Raises:
        Exception: of many kinds, if the file is missing or not an image; the pixels may still be broken.
    """
    with Image.open(path) as file:
        orientation = orientation_of(file)
        # of a TIFF, Pillow gives the size as it is after turning
        return (upright(file.size, orientation) if file.format == "TIFF" else file.size), orientation


def upright(stored: Size, orientation: int) -> Size:
    """Return the size (width, height) of an image after its EXIF orientation is applied."""
    return (stored[1], stored[0]) if orientation in _TURNED else stored


def turn_box(box: list[float], stored: Size, orientation: int) -> list[float]:
    """Turn a box with its image, for the four orientations that swap width and height.

    Args:
        box: xywh in pixels of the stored image.
        stored: its width and height in pixels.
        orientation: 5 to 8; others leave the box as it is.

    Returns:
        xywh in pixels of the upright image.

    Source: EXIF 2.32, tag 274.
    """
    x, y, across, down = box
    right, below = stored[0] - x - across, stored[1] - y - down
    corners = {5: (y, x), 6: (below, x), 7: (below, right), 8: (y, right)}
    return [*corners[orientation], down, across] if orientation in corners else box
