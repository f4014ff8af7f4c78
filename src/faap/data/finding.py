"""Finding image files by the names that annotations give them."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import chain
from pathlib import Path
from urllib.parse import unquote

from faap.data.fields import SPLIT_NAMES, plain
from faap.data.problems import MakeProblem

Parts = Mapping[str, Sequence[Path]]


class Finder:
    """Finds files in folders, the first folder first; as they are named, or else in another spelling.

    Other spellings are backslashes for slashes, percent signs as in URLs, other case and another Unicode form. None of
    them leads out of the folders.

    Args:
        folders: which.
        roots: what no name and no link on the way to a file may leave; by default the folders.
        parts: name of each split -> folders that hold its images alone; they come last.
    """

    def __init__(self, folders: Sequence[Path], roots: Sequence[Path] = (), parts: Parts | None = None) -> None:
        self._parts = parts or {}
        self.folders = list(dict.fromkeys(Path(os.path.normpath(folder)) for folder in folders))
        self._listing, self._real = cache(_listing), cache(os.path.realpath)
        self._named = [os.path.abspath(each) for each in roots or (*self.folders, *chain(*self._parts.values()))]
        self._roots = [os.path.realpath(each) for each in self._named]

    def find(self, name: str, problem: MakeProblem, split: str = "") -> Path:
        """Return where a file is; raise a problem if it is nowhere, or its name leaves the folders.

        Args:
            name: as it is written.
            problem: makes what is raised.
            split: that the image is said to be in; of `parts` its own come first, and without it none may be chosen.
        """
        folders = [*self.folders, *self._parts.get(SPLIT_NAMES.get(split.casefold(), ""), ())]
        found = self._first(name, folders)
        if not found:
            others = {part: path for part, places in self._parts.items() if (path := self._first(name, places))}
            if len(others) > 1:
                where = " and ".join(map(str, others.values()))
                reason = f"file_name {name!r:.80} may be {where}; its field split, or its folder's name, should say"
                raise problem("two_splits", reason)
            found = next(iter(others.values()), None)
        if found and not self._is_within(found):
            advice = "--images_dir names the folder where images lie, and FAAP_FOLLOW_LINKS=1 follows all"
            reason = f"{found} is a link to {os.path.realpath(found)}, out of the folder; {advice}"
            raise problem("leaves_folder", reason)
        if found:
            return found
        if not _inside(name):
            where = f"leaves the folder {self._named[0]}; it should be relative to it"
            raise problem("leaves_folder", f"file_name {name!r:.80} {where}")
        places = ", ".join(map(str, dict.fromkeys(chain(folders, *self._parts.values()))))
        reason = f"file_name {name!r:.80} does not exist in {places}; --images_dir names the folder that it is in"
        raise problem("missing_image", reason)

    def _first(self, name: str, folders: Sequence[Path]) -> Path | None:
        # which is false of what no file system takes as a name
        return next(filter(os.path.isfile, self._candidates(name, folders)), None)

    def _is_within(self, path: Path) -> bool:
        """Say whether no link on the way to a file leaves the roots; a root itself may be one."""
        if os.environ.get("FAAP_FOLLOW_LINKS") == "1":
            return True
        real = os.path.realpath(path) if path.is_symlink() else os.path.join(self._real(path.parent), path.name)
        return any(Path(real).is_relative_to(root) for root in self._roots)

    def _led(self, name: str, folders: Sequence[Path]) -> Iterator[Path]:
        """Return where an absolute name, or one that leaves a folder, leads without leaving the roots."""
        for path in (Path(os.path.normpath(folder / name)) for folder in folders):
            if any(Path(os.path.abspath(path)).is_relative_to(root) for root in self._named):
                yield path

    def _candidates(self, name: str, folders: Sequence[Path]) -> Iterator[Path]:
        yield from (folder / _inside(name) for folder in folders) if _inside(name) else self._led(name, folders)
        for spelling in dict.fromkeys((name, name.replace("\\", "/"), unquote(name), unquote(name).replace("\\", "/"))):
            for folder in folders if _inside(spelling) else ():
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
    return plain(unquote(name))


def _inside(name: str) -> str:
    """Return a relative path in its plain form; empty if it leads out, by its name alone: links may go elsewhere."""
    plain = os.path.normpath(name)
    return "" if os.path.isabs(name) or plain.split(os.sep)[0] == os.pardir else plain
