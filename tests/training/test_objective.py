"""The six recipes as objectives: what they sum, log, move and remember.

The terms' own formulas are held to independent ones in tests/objectives; here it is which of them a recipe sums, with
which weights, features and scores, as docs/recipes.md has it.
"""

import copy
import io
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import faap.config
from faap.config import Recipe, load_recipe
from faap.data.images import Preprocessing
from faap.detectors import DetectorOutput, FrozenDetector
from faap.errors import FaapError
from faap.objectives import (
    View,
    adversarial_confusion,
    cross_group_similarity,
    infonce,
    mean_alignment,
    momentum_infonce,
    one_sided_wasserstein,
    pair_log_weights,
    query_weights,
    reference_log_weights,
    score_distribution,
    score_gap_penalty,
    variance_alignment,
)
from faap.training.objective import Objective

NAMES = ("contrastive_1st", "infonce_3rd", "infonce_3rd_fix2", "infonce_4th", "wgan_7th", "moco_4th")
ABLATIONS = Path(faap.config.__file__).parent / "recipes" / "ablations" / "infonce_4th"
GROUPS = ("female", "male", "male", "female", "male", "female", "male")
DIM, QUERIES = 16, 12
SCHEDULE = {"epsilon": 0.07, "beta": 0.37, "contrastive_weight": 0.6, "learning_rate": 1e-4}
COMMON = {"detection", "total", "sim_f2m", "sim_f2f", "score_gap", "n_f", "n_m"}
Pair = tuple[Tensor, Tensor]


def detector(activation: str = "softmax") -> FrozenDetector:
    return FrozenDetector(
        nn.Identity(),
        name="stub",
        labels={0: "person", 1: "bicycle"},
        num_queries=QUERIES,
        feature_dim=DIM,
        preprocessing=Preprocessing(shortest_edge=None, longest_edge=None),
        activation=activation,  # type: ignore[arg-type]
        file_sha256="",
    )


class Images:
    """What a detector says about a batch, with leaves that gradients reach, and what is in it."""

    def __init__(self, seed: int = 0, groups: tuple[str, ...] = GROUPS, activation: str = "softmax") -> None:
        random = torch.Generator().manual_seed(seed)
        batch, classes = len(groups), 3 if activation == "softmax" else 2

        def boxes(*shape: int) -> Tensor:
            return 0.3 + 0.4 * torch.rand(*shape, 4, generator=random)

        self.groups = groups
        self.features = torch.randn(batch, QUERIES, DIM, generator=random).requires_grad_()
        # the detector is surer of what it finds in the reference group's images
        surer = torch.tensor([-1.5 if group in ("female", "a") else 1.5 for group in groups])[:, None, None]
        self.logits = torch.randn(batch, QUERIES, classes, generator=random)
        self.logits[..., :2] += surer
        self.logits.requires_grad_()
        self.boxes = boxes(batch, QUERIES).requires_grad_()
        earlier = torch.randn(batch, QUERIES, classes, generator=random), boxes(batch, QUERIES)
        self.out = DetectorOutput(self.logits, self.boxes, self.features, [earlier])
        self.targets = [
            {"labels": torch.randint(2, (count,), generator=random), "boxes": boxes(count)}
            for count in [(2, 3, 0, 1)[i % 4] for i in range(batch)]
        ]
        self.detector = detector(activation)

    def of_group(self, values: Tensor, group: str) -> Tensor:
        return torch.stack([values[i] for i, name in enumerate(self.groups) if name == group])

    def inputs(self, objective: Objective) -> dict[str, list[Tensor]]:
        head = [] if objective.head is None else list(objective.head.parameters())
        return {"features": [self.features], "logits": [self.logits], "boxes": [self.boxes], "head": head}

    def moved(self, value: Tensor, objective: Objective) -> set[str]:
        """Name the inputs that a gradient of the value reaches; features and logits by group."""
        found = set()
        for name, inputs in self.inputs(objective).items():
            gradients = [None] * len(inputs)
            if value.requires_grad and inputs:
                gradients = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
            for gradient in gradients:
                if gradient is None:
                    continue
                assert gradient.isfinite().all()
                if name in ("features", "logits"):
                    for letter, group in (("F", "female"), ("M", "male")):
                        found |= {f"{name} {letter}"} if self.of_group(gradient, group).any() else set()
                elif gradient.any():
                    found.add(name)
        return found


