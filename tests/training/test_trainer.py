"""A step, an epoch, and that a state is all that another trainer needs."""

import contextlib
import copy
import os
import random
import resource
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import get_worker_info

from faap.config import recipe_names
from faap.data import FaapImages, load
from faap.errors import FaapError
from faap.perturbation.jpeg import code
from faap.perturbation.moves import move, move_targets
from faap.training import Trainer
from faap.training.checkpoints import CHECKPOINT, read_checkpoint, save_checkpoint
from faap.training.monitor import NullMonitor
from faap.training.stopping import Stop, Stopping
from same import assert_same

MakeTrainer = Callable[..., Trainer]
# every kind of state alone, and the other generator, optimizer and precision beside the two that remember most
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in recipe_names()),
    ("moco_4th", {"arch": "unet", "widths": "8,8,8", "clip_apart": True}),
    ("wgan_7th", {"optimizer": "adamw", "precision": "bf16"}),
    ("contrastive_1st", {"optimizer": "adam", "precision": "bf16"}),
    ("contrastive_1st", {"optimizer": "muon"}),
    ("equal", {"head": "plain"}),  # weights that no gradient reaches
    ("infonce_4th", {"ema": 0.9}),
    ("equal", {"shift": 3, "resize": 0.1, "jpeg": "75", "aug_strength": "weak"}),
    ("moco_4th", {"ema": 0.5, "arch": "unet", "widths": "8,8,8"}),
]
MUTANTS = 30


@pytest.mark.parametrize(("name", "variant"), CASES, ids=str)
def test_a_trainer_goes_on_exactly_from_anothers_state(
    make_trainer: MakeTrainer, name: str, variant: dict[str, Any], tmp_path: Path
) -> None:
    whole = make_trainer(name, **variant)
    whole.epoch(0, NullMonitor())
    save_checkpoint(tmp_path / "state.pth", whole.state_dict())
    row = whole.epoch(1, NullMonitor())
    later = make_trainer(name, **variant)
    later.load_state_dict(read_checkpoint(tmp_path / "state.pth"))
    assert later.finished == 1
    assert later.epoch(1, NullMonitor()) == row
    assert_same(later.state_dict(), whole.state_dict())


def test_a_state_holds_memory_and_second_player(make_trainer: MakeTrainer) -> None:
    held = {}
    for name in ("moco_4th", "wgan_7th", "infonce_4th"):
        trainer, held[name] = make_trainer(name), []
        for epoch in (0, 1):
            trainer.epoch(epoch, NullMonitor())
            held[name].append(copy.deepcopy(trainer.state_dict()["objective"]))
    queue = [state["states.momentum.queue"].norm(dim=1).round().sum() for state in held["moco_4th"]]
    assert queue == [2, 4]  # two women a step
    assert [int(state["states.momentum.pushed"]) for state in held["moco_4th"]] == [2, 4]
    player = [state["states.adversarial._extra_state"] for state in held["wgan_7th"]]
    assert [int(state["state"][0]["step"]) for state in player] == [4, 8]  # four steps a step
    weights = [state["states.adversarial.discriminator.1.weight"] for state in held["wgan_7th"]]
    assert not torch.equal(*weights)
    assert all(key.startswith("head.") for key in held["infonce_4th"][0])


def test_settings_are_those_of_the_trainer_that_goes_on(make_trainer: MakeTrainer) -> None:
    first, second = make_trainer(), make_trainer(weight_decay=0.3)
    first.epoch(0, NullMonitor())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.optimizer.param_groups[0]["weight_decay"] == 0.3
    assert second.optimizer.state_dict()["state"].keys() == first.optimizer.state_dict()["state"].keys() != set()


def test_weights_are_a_function_of_the_seed(make_trainer: MakeTrainer) -> None:
    def weights(**changes: Any) -> torch.Tensor:
        return torch.cat([value.flatten() for value in make_trainer(**changes).state_dict()["generator"].values()])

    assert torch.equal(weights(), weights())
    assert not torch.equal(weights(), weights(seed=1))


