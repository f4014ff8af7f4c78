"""The recipes that come with faap, and reading the file of one. Nothing here needs torch."""

import os
from pathlib import Path

import yaml

from faap.errors import FaapError, nearest
from faap.files import read_text
from faap.settings import shown

RECIPES = Path(__file__).parent
# characters of a recipe's file; ours have less than a thousand
_LARGEST = 100_000


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with faap."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def variants() -> dict[str, Path]:
    """Return the files of the variants that revert one decision of a recipe each, by their names."""
    return {path.stem: path for path in sorted(RECIPES.glob("ablations/*/*.yaml"))}


def find(name_or_path: str | Path) -> Path:
    """Return the file of a recipe or a variant, by name or path; raise a FaapError if there is none."""
    named = {name: RECIPES / f"{name}.yaml" for name in recipe_names()} | variants()
    if path := named.get(str(name_or_path)):
        return path
    if not os.path.isfile(name_or_path):
        hint = f"{nearest(str(name_or_path), named)} Recipes: {', '.join(recipe_names())}."
        raise FaapError(f"{shown(str(name_or_path), 300)[1:-1]}: no recipe of this name, and no file.{hint}")
    return Path(name_or_path)


def read(path: Path) -> dict[str, str]:
    """Read a recipe's file: its fields on top of those of its `base`, named like the file if it has no `name`.

    All values stay text until a field says what they are: YAML alone takes 1e-4 for text and no for false.

    Raises:
        FaapError: if the file cannot be read, or is not a flat mapping of different fields to single values.
    """
    if (path.is_file() and path.stat().st_size > 4 * _LARGEST) or len(text := read_text(path)) > _LARGEST:
        raise FaapError(f"{path}: has more than {_LARGEST:,} characters; it is no recipe.")
    try:
        # the tree of what is written and not what it stands for: an alias can stand for itself, or for a billion things
        tree = yaml.compose(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        raise FaapError(f"{path}: is not valid YAML: {str(error)[:400]}") from error
    if not isinstance(tree, yaml.MappingNode):
        raise FaapError(f"{path}: must be a mapping of fields to values, one a line, such as 'temperature: 0.07'.")
    own: dict[str, str] = {}
    for key, value in tree.value:
        place = f"{path}, line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise FaapError(f"{place}: a {key.id} stands where a field's name should.")
        if not isinstance(value, yaml.ScalarNode):
            raise FaapError(f"{place}: {shown(key.value)[1:-1]} is a {value.id}; it must be a single value.")
        if key.value in own:
            raise FaapError(f"{place}: {shown(key.value)[1:-1]} stands there for the second time.")
        own[key.value] = value.value
    base, known = own.pop("base", None), recipe_names()
    if base is not None and base not in known:
        raise FaapError(f"{path}: base is {shown(base)}; it must be one of {', '.join(known)}.{nearest(base, known)}")
    return (read(RECIPES / f"{base}.yaml") if base else {}) | {"name": path.stem} | own
