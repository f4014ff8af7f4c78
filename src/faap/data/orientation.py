"""Opening images, and the size of one as it is meant to be seen, without decoding it."""

import os
from pathlib import Path
from threading import Lock
from unittest.mock import patch

from PIL import ExifTags, Image

_TURNED = (5, 6, 7, 8)
# what begins every part of a PNG that may say an orientation
_PNG_EXIF = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type exif")

Size = tuple[int, int]

# what is opened: Pillow would try whatever it knows, and have Ghostscript run an EPS
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
_MOST_PIXELS = 100_000_000
# held where Pillow's own bound is lifted, which is one for all threads
_LIFTED = Lock()


def open_image(path: Path) -> Image.Image:
    """Open an image file, of one of `FORMATS`, without decoding it.

    Raises:
        Exception: of many kinds, if the file is missing, not an image, or of more pixels than `$FAAP_MAX_PIXELS`, by
            default a hundred million.
    """
    Image.init()
    most = float(os.environ.get("FAAP_MAX_PIXELS") or _MOST_PIXELS)  # which may be 1e9
    known = [each for each in FORMATS if each in Image.OPEN]
    try:
        image = Image.open(path, formats=known)
    except Image.DecompressionBombError:  # ours is the limit
        with _LIFTED, patch.object(Image, "MAX_IMAGE_PIXELS", None):
            image = Image.open(path, formats=known)
    if (pixels := image.width * image.height) > most:
        image.close()
        raise ValueError(f"it has {pixels:,} pixels, and {most:,.0f} are the most; FAAP_MAX_PIXELS allows more")
    return image


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
    with open_image(path) as file:
        # behind the pixels of a PNG, Pillow finds it by decoding them
        content = path.read_bytes() if file.format == "PNG" else b""
        orientation = 1 if content and not any(sign in content for sign in _PNG_EXIF) else orientation_of(file)
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
