"""A step reads no number of the device and brings none there: shown on a device that has no numbers at all."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import faap
from faap.data import load
from faap.detectors.hugging_face import HuggingFaceDetector
from faap.detectors.prepare import prepare
from faap.recipes import recipe_names
from faap.training import Trainer

META = torch.device("meta")
READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select")
# what makes a tensor of numbers that the CPU has: no operator is seen of it
MAKES = (torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor)


class Watch(TorchDispatchMode):
    """Notes every operator that waits: it reads a number, chooses by a mask, or has tensors on two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        # a scalar of the CPU goes with the operator itself
        devices = {each.device.type for each in tensors if each.ndim or each.device == META}
        devices |= {torch.device(kwargs["device"]).type} if tensors and kwargs.get("device") else set()
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        mask = name.startswith("index") and any(each.dtype == torch.bool for each in tensors[1:])
        self.seen += "meta" in devices
        if len(devices) > 1 or ("meta" in devices and (name in READS or mask)):
            self.waits.append(f"{name} {[tuple(each.shape) for each in tensors]} {sorted(devices)}")
        return func(*args, **kwargs)


class Makes(TorchFunctionMode):
    """Notes what the operators do not show."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in MAKES and out.device == META:
            self.waits.append(str(func))
        return out


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    with Watch() as watch, Makes(watch.waits):
        yield watch


@pytest.fixture
def on_meta(
    tiny_promenade: Path, tiny: Callable[..., Any], wrap: Callable[..., HuggingFaceDetector]
) -> Callable[..., Watch]:
    def step(name: str, kind: str = "conditional_softmax", *, padded: bool = False, **changes: Any) -> Watch:
        settings = {"batch_size": 4, "images_per_epoch": 4, "queue_size": 8, "arch": "light"} | changes
        recipe = faap.load_recipe(name, dataset_root=str(tiny_promenade), detr_checkpoint="promenade", **settings)
        split = faap.load_dataset(tiny_promenade).split("train")
        trainer = Trainer(recipe, META, wrap(prepare(tiny(kind))).to(META), split)
        how: Any = {"batch_size": 4, "num_workers": 0, "device": torch.device("cpu")}
        (batch,) = load(trainer.images, trainer.batches, **how)
        if padded:
            batch.pixel_mask = torch.ones_like(batch.images[:, 0], dtype=torch.bool)
        fed = trainer.feed(batch, 0)
        schedule = {name: values[0] for name, values in recipe.schedules().items()}
        trainer.trained.train()
        trainer.step(*fed, schedule)  # what is made once may come from the CPU
        with watching() as watch:
            trainer.step(*fed, schedule)
        return watch

    return step


@pytest.mark.parametrize("name", recipe_names())
def test_a_step_waits_for_nothing(on_meta: Callable[..., Watch], name: str) -> None:
    watch = on_meta(name, ema=0.9)
    assert watch.seen > 500
    assert not watch.waits


@pytest.mark.parametrize(
    "changes", [{"aug_strength": "strong"}, {"arch": "unet"}, {"wass_scores": "matched"}, {"shift": 3, "resize": 0.1}]
)
def test_nor_with_other_settings(on_meta: Callable[..., Watch], changes: dict[str, Any]) -> None:
    assert not on_meta("infonce_4th", **changes).waits


def test_qualities_of_jpeg_go_to_the_device_and_nothing_comes_back(on_meta: Callable[..., Watch]) -> None:
    waits = on_meta("equal", jpeg="50,95").waits
    assert waits
    assert all(each.startswith("_to_copy [(") and each.endswith(",)] ['cpu', 'meta']") for each in waits), waits


@pytest.mark.parametrize("kind", ["detr", "conditional_sigmoid"])
@pytest.mark.parametrize("padded", [False, True])
def test_nor_with_another_detector(on_meta: Callable[..., Watch], kind: str, padded: bool) -> None:
    assert not on_meta("infonce_4th", kind, padded=padded).waits


VALUES = torch.ones(3, device=META)


@pytest.mark.parametrize(
    "wait",
    [
        lambda: torch.tensor([1.0, 2.0], device=META),
        lambda: VALUES.new_tensor([1.0, 2.0]),
        lambda: torch.ones(2).to(META),
        VALUES.cpu,
        lambda: VALUES[VALUES > 0],
        VALUES[0].item,
        lambda: bool(VALUES.all()),
    ],
)
def test_what_waits_is_seen(wait: Callable[[], object]) -> None:
    with watching() as watch, contextlib.suppress(NotImplementedError, RuntimeError):
        wait()
    assert watch.waits
