"""Terms of a user's own: found where the person said, imported without a trace, named in every error."""

import hashlib
import importlib.util
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from faap.errors import FaapError
from faap.objectives.term import Term, View, scalar
from faap.settings import SECTIONS, kind_of, shown


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

    def terms(self, recipe: Any, feature_dim: int, projected_dim: int) -> Iterator[Term]:
        """The terms of a recipe."""
        with blaming(self.file):
            found = list(self.module.terms(recipe, feature_dim, projected_dim))
        for term in found:
            if not isinstance(term, Term):
                raise FaapError(f"{self.file}: terms yields {shown(term)}; it should yield faap.objectives.Term.")
            yield replace(term, value=partial(self._value, term))

    def _value(self, term: Term, view: View) -> Tensor:
        with blaming(self.file):
            value = term.value(view)
        return scalar(term.name, value, f"{self.file}: ")

    def schedules(self, recipe: Any) -> Iterator[tuple[str, Callable[[int], float]]]:
        """Name and function of the epoch for every schedule of its own."""
        with blaming(self.file):
            for name, value in dict(getattr(self.module, "schedules", lambda _: {})(recipe)).items():
                values = [float(value(epoch)) for epoch in range(recipe.epochs)]
                if not all(map(math.isfinite, values)):
                    raise ValueError(f"the schedule {name} is not finite in every epoch")
                yield str(name), values.__getitem__


def own_terms(name: str, folder: Path, *, typed: bool) -> OwnTerms:
    """Find and import a user's terms.

    Args:
        name: as it was typed or stands in a recipe's file.
        folder: the recipe file's.
        typed: whether the person gave the name in this command or call. What only a file says names a .py file beside
            it or in the working directory, and never a module that is installed.

    Raises:
        FaapError: if there is none, it cannot be imported, or it is not a module of terms.
    """
    stem, places = name.removesuffix(".py"), dict.fromkeys([folder.resolve(), Path.cwd()])
    files = [place / f"{stem}.py" for place in places if stem.isidentifier()]
    if typed and name.endswith(".py"):
        files = [Path(os.path.abspath(name)), *files]
    for path in filter(os.path.isfile, files):
        with blaming(str(path)):
            return _from_file(path, path.read_bytes())
    if typed and all(map(str.isidentifier, name.split("."))) and (own := _installed(name)):
        return own
    instead = "no module of this name" if typed else "what is installed must be typed (--terms)"
    raise FaapError(f"terms is {shown(name, 300)}: no such .py file in {' or '.join(map(str, places))}, and {instead}.")


@cache
def _from_file(path: Path, source: bytes) -> OwnTerms:
    """Run a file as a module, anew when it has changed; two files of one name are two modules."""
    name = f"faap_terms_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    module = sys.modules[name] = ModuleType(name)
    module.__file__ = str(path)
    with patch.object(sys, "path", [*sys.path, str(path.parent)]):  # its neighbours, after all that are installed
        exec(compile(source, path, "exec"), vars(module))
    return _of(module, str(path), str(path))


def _installed(name: str) -> OwnTerms | None:
    spec = None
    with patch.object(sys, "path", [*sys.path, str(Path.cwd())]), blaming(name):
        with suppress(ImportError, ValueError):  # its package is not there, or is none
            spec = importlib.util.find_spec(name)
        if spec is None:
            return None
        with blaming(spec.origin or name):
            return _of(importlib.import_module(name), name, spec.origin or name)


def _of(module: ModuleType, source: str, file: str) -> OwnTerms:
    settings = getattr(module, "Settings", None)
    if not callable(getattr(module, "terms", None)) or not (isinstance(settings, type) and is_dataclass(settings)):
        raise FaapError(f"{file}: is no module of terms: it needs a frozen dataclass Settings and a function terms.")
    for each in fields(settings):
        if kind_of(each) is None or each.metadata.get("section") not in SECTIONS:
            declared = 'a text, number or truth value declared by faap.objectives.setting(0.1, "what it is", low=0)'
            raise FaapError(f"{file}: Settings.{each.name} must be {declared}.")
    return OwnTerms(source, file, module)


@contextmanager
def blaming(file: str) -> Iterator[None]:
    """Say of an error in a user's module which line of its file it is; memory that runs out is nobody's error."""
    try:
        yield
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        ours = isinstance(error, FaapError)
        if isinstance(error, torch.OutOfMemoryError) or (ours and not lines):
            raise
        kind = "" if ours else f"{type(error).__name__}: "
        raise FaapError(f"{file}{f', line {line}' if line else ''}: {kind}{str(error)[:400]}") from error
