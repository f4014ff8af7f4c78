"""Finding image files by the names that annotations give them."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from faap.data.problems import MakeProblem


class Finder:
    """Finds files in folders, the first folder first; as they are named, or else in another spelling.

    Other spellings are backslashes for slashes, percent signs as in URLs, other case and another Unicode form. None of
    them leads out of the folders.

    Args:
        folders: where to look.

    Attributes:
        respelt: name -> the path that another spelling of it has led to.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(dict.fromkeys(Path(os.path.normpath(folder)) for folder in folders))
        self.respelt: dict[str, Path] = {}
        self._listing = cache(_listing)

    def find(self, name: str, problem: MakeProblem) -> Path:
        """Return where a file is; raise a problem if it is nowhere, or its name leaves the folders."""
        places = ", ".join(map(str, self.folders))
        plain = _inside(name)
        if plain is None:
            raise problem("leaves_folder", f"file_name {name!r:.80} leaves the folder {self.folders[0]}")
        for folder in self.folders:
            if _is_file(folder / plain):
                return folder / plain
        for spelling in dict.fromkeys((name, name.replace("\\", "/"), unquote(name), unquote(name).replace("\\", "/"))):
            plain = _inside(spelling)
            for folder in self.folders if plain else ():
                if path := self._walk(folder, Path(plain or "").parts):
                    self.respelt[name] = path
                    return path
        raise problem(
            "missing_image",
            f"file_name {name!r:.80} does not exist in {places}; --images_dir names the folder that file names are "
            "relative to",
        )

    def _walk(self, folder: Path, parts: Sequence[str]) -> Path | None:
        for part in parts:
            names = self._listing(folder)[_folded(part)]
            if part not in names and len(names) != 1:  # of several that differ in case alone, none is meant
                return None
            folder /= part if part in names else names[0]
        return folder if _is_file(folder) else None


def _listing(folder: Path) -> dict[str, list[str]]:
    names: dict[str, list[str]] = defaultdict(list)
    with suppress(OSError):
        for name in sorted(os.listdir(folder)):
            names[_folded(name)].append(name)
    return names


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(name)).casefold()


def _inside(name: str) -> str | None:
    """Return a relative path in its plain form; None if it leads out, by its name alone: links may go elsewhere."""
    plain = os.path.normpath(name)
    return None if os.path.isabs(name) or plain.split(os.sep)[0] == os.pardir else plain


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # what no file system takes as a name
        return False
