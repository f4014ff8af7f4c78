"""What files may hold instead of what they should: one random change of nested JSON or of a checkpoint."""

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from faap.errors import FaapError

PLAIN: list[Any] = [
    *(None, True, False, 0, -1, 1, 3, 0.5, -0.1, 2**31, 2**70, 3e20, 1e300, float("nan"), float("inf"), 10**9),
    *("", "abc", "0.1", "1", "ü\n", "hf-hub:org/model", [], {}, [None], [[]], [1, 2], ["a"], [8, 8, 8], [16000, 8, 8]),
    *({"0": "a"}, {"a": 0}, {"": None}, [{}], [1e30] * 3, {"height": 2**40, "width": 2**40}, "x" * 500),
]
TENSORS: list[Any] = [
    *(torch.tensor(float("nan")), torch.zeros(0), torch.zeros(1).expand(2**40), torch.zeros(3, dtype=torch.int64)),
    *(torch.full((8, 8, 1, 1), torch.inf), torch.zeros(2, 2, dtype=torch.complex64), torch.eye(2).to_sparse()),
    *(torch.zeros(1, 2**20), torch.zeros(2**20, 1), torch.zeros(4, dtype=torch.bool), torch.zeros(2, 3, 4, 5, 6)),
]


def mutants(content: Any, count: int, seed: int, odd: list[Any] = PLAIN) -> Iterator[tuple[str, Any]]:
    """Yield (what was done, changed copy) of nested dicts and lists."""
    rng = random.Random(seed)
    for _ in range(count):
        changed = copy.deepcopy(content)
        places = list(_places(changed))
        holder, key = rng.choice(places)
        value, way = holder[key], rng.choice(["replace", "replace", "replace", "delete", "rename", "wrap", "edit"])
        if way == "replace":
            holder[key] = copy.deepcopy(rng.choice(odd))
        elif way == "delete":
            del holder[key]
        elif way == "rename" and isinstance(holder, dict):
            holder[rng.choice(["", "abc", f"module.{key}", f"{key} ", f"{key}.0"])] = holder.pop(key)
        elif way == "wrap":
            holder[key] = rng.choice([[value], {"a": value}, [value, value], str(value)[:50]])
        elif isinstance(value, Tensor) and value.numel():
            ways = [value[None], value.double(), value.half(), value.flatten(), value.flatten()[1:], value + torch.nan]
            holder[key] = rng.choice(ways)
        elif isinstance(value, int | float):
            holder[key] = rng.choice([-value, value + 1, value * 1000, float(value), str(value), value * 10**12])
        yield f"{way} {key}: {str(holder[key])[:40] if isinstance(holder, dict) and key in holder else '-'}", changed


def outcome(load: Callable[[], object], said: str) -> str | None:
    """What the user is told when something is loaded; None if it loads. Any other error goes on, with what was done."""
    try:
        load()
    except FaapError as error:
        return str(error)
    except BaseException as error:
        error.add_note(said)
        raise
    return None


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in nested dicts and lists."""
    keys = content.keys() if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        yield content, key
        yield from _places(content[key])