class Parts:
    """The quantities of the spec's notation, image by image; each as (female, male)."""

    def __init__(self, images: Images, objective: Objective, top_k: int = 10) -> None:
        softmax = images.detector.activation == "softmax"
        probabilities = images.logits.softmax(-1)[..., :-1] if softmax else images.logits.sigmoid()
        pooled = images.features.sum(1) / QUERIES
        z = torch.stack([x / x.norm() for x in pooled]) if objective.head is None else objective.head(pooled)
        top = (image.max(-1).values.sort(descending=True).values[:top_k] for image in probabilities)
        s = torch.stack([confidences.mean() for confidences in top])
        matches = images.detector.match_all_layers(images.out, images.targets)[-1]
        m = [
            [p[q, target["labels"][t]] for q, t in zip(*pairs, strict=True)]
            for p, target, pairs in zip(probabilities, images.targets, matches, strict=True)
        ]
        self.pooled, self.z, self.s = (
            (images.of_group(x, "female"), images.of_group(x, "male")) for x in (pooled, z, s)
        )
        self.m = tuple(
            torch.stack(
                [score for scores, group in zip(m, images.groups, strict=True) for score in scores if group == own]
            )
            for own in ("female", "male")
        )
        self.detection = images.detector.loss(images.out, images.targets)


class Memory:
    """Momentum contrast's queue and centroid, and the discriminator, by hand."""

    def __init__(self, objective: Objective, steps: int = 4, learning_rate: float = 1e-4) -> None:
        self.queue: list[Tensor] = []
        self.centroid = torch.zeros(128)
        self.steps = steps
        if "adversarial" in objective.states:
            self.rival = copy.deepcopy(objective.states["adversarial"].discriminator)
            self.optimizer = torch.optim.Adam(self.rival.parameters(), lr=learning_rate)

    def momentum(self, z: Pair, s: Pair) -> Tensor:
        self.queue = [*self.queue, *z[0].detach()][-2048:]
        mixed = 0.99 * self.centroid + 0.01 * z[1].detach().mean(0)
        self.centroid = mixed / mixed.norm()
        weights = query_weights(*s, 1.0)
        return momentum_infonce(z[0], self.centroid, torch.stack(self.queue), 0.07, sample_weights=weights)

    def adversarial(self, pooled: Pair, entropy_weight: float = 0.2, share: float = 0.5) -> Tensor:
        features = torch.cat(pooled).detach()
        labels = torch.tensor([1] * len(pooled[0]) + [0] * len(pooled[1]))
        for _ in range(self.steps):
            self.optimizer.zero_grad()
            F.cross_entropy(self.rival(features), labels).backward()
            self.optimizer.step()
        female, male = (
            adversarial_confusion(self.rival(x), label, entropy_weight=entropy_weight)
            for x, label in zip(pooled, (1, 0), strict=True)
        )
        return female + share * male


# The terms of each recipe under the names they are logged by: literals of the spec, not the recipe's fields.
TERMS: dict[str, Callable[[Parts, Memory], dict[str, Tensor]]] = {
    "contrastive_1st": lambda p, _: {
        "similarity": cross_group_similarity(*p.z, 0.1),
        "alignment": mean_alignment(*p.pooled, detach_reference=False),
        "variance": variance_alignment(*p.pooled),
        "score_distribution": score_distribution(*p.m),
    },
    "infonce_3rd": lambda p, _: {
        "infonce": infonce(*p.z, 0.07, detach_reference=False, log_weights=pair_log_weights(*p.s, 1.0)),
        "infonce_m2f": infonce(p.z[1], p.z[0], 0.07, detach_reference=False),
        "wasserstein": one_sided_wasserstein(*p.s),
    },
    "infonce_3rd_fix2": lambda p, _: {
        "infonce": infonce(
            *p.z, 0.07, detach_reference=True, log_weights=reference_log_weights(p.s[1]), weights_in="numerator"
        ),
        "wasserstein": one_sided_wasserstein(*p.s),
        "score_gap_penalty": score_gap_penalty(*p.s),
    },
    "infonce_4th": lambda p, _: {
        "infonce": infonce(*p.z, 0.1, detach_reference=True),
        "alignment": mean_alignment(*p.pooled, detach_reference=True),
        "wasserstein": one_sided_wasserstein(*p.s),
    },
    "wgan_7th": lambda p, memory: {
        "adversarial": memory.adversarial(p.pooled),
        "wasserstein": one_sided_wasserstein(*p.m),
    },
    "moco_4th": lambda p, memory: {
        "momentum": memory.momentum(p.z, p.s),
        "infonce_m2f": infonce(p.z[1], p.z[0], 0.07, detach_reference=False),
        "wasserstein": one_sided_wasserstein(*p.s),
    },
}

