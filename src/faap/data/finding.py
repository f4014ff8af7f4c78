"""Finding image files by the names that annotations give them."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from faap.data.fields import SPLIT_NAMES, plain
from faap.data.problems import MakeProblem


class Finder:
    """Finds files in folders, the first folder first; as they are named, or else in another spelling.

    Other spellings are backslashes for slashes, percent signs as in URLs, other case and another Unicode form. None of
    them leads out of the folders.

    Args:
        folders: which.
        roots: what no name and no link on the way to a file may leave; by default the folders.
        parts: folders that hold the images of one split each, and its name; they come last.
    """

    def __init__(
        self, folders: Sequence[Path], roots: Sequence[Path] = (), parts: Mapping[Path, str] | None = None
    ) -> None:
        self.parts = {Path(os.path.normpath(folder)): split for folder, split in (parts or {}).items()}
        self.folders = list(dict.fromkeys(Path(os.path.normpath(folder)) for folder in folders))
        self._listing, self._real = cache(_listing), cache(os.path.realpath)
        self._named = [os.path.abspath(each) for each in roots or (*self.folders, *self.parts)]
        self._roots = [os.path.realpath(each) for each in self._named]

    def find(self, name: str, problem: MakeProblem, split: str = "") -> Path:
        """Return where a file is; raise a problem if it is nowhere, or its name leaves the folders.

        Args:
            name: as it is written.
            problem: makes what is raised.
            split: that the image is said to be in; of `parts` its own come first, and without it none may be chosen.
        """
        mine = [part for part, named in self.parts.items() if named == SPLIT_NAMES.get(split.casefold())]
        folders = list(dict.fromkeys([*self.folders, *mine, *self.parts]))
        # which is false of what no file system takes as a name
        if found := next(filter(os.path.isfile, self._candidates(name, folders)), None):
            there = [] if any(map(found.is_relative_to, mine)) else [*self.parts]
            if any(map(found.is_relative_to, there)):
                same = {self.parts[part]: part / name for part in there if os.path.isfile(part / name)}
                if len(same) > 1:
                    where = " and ".join(map(str, same.values()))
                    reason = f"file_name {name!r:.80} may be {where}; its field split, or its folder's name, should say"
                    raise problem("two_splits", reason)
            if self._is_within(found):
                return found
            advice = "--images_dir names the folder where images lie, and FAAP_FOLLOW_LINKS=1 follows all"
            reason = f"{found} is a link to {os.path.realpath(found)}, out of the folder; {advice}"
            raise problem("leaves_folder", reason)
        if not _inside(name):
            where = f"leaves the folder {self._named[0]}; it should be relative to it"
            raise problem("leaves_folder", f"file_name {name!r:.80} {where}")
        places = ", ".join(map(str, folders))
        reason = f"file_name {name!r:.80} does not exist in {places}; --images_dir names the folder that it is in"
        raise problem("missing_image", reason)

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
