"""COCO JSON: its lists, each entry with the words for its place."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from faap.data.fields import whole
from faap.data.problems import place, read_bytes
from faap.data.reading import Entry, Reader, Reading

_LISTS = {"images": "image", "annotations": "annotation", "categories": "category"}


def read_coco(path: Path, folders: Sequence[Path], **options: Any) -> Reading:
    """Read the images and annotations of one COCO JSON file.

    Boxes that leave their image by at most 1 pixel are cut at its border. An annotation without `area`, or with one
    of 0, gets that of its box. An image's optional `scene` becomes the record's `pair`. Where width and height are
    those of the file before its EXIF orientation is applied, the boxes are turned with the image.

    If annotations carry the group, each box has its own, or else its image's; categories in which none does are left
    out. Where nothing says a group but categories are named as both `groups` (woman and man as female and male), they
    become one category, person.

    Args:
        path: the JSON file.
        folders: what its file names are relative to, the first in which a file is.
        options: where the group is; see `Reader`.

    Raises:
        Problem: the file is missing, is not COCO JSON, holds no image, has no such field, or misreads as a whole.
    """
    content, here = read_bytes(path), place(path)
    try:
        content = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise here("unreadable_file", f"not valid JSON: {error}") from error
    for name in _LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            reason = "should be a JSON object with lists of images, annotations and categories; there is no list"
            raise here("not_coco", f"{reason} {name!r}")
    return Reader(path, {name: list(_labelled(name, content[name])) for name in _LISTS}, folders, **options).read()


def _labelled(name: str, entries: list[Any]) -> Iterator[Entry]:
    """Say of each entry where it is: by its id, or else by its position; some tools count ids anew in each image."""
    for position, entry in enumerate(entries):
        key, image = (whole(entry.get(each)) if isinstance(entry, dict) else None for each in ("id", "image_id"))
        label = f"{name}[{position}]" if key is None else f"{_LISTS[name]} {key}"
        yield label if image is None or name != "annotations" else f"{label} of image {image}", entry
