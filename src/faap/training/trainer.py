"""What is trained: a step, an epoch, and the state from which another trainer goes on as if it were this one."""

import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.data import DataLoader

from faap import distributed
from faap.config import Recipe
from faap.data import Batch, FaapImages, GroupBalancedBatches, Split, collate
from faap.detectors import FrozenDetector
from faap.errors import FaapError
from faap.perturbation import build_generator, jitter
from faap.training.checkpoints import adam_state, check_state, check_tensors
from faap.training.monitor import NullMonitor
from faap.training.objective import Objective
from faap.training.parallel import padded_alike, sum_gradients, whole_batch

_ENDED = "A process that loads images cannot start or has ended"
_LESS = "use a smaller --batch_size, more shared memory (/dev/shm; docker run --shm-size)"
# what torch and the system say where processes that load images fail -> what it means, and what else may help
_TROUBLES = {
    "Too many open files|ancdata": "Too many files are open at once: allow more (ulimit -n 65536)",
    r"^(EOF|BrokenPipe|Connection\w*|BlockingIO)Error|Cannot allocate memory": f"{_ENDED}: give it more memory",
    r"DataLoader worker \(pid|shared memory|torch_shm": f"{_ENDED}, perhaps for want of memory: {_LESS}",
}


class Trainer:
    """Generator, objective and optimizer in front of a frozen detector.

    Its first weights are a function of the recipe's seed.

    Args:
        recipe: the configuration.
        device: where to compute; the detector is there.
        detector: frozen.
        split: what to train on.

    Attributes:
        finished: how many epochs are.
    """

    def __init__(self, recipe: Recipe, device: torch.device, detector: FrozenDetector, split: Split) -> None:
        if distributed.world() > 1 and recipe.arch == "unet":
            advice = "and a process has a part of it. Use --arch light, or one process."
            raise FaapError(f"arch is 'unet', whose batch norm looks at the whole batch, {advice}")
        self.recipe, self.device, self.detector = recipe, device, detector
        self.data_sha256 = split.fingerprint()
        self.schedules = recipe.schedules()
        self.finished = 0
        labels = detector.label_map(split.categories)
        images = FaapImages(
            split, detector.preprocessing, labels, training=True, seed=recipe.seed, edges=recipe.train_edges
        )
        groups = [record.group for record in split.records]  # empty where people of several are in the image
        names = (recipe.anchor_group, recipe.reference_group)
        anchors, references = (np.flatnonzero([group == name for group in groups]).tolist() for name in names)
        how: Any = {"shape": images.shape, "rank": distributed.rank(), "world": distributed.world()}
        how |= {"batch_size": recipe.batch_size, "images_per_epoch": recipe.images_per_epoch, "seed": recipe.seed}
        self.batches = GroupBalancedBatches(anchors, references, **how)
        _allow_files(recipe)
        self.loader = DataLoader(images, batch_sampler=self.batches, collate_fn=collate, num_workers=recipe.num_workers)
        with seeded(recipe.seed):
            self.generator = build_generator(recipe.arch, recipe.epsilon_peak, recipe.widths or None).to(device)
            self.objective = Objective(recipe, detector.feature_dim).to(device)
        self.trained = nn.ModuleList([self.generator, self.objective])
        self.parts = [list(part.parameters()) for part in (self.generator, self.objective.head) if part is not None]
        everything = list(itertools.chain(*self.parts))
        self.clipped = self.parts if recipe.clip_apart else [everything]
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[recipe.optimizer]
        self.optimizer = kind(everything, lr=recipe.lr_g, weight_decay=recipe.weight_decay)

    def epoch(self, epoch: int, monitor: NullMonitor) -> dict[str, Any]:
        """Train one epoch, counted from 0; return its line of the log but for the validation."""
        schedule = {name: values[epoch] for name, values in self.schedules.items()}
        for group in self.optimizer.param_groups:
            group["lr"] = schedule["learning_rate"]
        self.generator.epsilon = schedule["epsilon"]  # the bound belongs to the epoch's generator, wherever it is used
        self.batches.set_epoch(epoch)
        self.trained.train()
        steps: list[dict[str, float]] = []
        progress = Progress(console=monitor.console, transient=True)
        with seeded(self.recipe.seed, epoch), progress, _loading():
            for number, batch in enumerate(progress.track(self.loader, description=f"epoch {epoch}")):
                steps.append(self.step(padded_alike(batch.to(self.device)), epoch, schedule))
                monitor.step(epoch * len(self.batches) + number, steps[-1] | schedule)
        self.trained.eval()
        self.finished = epoch + 1
        images = round(sum(values["n_f"] + values["n_m"] for values in steps))
        means = {name: _mean([values[name] for values in steps]) for name in steps[0]}
        return {"epoch": epoch, "images": images, "train": means, "losses": self.objective.losses, "schedule": schedule}

    def step(self, batch: Batch, epoch: int, schedule: Mapping[str, float]) -> dict[str, float]:
        """Make one optimizer step with this process's images of a batch; return every monitored number."""
        mask, seeds = batch.pixel_mask, [(self.recipe.seed, epoch, int(image)) for image in batch.image_ids]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            with record_function("perturb"):
                perturbed = self.generator.perturb(batch.pixel_values, mask)
            with record_function("augment"):
                augmented = jitter(perturbed, self.recipe.aug_strength, seeds, mask)
            with record_function("detect"):
                out = self.detector(*self.detector.adapt(augmented, mask))
        with record_function("loss"):
            out, targets, groups, matches = whole_batch(self.detector, out, batch, self.recipe.anchor_group)
            total, seen = self.objective(self.objective.view(self.detector, out, targets, groups, matches), schedule)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        sum_gradients(*self.parts)
        norms = [nn.utils.clip_grad_norm_(part, self.recipe.max_norm) for part in self.clipped]
        # a part without any gradient has its norm on the CPU
        seen["gradient_norm"] = torch.stack([norm.to(self.device) for norm in norms]).norm()
        seen["delta_linf"], seen["delta_l2"] = _size(perturbed.detach() - batch.pixel_values)
        # in one transfer
        values = dict(zip(seen, torch.stack([value.float() for value in seen.values()]).tolist(), strict=True))
        if not math.isfinite(values["total"]) or not math.isfinite(values["gradient_norm"]):
            raise FaapError(self._why_not_finite(epoch, values))
        self.optimizer.step()
        return values

    def _why_not_finite(self, epoch: int, values: Mapping[str, float]) -> str:
        """Say what is not finite, and what can be done about it."""
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        said = f"the loss or its gradient is not finite in epoch {epoch} ({numbers})"
        if not _is_finite(self.detector):
            return f"{said}: weights of the detector {self.detector.name} are not; take another checkpoint of it."
        if not _is_finite(self.trained):
            return f"{said}: the trained weights are not; resume an earlier checkpoint with a lower --lr_g."
        if not self.optimizer.state and not self.finished:
            bf16 = " Try --precision no." if self.recipe.precision == "bf16" else ""
            return f"{said} at the first step, so that no learning rate can be the reason.{bf16}"
        return f"{said}; try a lower --lr_g."

    def state_dict(self) -> dict[str, Any]:
        """Return everything that another trainer needs to go on exactly after the last finished epoch."""
        parts = ("generator", "objective", "optimizer")
        state: dict[str, Any] = {name: getattr(self, name).state_dict() for name in parts}
        state |= {"epoch": self.finished - 1, "generator_config": self.generator.config()}
        state |= {"detector_file_sha256": self.detector.file_sha256, "data_sha256": self.data_sha256}
        return state | {"recipe": self.recipe.to_dict()}

    def load_state_dict(self, state: Mapping[str, Any], place: str = "state") -> None:
        """Go on where another trainer of these data and this detector was; the settings stay this trainer's own.

        Args:
            state: as `state_dict` returns it; tensors on the CPU.
            place: the file it was read from, for messages.

        Raises:
            FaapError: if it is not such a state, or one of another training; then nothing has changed.
        """
        check_state(state, place)
        ours, detector = self.state_dict(), ("against another detector", "detr_checkpoint")
        what = {"data_sha256": ("on other data", "dataset_root"), "detector_file_sha256": detector}
        for key, (trained, flag) in what.items():
            if state[key] != ours[key]:
                hashes = f"SHA-256 {state[key][:12]}…, here {ours[key][:12]}…"
                other = f"{place}: trained {trained} than {getattr(self.recipe, flag)} ({hashes})"
                raise FaapError(f"{other}. Resume with the --{flag} of that training.")
        for part in ("generator", "objective"):
            check_tensors(state[part], ours[part], f"{place}: {part}")
        objective = dict(state["objective"])
        for name, term in self.objective.states.items():
            key = f"states.{name}._extra_state"
            if isinstance(own := getattr(term, "optimizer", None), torch.optim.Adam) and key in objective:
                objective[key] = adam_state(objective[key], own, f"{place}: objective: {key}")
        optimizer = adam_state(state["optimizer"], self.optimizer, f"{place}: optimizer")
        self.generator.load_state_dict(state["generator"])
        self.objective.load_state_dict(objective)
        self.optimizer.load_state_dict(optimizer)
        self.finished = state["epoch"] + 1


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Make torch's random numbers a function of `numbers` inside, and leave the caller's generators as they were."""
    # a GPU's only where something has used one
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))
        yield


def _allow_files(recipe: Recipe) -> None:
    """Let workers send what they load: each tensor on its way is an open file, and one too many may stop them all."""
    if os.name != "posix" or not recipe.num_workers:
        return
    import resource  # it is not everywhere

    # a worker is two batches ahead; an image has two tensors of its own, a batch five
    need = 256 + 2 * recipe.num_workers * (2 * recipe.batch_size + 5)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < need and hard != resource.RLIM_INFINITY:
        said = f"{recipe.num_workers} workers may have {need} files open with a batch_size of {recipe.batch_size}"
        advice = f"use fewer --num_workers, or allow more (ulimit -n {need})"
        raise FaapError(f"{said}, and {hard} are allowed: {advice}.")
    if soft < need and soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))


@contextmanager
def _loading() -> Iterator[None]:
    """Say what the end of a process that loads images means to who started it; torch may say it at any moment."""
    try:
        yield
    except (FaapError, RuntimeError, OSError, EOFError) as error:
        name, said = type(error).__name__, str(error).strip()
        # a worker wraps a message in its traceback
        own = said.rpartition(f"{name}: ")[2]
        for signs, trouble in _TROUBLES.items():
            if re.search(signs, f"{name}: {said}"):
                line = (own.splitlines() or [name])[-1]
                raise FaapError(f"{line}\n{trouble}, or use fewer --num_workers.") from error
        if isinstance(error, FaapError):
            raise FaapError(own) from None
        raise


def _size(delta: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest change of a value in the whole batch, and the mean length of an image's change."""
    delta = delta.flatten(1)
    linf, l2 = distributed.gather(torch.stack([delta.abs().amax(1), delta.norm(dim=1)], 1)).unbind(1)
    return linf.amax(), l2.mean()


def _is_finite(module: nn.Module) -> bool:
    return all(bool(value.isfinite().all()) for value in itertools.chain(module.parameters(), module.buffers()))


def _mean(values: list[float]) -> float | None:
    """Average over the steps that have a value: a similarity needs a pair of images."""
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else None
