"""Terms of a user's own: found where the person said, imported without a trace, named in every error."""

import hashlib
import importlib
import importlib.util
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from faap.errors import FaapError
from faap.objectives.term import Term, View
from faap.settings import kind_of, shown


@dataclass(frozen=True)
class OwnTerms:
    """A user's module, to be used as one of `ROOMS`; what goes wrong in it is an error that names its file and line.

    Attributes:
        source: what the person may type to have it from anywhere: the file's full path, or the module's dotted name.
        file: the module's.
        module: with `Settings`, `terms` and perhaps `schedules`.
    """

    source: str
    file: str
    module: ModuleType

    def blamed(self) -> AbstractContextManager[None]:
        """Say of an error inside which line of the file it is, if it is one of its."""
        return _blaming(self.file)

    def terms(self, recipe: Any, feature_dim: int, projected_dim: int) -> Iterator[Term]:
        """The terms of a recipe."""
        with self.blamed():
            found = list(self.module.terms(recipe, feature_dim, projected_dim))
        for term in found:
            if not isinstance(term, Term):
                raise FaapError(f"{self.file}: terms yields {shown(term)}; it should yield faap.objectives.Term.")
            yield replace(term, value=self._named(term.value))

    def _named(self, value: Callable[[View], Tensor]) -> Callable[[View], Tensor]:
        def call(view: View) -> Tensor:
            with self.blamed():
                return value(view)

        return call

    def schedules(self, recipe: Any) -> Iterator[tuple[str, Callable[[int], float]]]:
        """Name and function of the epoch for every schedule of its own."""
        with self.blamed():
            for name, value in dict(getattr(self.module, "schedules", lambda _: {})(recipe)).items():
                values = [float(value(epoch)) for epoch in range(recipe.epochs)]
                if not all(map(math.isfinite, values)):
                    raise ValueError(f"the schedule {name} is not finite in every epoch")
                yield str(name), values.__getitem__


def own_terms(name: str, folder: Path | None, *, typed: bool) -> OwnTerms:
    """Find and import a user's terms.

    Args:
        name: as it was typed or stands in a recipe's file.
        folder: the recipe file's; None for a recipe of faap's own.
        typed: whether the person gave the name in this command or call. What only a file says names a .py file beside
            it or in the working directory, and never a module that is installed.

    Raises:
        FaapError: if there is none, it cannot be imported, or it is not a module of terms.
    """
    stem = name.removesuffix(".py")
    places = [place.resolve() for place in (folder, Path.cwd()) if place is not None]
    files = [place / f"{stem}.py" for place in places if stem.isidentifier()]
    if typed and name.endswith(".py"):
        files = [Path(os.path.abspath(name)), *files]
    if path := next((path for path in files if os.path.isfile(path)), None):
        return _from_file(path, path.read_bytes())
    if typed and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name) and (own := _installed(name)):
        return own
    where = " or ".join(map(str, dict.fromkeys(places)))
    raise FaapError(
        f"terms is {shown(name)}: there is no file {shown(stem)[1:-1]}.py in {where}"
        + (", and no module of this name." if typed else "; what is installed must be typed (--terms).")
    )


@cache
def _from_file(path: Path, source: bytes) -> OwnTerms:
    """Run a file as a module, anew when it has changed; two files of one name are two modules."""
    name = f"faap_terms_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    module = sys.modules[name] = ModuleType(name)
    module.__file__ = str(path)
    try:
        with _blaming(str(path)), _searching(path.parent):
            exec(compile(source, path, "exec"), vars(module))
        return _of(module, str(path), str(path))
    except BaseException:
        del sys.modules[name]
        raise


def _installed(name: str) -> OwnTerms | None:
    with _searching(Path.cwd()):
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            return None
        file = spec.origin or name
        with _blaming(file):
            module = importlib.import_module(name)
    return _of(module, name, file)


def _of(module: ModuleType, source: str, file: str) -> OwnTerms:
    settings = getattr(module, "Settings", None)
    if not callable(getattr(module, "terms", None)) or not (isinstance(settings, type) and is_dataclass(settings)):
        raise FaapError(
            f"{file}: is no module of terms; it must have a function terms(recipe, feature_dim, projected_dim) and a "
            "frozen dataclass Settings (docs/terms.md)."
        )
    for each in fields(settings):
        if kind_of(each) is None or "section" not in each.metadata:
            raise FaapError(
                f"{file}: Settings.{each.name} must be text, a number or a truth value, and say what it is: "
                f'{each.name}: float = faap.objectives.setting(0.1, "weight of my term", low=0).'
            )
    return OwnTerms(source, file, module)


@contextmanager
def _searching(folder: Path) -> Iterator[None]:
    """Let modules of a folder be imported, after all that are installed."""
    before = list(sys.path)
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def _blaming(file: str) -> Iterator[None]:
    """Say of an error in a user's module which line of its file it is; memory that runs out is nobody's error."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        if isinstance(error, FaapError) and not lines:
            raise
        kind = "" if isinstance(error, FaapError) else f"{type(error).__name__}: "
        raise FaapError(f"{file}{f', line {line}' if line else ''}: {kind}{str(error)[:400]}") from error