@pytest.mark.parametrize("apart", [False, True])
def test_gradients_are_clipped_together_or_apart(make_trainer: MakeTrainer, apart: bool) -> None:
    """The optimizer's first moment after one step is a tenth of the clipped gradient."""
    trainer = make_trainer("contrastive_1st", max_norm=1e-3, clip_apart=apart)
    trainer.epoch(0, NullMonitor())
    moments = [state["exp_avg"] * 10 for state in trainer.optimizer.state_dict()["state"].values()]
    head = sum(key.startswith("head.") for key in trainer.state_dict()["objective"])
    norms = [
        torch.cat([m.flatten() for m in part]).norm().item() for part in (moments[:-head], moments[-head:], moments)
    ]
    assert norms == pytest.approx([1e-3, 1e-3, 1e-3 * 2**0.5] if apart else [*norms[:2], 1e-3], rel=1e-3)
    assert apart or max(norms[:2]) < 0.9999e-3


@pytest.mark.parametrize("arch", ["light", "unet"])
def test_the_average_is_the_mean_of_the_weights_after_each_step(make_trainer: MakeTrainer, arch: str) -> None:
    """Against the sum written out: w = d·w + (1 − d)·v, where d grows from 2/11 to the recipe's."""
    trainer, step = (
        make_trainer(
            ema=0.5, arch=arch, widths="8,8,8", images_per_epoch=16, batch_size=2, lr_g=0.1, lr_warmup_epochs=0
        ),
        Trainer.step,
    )
    wanted = {name: value.clone() for name, value in trainer.generator.state_dict().items()}
    decays: list[float] = []

    def stepping(*given: Any) -> Any:
        seen = step(trainer, *given)
        decays.append(min(0.5, (2 + len(decays)) / (11 + len(decays))))
        for name, value in trainer.generator.state_dict().items():
            mean = decays[-1] * wanted[name] + (1 - decays[-1]) * value
            wanted[name] = value.clone() if name.rpartition(".")[2].startswith(("running", "num")) else mean
        return seen

    trainer.step = stepping  # type: ignore[method-assign]
    trainer.epoch(0, NullMonitor())
    assert decays[0] < decays[4] < decays[-1] == 0.5
    kept, trained = (getattr(trainer, name).state_dict() for name in ("kept", "generator"))
    for name, value in wanted.items():
        torch.testing.assert_close(kept[name], value)
    assert any(not torch.equal(kept[name], trained[name]) for name in kept)
    assert trainer.state_dict()["generator"].keys() == kept.keys()