# "The table", total loss; w is the schedule's contrastive weight without β's term
TOTALS: dict[str, Callable[[dict[str, Tensor], float], Tensor]] = {
    "contrastive_1st": lambda t, w: (
        1.0 * w * t["similarity"] + 0.5 * t["alignment"] + 0.1 * t["variance"] + 0.3 * t["score_distribution"]
    ),
    "infonce_3rd": lambda t, w: w * (1.5 * t["infonce"] + 0.5 * t["infonce_m2f"]) + 0.2 * t["wasserstein"],
    "infonce_3rd_fix2": lambda t, w: w * t["infonce"] + 0.2 * t["wasserstein"] + 0.5 * t["score_gap_penalty"],
    "infonce_4th": lambda t, w: w * t["infonce"] + 0.3 * t["alignment"] + 0.2 * t["wasserstein"],
    "wgan_7th": lambda t, w: 2.0 * t["adversarial"] + 0.2 * t["wasserstein"],
    "moco_4th": lambda t, w: w * (1.5 * t["momentum"] + 0.5 * t["infonce_m2f"]) + 0.2 * t["wasserstein"],
}

# what each term moves; detection moves the same in every recipe
MOVED: dict[str, dict[str, set[str]]] = {
    "contrastive_1st": {
        "similarity": {"features F", "features M", "head"},
        "alignment": {"features F", "features M"},
        "variance": {"features F", "features M"},
        "score_distribution": {"logits F"},
    },
    "infonce_3rd": {
        "infonce": {"features F", "features M", "head"},
        "infonce_m2f": {"features F", "features M", "head"},
        "wasserstein": {"logits F"},
    },
    "infonce_3rd_fix2": {"infonce": {"features F", "head"}, "wasserstein": {"logits F"}, "score_gap_penalty": set()},
    "infonce_4th": {"infonce": {"features F", "head"}, "alignment": {"features F"}, "wasserstein": {"logits F"}},
    "wgan_7th": {"adversarial": {"features F", "features M"}, "wasserstein": {"logits F"}},
    "moco_4th": {
        "momentum": {"features F", "head"},
        "infonce_m2f": {"features F", "features M", "head"},
        "wasserstein": {"logits F"},
    },
}

MONITORED = {"wgan_7th": {"discriminator"}, "moco_4th": {"queue"}}


def build(recipe: Recipe | str, **overrides: Any) -> Objective:
    """An objective in training mode, but for the head's dropout."""
    torch.manual_seed(1)
    objective = Objective(load_recipe(recipe, **overrides) if isinstance(recipe, str) else recipe, DIM)
    objective.train()
    if objective.head is not None:
        objective.head.eval()
    return objective


def view_of(objective: Objective, images: Images) -> View:
    known = images.detector.match_all_layers(images.out, images.targets)
    return objective.view(images.detector, (images.out, images.targets, images.groups, known))


