"""Finding image files by the names that annotations give them."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
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
        folders: which.
        roots: what no link on the way to a file may leave; by default the folders.
    """

    def __init__(self, folders: Sequence[Path], roots: Sequence[Path] = ()) -> None:
        self.folders = list(dict.fromkeys(Path(os.path.normpath(folder)) for folder in folders))
        self._listing, self._real = cache(_listing), cache(os.path.realpath)
        self._roots = [os.path.realpath(each) for each in roots or self.folders]

    def find(self, name: str, problem: MakeProblem) -> Path:
        """Return where a file is; raise a problem if it is nowhere, or its name leaves the folders."""
        if not _inside(name):
            raise problem("leaves_folder", f"file_name {name!r:.80} leaves the folder {self.folders[0]}")
        # which is false of what no file system takes as a name
        if found := next(filter(os.path.isfile, self._candidates(name)), None):
            if self._is_within(found):
                return found
            advice = "--images_dir names the folder where images lie, and FAAP_FOLLOW_LINKS=1 follows all"
            reason = f"{found} is a link to {os.path.realpath(found)}, out of the folder; {advice}"
            raise problem("leaves_folder", reason)
        places = ", ".join(map(str, self.folders))
        reason = f"file_name {name!r:.80} does not exist in {places}; --images_dir names the folder that it is in"
        raise problem("missing_image", reason)

    def _is_within(self, path: Path) -> bool:
        """Say whether no link on the way to a file leaves the roots; a root itself may be one."""
        if os.environ.get("FAAP_FOLLOW_LINKS") == "1":
            return True
        real = os.path.realpath(path) if path.is_symlink() else os.path.join(self._real(path.parent), path.name)
        return any(Path(real).is_relative_to(root) for root in self._roots)

    def _candidates(self, name: str) -> Iterator[Path]:
        yield from (folder / _inside(name) for folder in self.folders)
        for spelling in dict.fromkeys((name, name.replace("\\", "/"), unquote(name), unquote(name).replace("\\", "/"))):
            for folder in self.folders if _inside(spelling) else ():
                path = folder
                for part in Path(_inside(spelling)).parts:
                    names = self._listing(path)[_folded(part)]
                    # of several that differ in case alone, none is meant
                    path /= names[0] if len(names) == 1 else part
                yield path


def _listing(folder: Path) -> dict[str, list[str]]:
    names: dict[str, list[str]] = defaultdict(list)
    with suppress(OSError, ValueError):
        for name in os.listdir(folder):
            names[_folded(name)].append(name)
    return names


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(name)).casefold()


def _inside(name: str) -> str:
    """Return a relative path in its plain form; empty if it leads out, by its name alone: links may go elsewhere."""
    plain = os.path.normpath(name)
    return "" if os.path.isabs(name) or plain.split(os.sep)[0] == os.pardir else plain
