"""What is trained: a step, an epoch, and the state from which another trainer goes on as if it were this one."""

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.profiler import record_function

from faap import distributed
from faap.config import Recipe
from faap.data import Batch, FaapImages, GroupBalancedBatches, Split, load, loading
from faap.detectors import FrozenDetector
from faap.detectors.set_loss import FEW
from faap.errors import FaapError
from faap.perturbation import build_generator
from faap.perturbation.moves import move_targets
from faap.perturbation.way import Way
from faap.training.checkpoints import adam_state, check_state, check_tensors, origin_of
from faap.training.graph import Recorded
from faap.training.monitor import NullMonitor
from faap.training.muon import Muon
from faap.training.objective import Objective
from faap.training.parallel import padded_alike, sum_gradients, whole_batch
from faap.training.stopping import Stop

# steps after which their numbers are read, for which a GPU would be waited for, and the state is remembered
UNREAD = 50


class Trainer:
    """Generator, objective and optimizer in front of a frozen detector.

    Its first weights are a function of the recipe's seed.

    Args:
        recipe: the configuration.
        device: where to compute; the detector is there.
        detector: frozen.
        split: what to train on.

    Attributes:
        generator: what is trained.
        kept: what is measured and kept: the generator, or the moving average of its weights.
        finished: how many epochs are.
        good: the newest state in which all numbers were read and found finite, to be left alone.
    """

    def __init__(self, recipe: Recipe, device: torch.device, detector: FrozenDetector, split: Split) -> None:
        if distributed.world() > 1 and recipe.arch == "unet":
            advice = "and a process has a part of it. Use --arch light, or one process."
            raise FaapError(f"arch is 'unet', whose batch norm looks at the whole batch, {advice}")
        self.recipe, self.device, self.detector = recipe, device, detector
        self.origin = origin_of(recipe, split.fingerprint(), detector.file_sha256)
        self.schedules = recipe.schedules()
        self.finished, self.steps = 0, torch.zeros((), device=device)
        self.running = _nothing()
        self.wrong: Mapping[str, float] = {}  # the numbers of the last step that was not finite
        self.good: dict[str, Any] = {}
        labels = detector.label_map(split.categories)
        options: Any = {"seed": recipe.seed, "edges": recipe.train_edges, "memory": recipe.memory * 3 * 2**18}
        self.images = FaapImages(split, detector.preprocessing, labels, training=True, **options)
        groups = [record.group for record in split.records]  # empty where people of several are in the image
        names = (recipe.anchor_group, recipe.reference_group)
        anchors, references = (np.flatnonzero([group == name for group in groups]).tolist() for name in names)
        how: Any = {"shape": self.images.shape, "rank": distributed.rank(), "world": distributed.world()}
        how |= {"batch_size": recipe.batch_size, "images_per_epoch": recipe.images_per_epoch, "seed": recipe.seed}
        self.batches = GroupBalancedBatches(anchors, references, **how)
        with seeded(recipe.seed):
            self.generator = build_generator(recipe.arch, recipe.epsilon_peak, recipe.widths or None).to(device)
            self.objective = Objective(recipe, detector.feature_dim).to(device)
        self.kept = copy.deepcopy(self.generator) if recipe.ema else self.generator
        self.trained = nn.ModuleList([self.generator, self.objective])
        self.parts = [list(part.parameters()) for part in (self.generator, self.objective.head) if part is not None]
        everything = list(itertools.chain(*self.parts))
        self.clipped = self.parts if recipe.clip_apart else [everything]
        last = [each for each in self.parts[0] if each.ndim > 1][-1:]
        kind: Any = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "muon": partial(Muon, apart=last)}
        builtin = not recipe.terms and type(detector).__module__.startswith("faap.detectors.")
        alone = distributed.world() == 1 and not self.objective.states
        images_scores = recipe.wass_scores == "image" and not recipe.lambda_score
        there = device.type == "cuda" and recipe.graph and builtin and alone and images_scores
        # where a step is replayed, what changes lies on the device
        rate: Any = torch.tensor(recipe.lr_g, device=device) if there else recipe.lr_g
        options = {"lr": rate, "weight_decay": recipe.weight_decay, "capturable": there}
        self.optimizer: torch.optim.Optimizer = kind[recipe.optimizer](everything, **options)
        # the first steps of a kind are run uncaptured, and torch would say so
        self.optimizer._warned_capturable_if_run_uncaptured = True
        self.recorded = Recorded(self.step, min(FEW, detector.num_queries)) if there else None

    def epoch(self, epoch: int, monitor: NullMonitor) -> dict[str, Any]:
        """Train one epoch, counted from 0, or the rest of it; return its line of the log but for the validation.

        A step whose loss or gradient is not finite is left out, as if it had never been made.

        Raises:
            FaapError: so many steps in a row are not finite as the recipe allows at most, or all of the epoch.
            Stop: it was asked for; `good` is where another trainer can go on.
        """
        started = time.perf_counter() - self.running["seconds"]
        schedule = {name: values[epoch] for name, values in self.schedules.items()}
        for group in self.optimizer.param_groups:
            rate = schedule["learning_rate"]
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate
        # the bound belongs to the epoch's generator, wherever it is used
        self.generator.epsilon = self.kept.epsilon = schedule["epsilon"]
        self.batches.set_epoch(epoch)
        self.trained.train()
        progress = Progress(console=monitor.console, transient=True, disable=not monitor.console.is_terminal)
        with seeded(self.recipe.seed, epoch), progress, loading(), monitor.stopping.held():
            bar = progress.add_task(f"epoch {epoch}", total=len(self.batches))
            while not self._steps(schedule, monitor, started, partial(progress.update, bar)):
                pass
        if not self.running["sums"]:
            raise FaapError(self._why_not_finite(epoch, self.wrong, first=not epoch))
        self.trained.eval()
        sums, skipped = self.running["sums"], self.running["skipped"]
        row = {"epoch": epoch, "images": round(sums["n_f"][0] + sums["n_m"][0])}
        row["train"] = {name: total / count if count else None for name, (total, count) in sums.items()}
        if skipped:
            names = {record.image_id: record.path.name for record in self.images.split.records}
            row["skipped"] = [each | {"images": [names[image] for image in each["images"]]} for each in skipped]
        self.finished, self.running = epoch + 1, _nothing()
        return row | {"losses": self.objective.losses, "schedule": schedule}

    def _steps(
        self, schedule: Mapping[str, float], monitor: NullMonitor, started: float, show: Callable[..., object]
    ) -> bool:
        """Make the steps that are left of an epoch.

        Returns:
            Whether it did; else a step was not finite: that is noted, and all is as it was when numbers were read last.
        """
        here, total, waiting = self.running["step"], len(self.batches), list[tuple[list[int], Any]]()
        how: Any = {"batch_size": self.recipe.batch_size, "num_workers": self.recipe.num_workers, "device": self.device}
        loaded = iter(load(self.images, islice(self.batches, here, None), **how))
        _chance(self.running["random"], self.device)  # after the loader has drawn its own
        self._remember(started)
        for step, batch in enumerate(loaded, here):
            out = step in [each["step"] for each in self.running["skipped"]]
            waiting.append((batch.image_ids.tolist(), None if out else self._step(batch, schedule)))
            show(completed=step + 1)
            # the same in all processes
            asked = distributed.gather_objects([(monitor.stopping.signum, monitor.due(step + 1))])
            stop, due = map(max, zip(*asked, strict=True))
            if not (stop or due or len(waiting) >= UNREAD or step + 1 == total):
                continue
            made = iter(_floats([seen for _, seen in waiting if seen is not None]))
            read = [(images, seen and next(made)) for images, seen in waiting]
            for number, (images, values) in enumerate(read, here):
                if values and not math.isfinite(values["total"] + values["gradient_norm"]):
                    self._leave_out(number, images, values)
                    return False
            for number, (_, values) in enumerate(read, here):
                if values:
                    monitor.step(self.finished * total + number, {**values, **schedule})
                    for name, value in values.items():
                        so_far, count = self.running["sums"].get(name, (0, 0))
                        known = math.isfinite(value)  # a similarity needs a pair of images
                        self.running["sums"][name] = (so_far + (value if known else 0), count + known)
            here = self.running["step"] = step + 1
            waiting.clear()
            self._remember(started)
            if stop or due:
                monitor.save(self.good)
            if stop:
                raise Stop(stop)
        return True

    def _step(self, batch: Batch, schedule: Mapping[str, float]) -> dict[str, Tensor]:
        return (self.recorded or self.step)(*self.feed(padded_alike(batch), self.finished), schedule)

    def _remember(self, started: float) -> None:
        self.running |= {"seconds": time.perf_counter() - started, "random": _where_chance_is(self.device)}
        self.good = copy.deepcopy(self.state_dict())

    def _leave_out(self, step: int, images: list[int], values: Mapping[str, float]) -> None:
        """Go back to where numbers were read last, and note that a step is not to be made.

        Raises:
            FaapError: as many before it were not finite either as are allowed, or nothing can be done.
        """
        skipped, limit = self.running["skipped"], self.recipe.max_skipped
        before = [each["step"] for each in skipped]
        last = set(range(step - limit + 1, step))
        why = self._why_not_finite(self.finished, values, first=not self.finished and len(before) == step)
        if not _is_finite(self.detector) or last <= set(before):
            raise FaapError(why)
        try:
            self.load_state_dict(self.good)
        except FaapError:
            raise FaapError(why) from None
        self.wrong = values
        # of all processes, each of which has its share of the batch
        self.running["skipped"] = [*skipped, {"step": step, "images": distributed.gather_objects(images)}]
        if self.recorded:  # its recordings are of tensors that are no more
            self.recorded = Recorded(self.step, self.recorded.most)

    def feed(self, batch: Batch, epoch: int) -> tuple[Batch, Way]:
        """Bring a batch to the device, and draw what happens to its images on their way to the detector."""
        seeds = [(self.recipe.seed, epoch, image) for image in batch.image_ids.tolist()]
        way = Way.drawn(self.recipe, seeds, batch.valid)
        if way.moves is not None:
            batch = replace(batch, targets=move_targets(batch.targets, way.moves))
        return batch.to(self.device), way.to(self.device)

    def step(self, batch: Batch, way: Way, schedule: Mapping[str, float]) -> dict[str, Tensor]:
        """Make one optimizer step with this process's images of a batch; return every monitored number.

        Nothing here looks at a number on the device, or brings one there: the next step is prepared meanwhile.
        """
        mask, pixels = batch.pixel_mask, batch.pixel_values
        half = self.recipe.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext():
            with record_function("perturb"):
                perturbed = self.generator.perturb(pixels, mask)
            with record_function("augment"):
                arrived = way.apply(perturbed, mask)
            with record_function("detect"):
                out = self.detector(*self.detector.adapt(arrived, mask))
        with record_function("loss"):
            whole = whole_batch(self.detector, out, batch, self.recipe.anchor_group)
            seen: dict[str, Tensor]
            total, seen = self.objective(self.objective.view(self.detector, whole), schedule)
        self.optimizer.zero_grad(set_to_none=True)
        with self.recipe.blamed():
            total.backward()
        sum_gradients(*self.parts)
        # a part without any gradient has its norm on the CPU
        moved = [part for part in self.clipped if any(each.grad is not None for each in part)]
        norms = [nn.utils.clip_grad_norm_(part, self.recipe.max_norm) for part in moved]
        seen["gradient_norm"] = torch.stack([total.new_zeros(()).detach(), *norms]).norm()
        seen["delta_linf"], seen["delta_l2"] = _size(perturbed.detach() - pixels)
        self.optimizer.step()
        if self.recipe.ema:
            self._average()
        return seen

    @torch.no_grad()
    def _average(self) -> None:
        """Bring the generator that is kept nearer to the trained one; at first it follows more closely."""
        self.steps += 1
        share = 1 - ((1 + self.steps) / (10 + self.steps)).clamp(max=self.recipe.ema)
        kept: Any = list(self.kept.parameters())
        moves: Any = torch._foreach_sub(list(self.generator.parameters()), kept)
        torch._foreach_mul_(moves, share)
        torch._foreach_add_(kept, moves)
        for mine, theirs in zip(self.kept.buffers(), self.generator.buffers(), strict=True):
            mine.copy_(theirs)

    def _why_not_finite(self, epoch: int, values: Mapping[str, float], *, first: bool) -> str:
        """Say what is not finite, and what can be done about it."""
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        said = f"the loss or its gradient is not finite in epoch {epoch} ({numbers})"
        if not _is_finite(self.detector):
            return f"{said}: weights of the detector {self.detector.name} are not; take another checkpoint of it."
        if first:
            bf16 = " Try --precision no." if self.recipe.precision == "bf16" else ""
            return f"{said} from the first step on, so that no learning rate can be the reason.{bf16}"
        return f"{said}; {'resume an earlier checkpoint' if epoch else 'start again'} with a lower --lr_g."

    def state_dict(self) -> dict[str, Any]:
        """Return everything that another trainer needs to go on exactly where this one is."""
        parts = ("generator", "objective", "optimizer")
        state: dict[str, Any] = {name: getattr(self, name).state_dict() for name in parts}
        if self.recipe.ema:
            state |= {"generator": self.kept.state_dict(), "trained": self.generator.state_dict()}
        state |= {"epoch": self.finished - 1, "generator_config": self.generator.config()}
        state |= self.origin | {"averaged": self.steps, "running": self.running}
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
        then, now = state["recipe"].get("optimizer"), self.recipe.optimizer
        if then != now and "muon" in (then, now):  # Adam's kinds keep the same
            raise FaapError(f"{place}: trained with --optimizer {then}; {now} cannot go on from what it kept.")
        for part in ("generator", "objective"):
            check_tensors(state[part], ours[part], f"{place}: {part}")
        trained = state.get("trained", state["generator"])  # unless it is an average
        check_tensors(trained, ours["generator"], f"{place}: trained")
        objective = dict(state["objective"])
        for name, term in self.objective.states.items():
            key = f"states.{name}._extra_state"
            if isinstance(own := getattr(term, "optimizer", None), torch.optim.Adam) and key in objective:
                objective[key] = adam_state(objective[key], own, f"{place}: objective: {key}")
        optimizer = adam_state(state["optimizer"], self.optimizer, f"{place}: optimizer")
        running = state.get("running", _nothing())
        here, random = _where_chance_is(self.device), running["random"]
        for name in here.keys() & random.keys():
            if (random[name].shape, random[name].dtype) != (here[name].shape, here[name].dtype):
                raise FaapError(f"{place}: running: random: {name} is no state of a generator of random numbers.")
        check_tensors({"averaged": state.get("averaged", self.steps)}, {"averaged": self.steps}, place)
        if not 0 <= running["step"] <= len(self.batches):
            raise FaapError(f"{place}: running: step is {running['step']}, of {len(self.batches)} in an epoch.")
        self.kept.load_state_dict(state["generator"])
        self.generator.load_state_dict(trained)
        with self.recipe.blamed():
            self.objective.load_state_dict(objective)
        self.optimizer.load_state_dict(optimizer)
        self.finished = state["epoch"] + 1
        self.running = copy.deepcopy(running)
        self.steps.fill_(state.get("averaged", self.finished * len(self.batches)))