def test_what_is_moved_is_looked_for_where_it_went(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector sees the moved image, its loss the moved boxes; a perturbation is measured where it is made."""
    trainer = make_trainer("equal", shift=20, resize=0.3, images_per_epoch=8, batch_size=8, jpeg="75")
    (batch,) = load(trainer.images, trainer.batches, batch_size=8, num_workers=0, device=trainer.device)
    schedule = {name: values[0] for name, values in trainer.schedules.items()}
    fed, way = trainer.feed(batch, 0)
    assert way.moves is not None
    stayed = [row[:3].tolist() == [1, 0, 0] for row in way.moves]
    assert 0 < sum(stayed) < 8
    for still, before, after in zip(stayed, batch.targets, fed.targets, strict=True):
        kept = before["boxes"].shape == after["boxes"].shape and torch.allclose(before["boxes"], after["boxes"])
        assert kept is still
    assert_same(vars(fed.targets), vars(move_targets(batch.targets, way.moves)))
    seen: dict[str, Any] = {}
    matched, arrives = trainer.detector.match_all_layers, trainer.detector.adapt

    def match(out: Any, targets: Any) -> Any:
        seen["targets"] = targets
        return matched(out, targets)

    def adapt(images: torch.Tensor, mask: Any) -> Any:
        seen["images"] = images.detach()
        return arrives(images, mask)

    perturbed = trainer.generator.perturb(batch.pixel_values).detach()
    monkeypatch.setattr(trainer.detector, "match_all_layers", match)
    monkeypatch.setattr(trainer.detector, "adapt", adapt)
    numbers = trainer.step(fed, way, schedule)
    assert seen["targets"] is fed.targets
    torch.testing.assert_close(seen["images"], move(code(perturbed, way.qualities), way.moves))
    assert float(numbers["delta_linf"]) <= trainer.generator.epsilon + 1e-6


def test_without_an_average_what_is_trained_is_kept(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    assert trainer.kept is trainer.generator


WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 7, 2**70, 0.5, float("nan"), float("inf"), "", "text", [], [1], {}, {"a": 1}, {1: torch.ones(1)},
    torch.zeros(()), torch.full((2, 3), float("nan")), torch.zeros(1, dtype=torch.complex64), torch.zeros(0),
    torch.sparse_coo_tensor([[0]], [1.0], (2,)), torch.empty(3, device="meta"),
)  # fmt: skip


def mutated(state: dict[str, Any], rng: random.Random) -> tuple[dict[str, Any], str]:
    """Change one entry, or remove it, or add one, somewhere; return what became of it and where."""
    state = copy.deepcopy(state)
    here: Any = state
    path: list[Any] = []
    while True:
        key = rng.choice(list(here) if isinstance(here, dict) else range(len(here)))
        path.append(key)
        inner = here[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.85:
            here = inner
            continue
        break
    change = rng.randrange(6)
    if change == 0:
        del here[key]
    elif change == 1 and isinstance(here, dict):
        here[rng.choice(["unknown", 99, -1, "step"])] = rng.choice(WRONG)
    elif change > 1 and isinstance(inner, torch.Tensor):
        here[key] = rng.choice([
            inner[None], inner.double(), inner.long(), inner * float("nan"), -inner.abs() - 1, inner.flatten()[:1],
            inner.to_sparse(), inner.float() * 1e38, inner > 0, inner.tolist(), inner.to("meta"),
        ])  # fmt: skip
    else:
        here[key] = rng.choice(WRONG)
    return state, f"{path}, change {change}"


@pytest.mark.parametrize(
    ("name", "small"), [("wgan_7th", {"widths": "8,8,8"}), ("moco_4th", {"queue_size": 8, "widths": "8,8,8"})]
)
def test_every_broken_state_resumes_or_is_refused_by_name(
    make_trainer: MakeTrainer, name: str, small: dict[str, Any], tmp_path: Path
) -> None:
    good, trainer = make_trainer(name, **small), make_trainer(name, **small)
    good.epoch(0, NullMonitor())
    state, rng, path = good.state_dict(), random.Random(5), tmp_path / "epoch_0000.pth"
    fresh = copy.deepcopy(trainer.state_dict()) | {"epoch": 0}
    refused = 0
    for number in range(MUTANTS):
        before = copy.deepcopy(trainer.state_dict())
        mutant, where = mutated(state, rng)
        torch.save(mutant, path)
        try:
            trainer.load_state_dict(read_checkpoint(path), str(path))
        except FaapError as error:
            said = str(error)
        except Exception as error:
            raise AssertionError(f"mutant {number}: {where}") from error
        else:
            with contextlib.suppress(FaapError):
                trainer.epoch(min(trainer.finished, 2), NullMonitor())
            trainer.load_state_dict(fresh)
            continue
        refused += 1
        assert said.startswith(f"{path}: "), where
        assert_same(trainer.state_dict(), before)
    assert refused > MUTANTS / 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epoch": -2}, "epoch: is -2; its recipe has the epochs 0 to 2"),
        ({"epoch": 3}, "epoch: is 3; its recipe has"),
        ({"epoch": 1.0}, "epoch: is 1.0; it should be a whole number"),
        ({"epoch": 10**30}, "epoch: is 1000000"),
        ({"generator": {"w": 1}}, "generator: w: is 1; it should be a Tensor"),
        ({"generator": {"w": torch.zeros(1)}}, "generator: the weights do not fit: .* w .1 in all. not of this model"),
        ({"optimizer": {"state": {}}}, "optimizer: has no entry 'param_groups'"),
        ({"recipe": []}, "recipe: is \\[\\]; it should be a mapping"),
        ({"recipe": {"epochs": 3, "lr_g": torch.zeros(2)}}, "recipe: lr_g: is tensor"),
        ({"data_sha256": 5}, "data_sha256: is 5; it should be text"),
        ({"data_sha256": "5"}, "trained on other data"),
        ({"detector_file_sha256": None}, "detector_file_sha256: is None; it should be text"),
        ({"detector_file_sha256": ""}, "trained against another detector"),
    ],
)
def test_what_is_wrong_in_a_state_is_said(make_trainer: MakeTrainer, change: dict[str, Any], said: str) -> None:
    trainer = make_trainer()
    with pytest.raises(FaapError, match=f"^run/epoch.pth: {said}"):
        trainer.load_state_dict({**trainer.state_dict(), "epoch": 0} | change, "run/epoch.pth")


def test_moments_of_wrong_shape_and_weights_that_are_not_finite_are_refused(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    trainer.epoch(0, NullMonitor())
    state = copy.deepcopy(trainer.state_dict())
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
    with pytest.raises(
        FaapError, match=r"file: optimizer: state: 0: the weights do not fit: exp_avg .* of the wrong shape"
    ):
        trainer.load_state_dict(state, "file")
    state = copy.deepcopy(trainer.state_dict())
    name = next(iter(state["generator"]))
    state["generator"][name][0] = float("nan")
    with pytest.raises(FaapError, match=f"file: generator: {name} is NaN"):
        trainer.load_state_dict(state, "file")


def test_a_state_is_what_is_described(make_trainer: MakeTrainer) -> None:
    """These names are in the files of every run there is."""
    held = {name.rstrip("?") for name in CHECKPOINT}
    assert make_trainer(ema=0.9).state_dict().keys() | {"log", "sha256", "terms_sha256"} == held
    assert make_trainer().state_dict().keys() | {"log", "sha256", "trained", "terms_sha256"} == held
    assert {name for name in CHECKPOINT if not name.endswith("?")} == {
        "epoch", "generator", "generator_config", "objective", "optimizer", "recipe", "detector_file_sha256",
        "data_sha256",
    }  # fmt: skip
    assert held - set(CHECKPOINT) == {"trained", "running", "averaged", "log", "sha256", "terms_sha256"}


# what is not finite, and why


def broken(trainer: Trainer, part: str) -> FaapError:
    with torch.no_grad():
        parameters: list[torch.Tensor] = list(getattr(trainer, part).parameters())
        kept = parameters[0].clone()
        parameters[0][:] = float("nan")
    with pytest.raises(FaapError, match="not finite in epoch 0") as caught:
        trainer.epoch(0, NullMonitor())
    with torch.no_grad():
        parameters[0][:] = kept
    return caught.value


def test_a_loss_that_is_not_finite_names_who_is_to_blame(make_trainer: MakeTrainer) -> None:
    detector = str(broken(make_trainer(), "detector"))
    assert "weights of the detector" in detector
    assert "--lr_g" not in detector
    assert "weights of the detector" not in str(broken(make_trainer(), "generator"))


def test_the_learning_rate_is_blamed_only_after_a_step(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()
    real = trainer.objective.forward
    monkeypatch.setattr(trainer.objective, "forward", lambda *a: (real(*a)[0] * float("nan"), real(*a)[1]))
    with pytest.raises(
        FaapError, match=r"not finite in epoch 0 \(infonce .* from the first step on, so that no learning"
    ):
        trainer.epoch(0, NullMonitor())
    monkeypatch.undo()
    trainer = make_trainer()
    trainer.epoch(0, NullMonitor())
    real = trainer.objective.forward
    monkeypatch.setattr(trainer.objective, "forward", lambda *a: (real(*a)[0] * float("nan"), real(*a)[1]))
    with pytest.raises(FaapError, match=r"not finite in epoch 1 .*; resume an earlier checkpoint with a lower --lr_g"):
        trainer.epoch(1, NullMonitor())


# processes that load images


def images_whose_reading(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    real = FaapImages.__getitem__

    def reading(self: FaapImages, key: Any) -> Any:
        if get_worker_info() is not None:
            act()
        return real(self, key)

    monkeypatch.setattr(FaapImages, "__getitem__", reading)


def test_a_worker_that_is_killed_is_an_error(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    images_whose_reading(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(FaapError, match=r"DataLoader worker .*\nA process .* want of memory.* fewer --num_workers"):
        make_trainer(num_workers=1).epoch(0, NullMonitor())


def test_a_worker_that_dies_during_a_step_is_an_error(make_trainer: MakeTrainer) -> None:
    """Torch tells the end of a worker wherever the main process is just then."""
    trainer = make_trainer(num_workers=1, images_per_epoch=8)

    def step(*_: Any) -> dict[str, float]:
        raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Bus error. Possibly out of shared memory.")

    trainer.step = step  # type: ignore[method-assign]
    with pytest.raises(FaapError, match=r"pid 12\) is killed .*\nA process .* want of memory.* more shared memory"):
        trainer.epoch(0, NullMonitor())


def test_workers_get_the_files_they_need_or_an_error_says_so(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch itself may wait for ever for a tensor that a worker could not open a file for."""
    limits, given = (64, 4096), []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: given.append(limits))
    images, how = make_trainer().images, {"batch_size": 8, "device": torch.device("cpu")}
    load(images, [], num_workers=4, **how)
    assert given == [(432, 4096)]
    load(images, [], num_workers=0, **how)  # no worker, no need
    limits = (1024, resource.RLIM_INFINITY)
    load(images, [], num_workers=4, **how)
    assert len(given) == 1
    limits = (64, 400)
    with pytest.raises(FaapError, match=r"4 workers may have 432 files open .* and 400 are allowed: use fewer --num_w"):
        load(images, [], num_workers=4, **how)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            BlockingIOError(11, "Resource temporarily unavailable"),
            "cannot start or has ended: give it more memory, or use fewer --num_workers",
        ),
        (
            OSError(12, "Cannot allocate memory"),
            "cannot start or has ended: give it more memory, or use fewer --num_workers",
        ),
        (ConnectionResetError(104, "Connection reset by peer"), "cannot start or has ended"),
        (EOFError(), "EOFError\nA process that loads images"),
        (RuntimeError("unable to write to file </torch_1>: No space left on device (28), shared memory"), "--shm-size"),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
    ],
)
def test_what_hinders_workers_is_an_error(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fails(self: object) -> None:
        raise error

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", fails)
    with pytest.raises(FaapError, match=said):
        make_trainer().epoch(0, NullMonitor())


def test_other_errors_keep_their_kind(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer()
    for error in (OSError(28, "No space left on device"), RuntimeError("of a step")):
        monkeypatch.setattr(trainer, "step", lambda *_, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(type(error), match=str(error.args[-1])):
            trainer.epoch(0, NullMonitor())


@pytest.mark.parametrize("arch", ["light", "unet"])
def test_muon_moves_every_matrix_but_the_one_that_comes_out_last(make_trainer: MakeTrainer, arch: str) -> None:
    trainer = make_trainer("contrastive_1st", arch=arch, optimizer="muon", widths="8,8,8")
    moved = {id(each) for alike in trainer.optimizer.matrices for each in alike}  # type: ignore[attr-defined]
    assert trainer.objective.head is not None
    named = [*trainer.generator.named_parameters(), *trainer.objective.head.named_parameters()]
    left = [name for name, each in named if each.ndim > 1 and id(each) not in moved]
    assert left == [next(name for name, each in named if each.shape[0] in (3, 51) and each.ndim == 4)]
    assert not any(each.ndim < 2 and id(each) in moved for _, each in named)


def test_a_state_of_another_optimizer_is_refused_by_its_name(make_trainer: MakeTrainer) -> None:
    first = make_trainer("infonce_4th")
    first.epoch(0, NullMonitor())
    make_trainer("infonce_4th", optimizer="adam").load_state_dict(first.state_dict())
    with pytest.raises(FaapError, match="state: trained with --optimizer adamw; muon cannot"):
        make_trainer("infonce_4th", optimizer="muon").load_state_dict(first.state_dict())


# steps that are not finite


class Steps(NullMonitor):
    """Keeps what it is told; asks for a state after some steps."""

    def __init__(self, *due: int, stop_after: int = 0) -> None:
        self.stopping = Stopping()
        self.numbers: list[int] = []
        self.states: list[dict[str, Any]] = []
        self.wanted, self.stop_after = due, stop_after

    def step(self, number: int, values: Any) -> None:
        self.numbers.append(number)

    def due(self, step: int) -> bool:
        if step == self.stop_after - 1:  # while the one after it is under way
            self.stopping.signum = signal.SIGTERM
        return step in self.wanted

    def save(self, state: Any) -> None:
        self.states.append(copy.deepcopy(state))


def poison(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, *numbers: int, part: str = "loss") -> list[int]:
    """Let these steps of the first epoch go wrong; return which steps were made."""
    real, made = trainer.step, list[int]()

    def step(batch: Any, *rest: Any) -> Any:
        number = trainer_batches(trainer).index(batch.image_ids.tolist())
        made.append(number)
        if number in numbers and not trainer.finished:
            batch = replace(batch, images=batch.images.float() * float("nan"))
        return real(batch, *rest)

    monkeypatch.setattr(trainer, "step", step)
    return made


def trainer_batches(trainer: Trainer) -> list[list[int]]:
    trainer.batches.set_epoch(trainer.finished)
    records = trainer.images.split.records
    return [[records[index].image_id for _, index in batch] for batch in trainer.batches]


LONG = {"images_per_epoch": 16, "batch_size": 2, "lr_g": 1e-3}


@pytest.mark.parametrize(
    ("name", "variant"),
    [("infonce_4th", {}), ("moco_4th", {"queue_size": 8}), ("wgan_7th", {}), ("infonce_3rd_fix2", {}), ("equal", {})],
    ids=str,
)
def test_a_step_that_is_not_finite_leaves_no_trace(
    make_trainer: MakeTrainer, name: str, variant: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if its batch had never been there: the same as a trainer that is told beforehand to leave it out."""
    monkeypatch.setattr("faap.training.trainer.UNREAD", 4)
    poisoned, told = make_trainer(name, **LONG | variant), make_trainer(name, **LONG | variant)
    images = trainer_batches(poisoned)[5]
    made = poison(poisoned, monkeypatch, 5)
    log = Steps()
    row = poisoned.epoch(0, log)
    told.running["skipped"] = [{"step": 5, "images": images}]
    assert told.epoch(0, NullMonitor()) == row
    names = {record.image_id: record.path.name for record in poisoned.images.split.records}
    assert row["skipped"] == [{"step": 5, "images": [names[image] for image in images]}]
    assert row["images"] == 14
    assert log.numbers == [0, 1, 2, 3, 4, 6, 7]
    assert made == [0, 1, 2, 3, 4, 5, 6, 7, 4, 6, 7]
    for part in ("kept", "objective", "optimizer"):
        mine, theirs = (getattr(each, part).state_dict() for each in (poisoned, told))
        assert_same(mine, theirs)
        assert all(torch.isfinite(value).all() for value in mine.values() if isinstance(value, torch.Tensor))
    assert poisoned.epoch(1, NullMonitor()).keys() == row.keys() - {"skipped"}


def test_so_many_in_a_row_end_the_training(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(**LONG, max_skipped=3)
    poison(trainer, monkeypatch, 1, 2, 4, 5)
    assert [each["step"] for each in trainer.epoch(0, NullMonitor())["skipped"]] == [1, 2, 4, 5]
    trainer = make_trainer(**LONG, max_skipped=3)
    poison(trainer, monkeypatch, 1, 3, 4, 5)
    with pytest.raises(FaapError, match=r"not finite in epoch 0 .*; start again with a lower --lr_g"):
        trainer.epoch(0, NullMonitor())
    trainer = make_trainer(**LONG, max_skipped=3)
    made = poison(trainer, monkeypatch, 0, 1, 2)
    with pytest.raises(FaapError, match="from the first step on, so that no learning rate can be the reason"):
        trainer.epoch(0, NullMonitor())
    assert max(made) == 7  # numbers are read at the end of this short epoch
    trainer = make_trainer(**LONG, max_skipped=1)
    poison(trainer, monkeypatch, 6)
    with pytest.raises(FaapError, match="not finite"):
        trainer.epoch(0, NullMonitor())


# within an epoch


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("infonce_4th", {}),
        ("moco_4th", {"queue_size": 8}),
        ("wgan_7th", {}),
        ("contrastive_1st", {"proj_dropout": 0.3}),
        ("infonce_3rd", {}),
        ("equal", {"aug_strength": "weak"}),
    ],
    ids=str,
)
def test_a_trainer_goes_on_exactly_from_a_state_within_an_epoch(
    make_trainer: MakeTrainer, name: str, variant: dict[str, Any], tmp_path: Path
) -> None:
    whole, log = make_trainer(name, **LONG | variant), Steps(1, 3, 8)
    row = whole.epoch(0, log)
    assert [state["running"]["step"] for state in log.states] == [1, 3, 8]
    for number, state in enumerate(log.states):
        save_checkpoint(tmp_path / "within.pth", state)
        later, rest = make_trainer(name, **LONG | variant), Steps()
        later.load_state_dict(read_checkpoint(tmp_path / "within.pth"))
        assert later.finished == 0
        assert later.epoch(0, rest) == row
        assert rest.numbers == [*range((1, 3, 8)[number], 8)]
        assert_same(later.kept.state_dict(), whole.kept.state_dict())
        assert_same(later.optimizer.state_dict(), whole.optimizer.state_dict())
        assert_same(later.objective.state_dict(), whole.objective.state_dict())


def test_a_trainer_that_is_asked_to_stop_makes_its_step_and_keeps_its_state(make_trainer: MakeTrainer) -> None:
    whole, other = make_trainer(**LONG), make_trainer(**LONG)
    row = whole.epoch(0, NullMonitor())
    log = Steps(stop_after=3)
    with pytest.raises(Stop) as stopped:
        other.epoch(0, log)
    assert stopped.value.signum == signal.SIGTERM
    assert log.states[-1]["running"]["step"] == 3
    later = make_trainer(**LONG)
    later.load_state_dict(log.states[-1])
    assert later.epoch(0, NullMonitor()) == row


def test_no_flipped_bit_gives_another_state(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer, path, rng = make_trainer(widths="8,8,8"), tmp_path / "state.pth", random.Random(0)
    trainer.epoch(0, NullMonitor())
    save_checkpoint(path, trainer.state_dict())
    good, whole, refused = path.read_bytes(), read_checkpoint(path), 0
    for _ in range(150):
        content, bit = bytearray(good), rng.randrange(8 * len(good))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            assert_same(read_checkpoint(path), whole)
        except FaapError:
            refused += 1
    assert refused > 100
    torch.save(trainer.state_dict(), path)  # without a digest, as an earlier faap wrote it
    assert_same(read_checkpoint(path), whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": 2}, "running: step is 2, of 1 in an epoch"),
        ({"step": -1}, "running: step is -1, of 1 in an epoch"),
        ({"random": {"cpu": torch.zeros(3, dtype=torch.uint8)}}, "running: random: cpu is no state of a generator"),
        ({"random": {"cpu": torch.zeros(5056)}}, "running: random: cpu is no state of a generator"),
        ({"skipped": [3]}, "running: skipped.0.: is 3; it should be a mapping"),
    ],
    ids=["step past the end", "step below 0", "short random state", "random state of another type", "skipped"],
)
def test_what_is_wrong_within_an_epoch_is_said(make_trainer: MakeTrainer, change: dict[str, Any], said: str) -> None:
    trainer = make_trainer()
    state = trainer.state_dict()
    with pytest.raises(FaapError, match=f"^run/within.pth: {said}"):
        trainer.load_state_dict(state | {"running": state["running"] | change}, "run/within.pth")