def run(
    objective: Objective, images: Images, schedule: dict[str, float] = SCHEDULE
) -> tuple[Tensor, dict[str, Tensor]]:
    total, seen = objective(view_of(objective, images), schedule)
    assert isinstance(total, Tensor)
    return total, seen


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_total_and_its_gradient_are_the_weighted_sum_of_the_spec(name: str, activation: str) -> None:
    objective = build(name)
    memory = Memory(objective)
    for seed in range(3):  # the memories matter from the second batch on
        images = Images(seed, activation=activation)
        total, seen = run(objective, images)
        parts = Parts(images, objective)
        terms = TERMS[name](parts, memory)
        expected = TOTALS[name](terms, 0.6) + 0.37 * parts.detection
        for term, value in (terms | {"detection": parts.detection, "total": expected}).items():
            assert seen[term].item() == pytest.approx(value.item(), rel=1e-5), term
        assert total.item() == pytest.approx(expected.item(), rel=1e-5)
        assert all(abs(value.item()) > 1e-4 for value in terms.values())
        leaves = list(itertools.chain(*images.inputs(objective).values()))
        gradients, wanted = (torch.autograd.grad(value, leaves, allow_unused=True) for value in (total, expected))
        for mine, other in zip(gradients, wanted, strict=True):
            assert (mine is None) == (other is None)
            if mine is not None and other is not None:
                assert torch.allclose(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_names_that_are_logged(name: str) -> None:
    _, seen = run(build(name), Images())
    assert set(seen) == COMMON | set(MOVED[name]) | MONITORED.get(name, set())
    others = {"sim_f2m", "sim_f2f", "score_gap", "n_f", "n_m", "queue"}
    assert set(build(name).losses) == set(seen) - others
    assert all(value.ndim == 0 and not value.requires_grad for value in seen.values())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_monitored_beside_the_terms(name: str) -> None:
    objective, images = build(name), Images()
    parts = Parts(images, objective)
    _, seen = run(objective, images)
    (z_f, z_m), (s_f, s_m) = ((f.detach(), m.detach()) for f, m in (parts.z, parts.s))
    across = [float(f @ m) for f in z_f for m in z_m]
    within = [float(f @ other) for i, f in enumerate(z_f) for k, other in enumerate(z_f) if i != k]
    assert seen["sim_f2m"].item() == pytest.approx(sum(across) / 12, abs=1e-6)
    assert seen["sim_f2f"].item() == pytest.approx(sum(within) / 6, abs=1e-6)
    assert seen["score_gap"].item() == pytest.approx(sum(s_m.tolist()) / 4 - sum(s_f.tolist()) / 3, abs=1e-6)
    assert (seen["n_f"].item(), seen["n_m"].item()) == (3, 4)


@pytest.mark.parametrize("name", NAMES)
def test_which_inputs_each_term_moves(name: str) -> None:
    objective, images = build(name), Images()
    run(objective, Images(5))  # a queue with more than the batch
    view = view_of(objective, images)
    found = {term.name: images.moved(term.value(view), objective) for term in objective.terms}
    assert found == MOVED[name] | {"detection": {"logits F", "logits M", "boxes"}}


@pytest.mark.parametrize("name", NAMES)
def test_which_inputs_the_total_moves(name: str) -> None:
    objective, images = build(name), Images()
    total, _ = run(objective, images, SCHEDULE | {"beta": 0.0})
    fair = set().union(*MOVED[name].values())
    assert images.moved(total, objective) == fair
    total, _ = run(objective, images)
    assert images.moved(total, objective) == fair | {"logits F", "logits M", "boxes"}


def test_the_discriminator_learns_from_its_own_steps_alone() -> None:
    objective, images = build("wgan_7th"), Images()
    before = {name: value.clone() for name, value in objective.named_parameters()}
    assert before
    total, _ = run(objective, images)
    assert images.features.grad is None  # its steps reach no feature
    after = {name: (value.clone(), value.grad.clone()) for name, value in objective.named_parameters()}
    assert all(not torch.equal(before[name], value) for name, (value, _) in after.items())
    total.backward()
    for name, value in objective.named_parameters():
        assert torch.equal(value, after[name][0])
        assert torch.equal(value.grad, after[name][1])


def test_a_detector_that_lets_no_gradient_through_is_refused_and_not_trained_in_front_of() -> None:
    objective, images = build("infonce_4th"), Images()
    images.out = DetectorOutput(images.out.logits.detach(), images.out.boxes.detach(), images.out.features.detach())
    with pytest.raises(FaapError, match=r"stub gives outputs without a gradient .* torch\.no_grad"):
        view_of(objective, images)
    with torch.no_grad():
        run(objective, images)


@pytest.mark.parametrize("name", NAMES)
def test_in_evaluation_nothing_changes(name: str) -> None:
    objective = build(name)
    run(objective, Images(1))
    objective.eval()
    before = copy.deepcopy(objective.state_dict())
    first, again = (run(objective, Images(2))[0] for _ in range(2))
    assert first.item() == again.item()
    assert_same(objective.state_dict(), before)


@pytest.mark.parametrize(
    ("name", "setting", "term", "factor"),
    [
        ("contrastive_1st", "f2m_weight", "similarity", 0.6),
        ("contrastive_1st", "lambda_align", "alignment", 1.0),
        ("contrastive_1st", "lambda_var", "variance", 1.0),
        ("contrastive_1st", "lambda_score", "score_distribution", 1.0),
        ("infonce_3rd", "f2m_weight", "infonce", 0.6),
        ("infonce_3rd", "m2f_weight", "infonce_m2f", 0.6),
        ("infonce_3rd_fix2", "lambda_score_gap", "score_gap_penalty", 1.0),
        ("infonce_4th", "lambda_wass", "wasserstein", 1.0),
        ("wgan_7th", "lambda_adv", "adversarial", 1.0),
        ("wgan_7th", "lambda_wass", "wasserstein", 1.0),
        ("moco_4th", "f2m_weight", "momentum", 0.6),
        ("moco_4th", "m2f_weight", "infonce_m2f", 0.6),
    ],
)
def test_each_weight_is_a_setting(name: str, setting: str, term: str, factor: float) -> None:
    (lower, seen), (higher, _) = (run(build(name, **{setting: weight}), Images()) for weight in (1.0, 4.0))
    assert (higher - lower).item() == pytest.approx(3 * factor * seen[term].item(), rel=1e-4, abs=1e-5)
    _, without = run(build(name, **{setting: 0}), Images())
    assert set(seen) - set(without) - {"discriminator", "queue"} == {term}


@pytest.mark.parametrize(
    ("name", "settings", "term", "expected"),
    [
        ("contrastive_1st", {"temperature": 0.3}, "similarity", lambda p: cross_group_similarity(*p.z, 0.3)),
        ("infonce_4th", {"temperature": 0.3}, "infonce", lambda p: infonce(*p.z, 0.3)),
        ("infonce_3rd", {"temperature": 0.3}, "infonce_m2f", lambda p: infonce(p.z[1], p.z[0], 0.3)),
        (
            "infonce_3rd",
            {"temperature": 0.3, "score_alpha": 0.4},
            "infonce",
            lambda p: infonce(*p.z, 0.3, log_weights=pair_log_weights(*p.s, 0.4)),
        ),
        (
            "infonce_3rd_fix2",
            {"temperature": 0.3},
            "infonce",
            lambda p: infonce(*p.z, 0.3, log_weights=reference_log_weights(p.s[1]), weights_in="numerator"),
        ),
        ("infonce_4th", {"wass_scores": "matched"}, "wasserstein", lambda p: one_sided_wasserstein(*p.m)),
        ("wgan_7th", {"wass_scores": "image"}, "wasserstein", lambda p: one_sided_wasserstein(*p.s)),
        (
            "moco_4th",
            {"temperature": 0.3, "score_alpha": 0.4, "queue_size": 2},
            "momentum",
            lambda p: momentum_infonce(
                p.z[0], F.normalize(p.z[1].mean(0), dim=0), p.z[0][-2:], 0.3, sample_weights=query_weights(*p.s, 0.4)
            ),
        ),
        (
            "moco_4th",
            {"score_weighting": "none"},
            "momentum",
            lambda p: momentum_infonce(p.z[0], F.normalize(p.z[1].mean(0), dim=0), p.z[0], 0.07),
        ),
    ],
)
def test_settings_reach_their_term(
    name: str, settings: dict[str, Any], term: str, expected: Callable[[Parts], Tensor]
) -> None:
    objective, images = build(name, **settings), Images()
    _, seen = run(objective, images)
    assert seen[term].item() == pytest.approx(expected(Parts(images, objective)).item(), rel=1e-4)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_weight_of_no_object_is_a_setting_of_softmax_detectors(activation: str) -> None:
    """Against the detector that has this weight itself; where there is no such class, it changes nothing."""
    images = Images(activation=activation)
    own = images.detector.loss(images.out, images.targets)
    objective = build("equal", no_object_weight=0.7)
    view = view_of(objective, images)
    images.detector.criterion = replace(images.detector.criterion, no_object_weight=0.7)
    other = images.detector.loss(images.out, images.targets)
    assert float(view.detection) == float(other)
    assert (float(own) == float(other)) == (activation == "sigmoid")


def test_the_number_of_queries_in_a_score_is_a_setting() -> None:
    objective, images = build("infonce_4th", score_top_k=2), Images()
    _, seen = run(objective, images)
    parts = Parts(images, objective, top_k=2)
    assert seen["wasserstein"].item() == pytest.approx(one_sided_wasserstein(*parts.s).item(), rel=1e-5)


def test_the_settings_of_the_discriminator_reach_it() -> None:
    objective = build("wgan_7th", adv_steps=2, lr_d=3e-3, adv_entropy_weight=0.7, adv_reference_weight=0.9)
    memory, images = Memory(objective, steps=2, learning_rate=3e-3), Images()
    _, seen = run(objective, images)
    expected = memory.adversarial(Parts(images, objective).pooled, entropy_weight=0.7, share=0.9)
    assert seen["adversarial"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_share_of_the_centroid_that_stays_is_a_setting() -> None:
    objective = build("moco_4th", centroid_momentum=0.25)
    means = []
    for seed in range(2):
        images = Images(seed)
        run(objective, images)
        means.append(Parts(images, objective).z[1].detach().mean(0))
    expected = F.normalize(0.25 * F.normalize(means[0], dim=0) + 0.75 * means[1], dim=0)
    assert torch.allclose(objective.states["momentum"].centroid, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["contrastive_1st", "infonce_3rd", "infonce_3rd_fix2", "infonce_4th"])
@pytest.mark.parametrize("detached", [False, True])
def test_whether_males_move_is_a_setting_of_contrast_and_mean_alignment(name: str, detached: bool) -> None:
    objective, images = build(name, detach_reference=detached), Images()
    view = view_of(objective, images)
    for term in objective.terms:
        moved = images.moved(term.value(view), objective)
        if term.name in ("similarity", "infonce", "alignment"):
            assert ("features M" in moved) != detached
        elif term.name in ("infonce_m2f", "variance"):
            assert "features M" in moved


@pytest.mark.parametrize(
    ("ablation", "terms"),
    [
        ("no_contrastive", {"alignment", "wasserstein"}),
        ("no_mean_alignment", {"infonce", "wasserstein"}),
        ("no_wasserstein", {"infonce", "alignment"}),
        ("m2f", {"infonce", "infonce_m2f", "alignment", "wasserstein"}),
        ("adaptive_weighting", {"infonce", "alignment", "wasserstein"}),
    ],
)
def test_ablations_leave_out_and_add_terms(ablation: str, terms: set[str]) -> None:
    objective, images = build(load_recipe(ABLATIONS / f"{ablation}.yaml")), Images()
    total, seen = run(objective, images)
    assert set(seen) == COMMON | terms
    total.backward()
    assert images.features.grad is not None
    if ablation == "adaptive_weighting":
        parts = Parts(images, objective)
        expected = infonce(*parts.z, 0.1, log_weights=pair_log_weights(*parts.s, 1.0))
        assert seen["infonce"].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_groups_are_told_by_the_names_of_the_recipe(name: str) -> None:
    renamed = tuple({"female": "a", "male": "b"}[group] for group in GROUPS)
    first, second = build(name), build(name, anchor_group="a", reference_group="b")
    assert run(first, Images())[0].item() == run(second, Images(groups=renamed))[0].item()


@pytest.mark.parametrize("name", NAMES)
def test_small_and_equal_batches_are_finite(name: str) -> None:
    every = itertools.product(("F", "M", "FM", "FF", "MM", "FMM", "FFM", "FFMM"), (False, True), (False, True))
    for letters, same, with_targets in every:
        names = tuple({"F": "female", "M": "male"}[letter] for letter in letters)
        objective = build(name, queue_size=3)
        for seed in range(2):
            images = Images(seed, names)
            if same:
                for leaf in (images.features, images.logits, images.boxes):
                    leaf.data.copy_(leaf.data[:1, :1].expand_as(leaf))
            if not with_targets:
                images.targets = [{"labels": t["labels"][:0], "boxes": t["boxes"][:0]} for t in images.targets]
            total, seen = run(objective, images)
            total.backward()
            case = (letters, same, with_targets, seed)
            assert all(seen[term.name].isfinite() for term in objective.terms), case
            assert total.isfinite(), case
            for leaf in itertools.chain(*images.inputs(objective).values()):
                assert leaf.grad is None or leaf.grad.isfinite().all(), case
            assert images.logits.grad is not None
        state = itertools.chain(objective.parameters(), objective.buffers())
        assert all(value.isfinite().all() for value in state), (letters, same, with_targets)


class Training:
    """An objective with a generator of 16 numbers, which its gradient trains together with the head."""

    def __init__(self, name: str, seed: int) -> None:
        torch.manual_seed(seed)
        # 3 anchor images a batch overflow the queue in the middle of the third one
        self.objective = Objective(load_recipe(name, queue_size=7, lr_d=1e-2), DIM).train()
        self.shift = nn.Parameter(torch.zeros(DIM))
        head = self.objective.head
        self.parameters = [self.shift, *([] if head is None else head.parameters())]

    def steps(self, first: int, last: int) -> list[dict[str, float]]:
        rows = []
        for number in range(first, last):
            images = Images(number)
            images.out.features = images.features.detach() + self.shift
            total, seen = run(self.objective, images)
            gradients = torch.autograd.grad(total, self.parameters)
            with torch.no_grad():
                for parameter, gradient in zip(self.parameters, gradients, strict=True):
                    parameter -= 0.05 * gradient
            rows.append({key: value.item() for key, value in seen.items()})
        return rows

    def state(self) -> dict[str, Any]:
        return {"objective": self.objective.state_dict(), "shift": self.shift.detach()}


def assert_same(first: Any, second: Any) -> None:
    """Equal to the bit, through dicts and lists."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert torch.equal(first, second) if isinstance(first, Tensor) else first == second


@pytest.mark.parametrize("name", ["moco_4th", "wgan_7th"])
@pytest.mark.parametrize("interrupted", [1, 2, 3])
def test_it_goes_on_from_a_file_to_the_bit(name: str, interrupted: int) -> None:
    whole, first, second = Training(name, 0), Training(name, 0), Training(name, 9)
    rows = whole.steps(0, 6)
    first.steps(0, interrupted)
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    content = torch.load(file, weights_only=True)
    second.objective.load_state_dict(content["objective"])
    second.shift.data.copy_(content["shift"])
    assert second.steps(interrupted, 6) == rows[interrupted:]
    assert_same(second.state(), whole.state())
    assert Training(name, 0).steps(interrupted, 6) != rows[interrupted:]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("moco_4th", {"states.momentum.queue", "states.momentum.pushed", "states.momentum.centroid"}),
        ("wgan_7th", {"states.adversarial.discriminator.1.weight", "states.adversarial._extra_state"}),
    ],
)
def test_the_state_of_the_terms_is_the_objectives(name: str, kept: set[str]) -> None:
    assert kept <= set(build(name).state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_the_head_is_the_recipes(name: str) -> None:
    head = Objective(load_recipe(name), DIM).head
    kinds = [] if head is None else [type(layer).__name__ for layer in head.layers]
    assert kinds == {
        "contrastive_1st": ["LayerNorm", "Linear", "ReLU", "Linear"],
        "infonce_4th": ["LayerNorm", "Linear", "ReLU", "Dropout", "Linear"],
        "wgan_7th": [],
    }.get(name, ["Linear", "ReLU", "Linear"])


def test_a_resumed_discriminator_has_the_learning_rate_of_the_run_that_goes_on() -> None:
    first = Objective(load_recipe("wgan_7th", lr_d=1e-4), 16)
    first.states["adversarial"](torch.randn(3, 16), torch.randn(3, 16))
    second = Objective(load_recipe("wgan_7th", lr_d=1e-2), 16)
    second.load_state_dict(first.state_dict())
    assert second.states["adversarial"].optimizer.param_groups[0]["lr"] == 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_a_detector_in_half_precision_has_its_losses_in_float32(name: str) -> None:
    torch.manual_seed(0)
    objective = Objective(load_recipe(name), DIM).eval()
    images = Images()
    layers = [tensor.bfloat16() for tensor in (images.logits, images.boxes, images.features, *images.out.aux[0])]
    results = []
    for logits, boxes, features, *earlier in (layers, [tensor.float() for tensor in layers]):
        out = DetectorOutput(logits, boxes, features, [(earlier[0], earlier[1])])
        state = copy.deepcopy(objective)
        images.out = out
        results.append(state(view_of(state, images), SCHEDULE))
    (half, seen), (full, expected) = results
    assert half.dtype == torch.float32
    assert torch.equal(half, full)
    assert all(torch.equal(value, expected[key]) or value.isnan() for key, value in seen.items())