def _nothing() -> dict[str, Any]:
    """Return what is known of an epoch that has not begun: see `checkpoints.RUNNING`."""
    return {"step": 0, "seconds": 0.0, "sums": {}, "skipped": [], "random": {}}


def _where_chance_is(device: torch.device) -> dict[str, Tensor]:
    here = {"cpu": torch.get_rng_state()}
    return here | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _chance(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Let torch draw as it would have where `_where_chance_is` was asked; nothing if it was not."""
    if "cpu" in state:
        torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Make torch's random numbers a function of `numbers` inside, and leave the caller's generators as they were."""
    # a GPU's only where something has used one
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))
        yield


def _size(delta: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest change of a value in the whole batch, and the mean length of an image's change."""
    delta = delta.flatten(1)
    linf, l2 = distributed.gather(torch.stack([delta.abs().amax(1), delta.norm(dim=1)], 1)).unbind(1)
    return linf.amax(), l2.mean()


def _floats(steps: Sequence[Mapping[str, Tensor]]) -> list[dict[str, float]]:
    """Read the numbers of several steps, in one transfer."""
    if not steps:
        return []
    numbers = iter(torch.stack([value.float() for values in steps for value in values.values()]).tolist())
    return [{name: next(numbers) for name in values} for values in steps]


def _is_finite(module: nn.Module) -> bool:
    return all(bool(value.isfinite().all()) for value in itertools.chain(module.parameters(), module.buffers()))
