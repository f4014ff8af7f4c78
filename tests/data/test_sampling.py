"""Batches are half and half, cover everything, waste little padding, and depend on (seed, epoch) alone."""

from collections import Counter
from itertools import chain, count, islice, permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faap.data import FaapImages, GroupBalancedBatches, Preprocessing, Record, Split
from faap.errors import FaapError


def epoch_of(batches, epoch):
    batches.set_epoch(epoch)
    return list(batches)


@settings(max_examples=60, deadline=None)
@given(
    anchors=st.integers(1, 13),
    references=st.integers(1, 13),
    half=st.integers(1, 5),
    seed=st.integers(0, 99),
    images=st.integers(0, 40),
)
def test_every_batch_is_half_and_half_and_every_image_has_its_turn(anchors, references, half, seed, images):
    first, second = list(range(anchors)), list(range(100, 100 + references))
    batches = GroupBalancedBatches(first, second, 2 * half, seed, images)
    each = (images + 1) // 2 or max(anchors, references)
    seen: Counter[int] = Counter()
    for epoch in range(4):
        produced = epoch_of(batches, epoch)
        assert len(produced) == len(batches)
        assert sum(len(batch) for batch in produced) == 2 * each
        for batch in produced:
            assert all(number == epoch for number, _ in batch)
            indices = [index for _, index in batch]
            assert len(indices) <= 2 * half
            assert sum(index < 100 for index in indices) * 2 == len(indices)
            seen.update(indices)
        # No image of a group is ever ahead of another by more than one turn.
        for group in (first, second):
            turns = [seen[index] for index in group]
            assert max(turns) - min(turns) <= 1
            assert sum(turns) == each * (epoch + 1)


def test_an_epoch_is_a_function_of_seed_and_epoch():
    def fresh(seed=3):
        return GroupBalancedBatches(range(9), range(20, 26), 4, seed)

    wanted = epoch_of(fresh(), 2)
    used = fresh()
    for epoch in (0, 1, 5):
        epoch_of(used, epoch)
    assert epoch_of(used, 2) == wanted
    assert epoch_of(fresh(4), 2) != wanted
    assert [index for batch in epoch_of(fresh(), 1) for _, index in batch] != [i for b in wanted for _, i in b]


def test_each_pass_has_a_new_order():
    batches = GroupBalancedBatches(range(5), range(100, 120), 2, 0)
    anchors = [batch[0][1] for batch in epoch_of(batches, 0)]
    passes = [tuple(anchors[start : start + 5]) for start in range(0, 20, 5)]
    assert all(sorted(order) == list(range(5)) for order in passes)
    assert len(set(passes)) > 1


@pytest.mark.parametrize("batch_size", [0, 1, 3, -2])
def test_a_batch_that_cannot_be_halved_is_refused(batch_size):
    with pytest.raises(FaapError, match=f"batch_size is {batch_size}; it must be even and at least 2"):
        GroupBalancedBatches([0], [1], batch_size, 0)


def test_other_impossible_requests_are_refused():
    with pytest.raises(FaapError, match="the reference group has no image"):
        GroupBalancedBatches([0], [], 2, 0)
    with pytest.raises(FaapError, match="images_per_epoch is -1"):
        GroupBalancedBatches([0], [1], 2, 0, -1)


def drawn(indices, seed, number):
    """A group's images for ever, pass after pass."""
    return chain.from_iterable(np.random.default_rng([seed, number, each]).permutation(indices) for each in count())


def varied(epoch, index):
    """A shape for each image, another in each epoch; some images share one."""
    return 30 + index * (7 + epoch) % 23, 20 + index * (11 + 3 * epoch) % 31


GROUPS = {"anchors": st.integers(1, 13), "references": st.integers(1, 13), "half": st.integers(1, 5)}
NUMBERS = {"seed": st.integers(0, 99), "images": st.integers(0, 40), "epoch": st.integers(0, 4)}


@settings(max_examples=60, deadline=None)
@given(**GROUPS, **NUMBERS, equal=st.booleans())
def test_shapes_rearrange_an_epoch_and_nothing_else(anchors, references, half, seed, images, epoch, equal):
    groups = range(anchors), range(100, 100 + references)
    shape = (lambda epoch, index: (48, 64)) if equal else varied
    batches = epoch_of(GroupBalancedBatches(*groups, 2 * half, seed, images, shape=shape), epoch)
    each = (images + 1) // 2 or max(anchors, references)
    expected = []
    for number, group in enumerate(groups):
        expected.append([(epoch, i) for i in islice(drawn(group, seed, number), epoch * each, (epoch + 1) * each)])
    plain = [expected[0][start : start + half] + expected[1][start : start + half] for start in range(0, each, half)]
    if equal:
        assert batches == plain
    assert batches[each // half :] == plain[each // half :]
    assert [len(batch) for batch in batches] == [len(batch) for batch in plain]
    for number in range(2):
        mine = [key for batch in batches for key in (batch[: len(batch) // 2], batch[len(batch) // 2 :])[number]]
        assert Counter(mine) == Counter(expected[number])
    assert batches == epoch_of(GroupBalancedBatches(*groups, 2 * half, seed, images, shape=shape), epoch)


# Sizes as in COCO, and how many images in a hundred have them, lying; the last stands for all the rare ones.
LYING = {(640, 480): 38, (640, 427): 18, (640, 426): 6, (640, 425): 5, (640, 428): 4, (500, 375): 5, (640, 360): 4,
         (500, 333): 3, (640, 640): 3, (612, 612): 2, None: 12}  # fmt: skip


def like_coco(upright):
    """A split of two groups, of which these shares of the images are upright."""
    rng, none = np.random.default_rng(0), np.zeros(0)
    records = []
    for group, share in upright.items():
        for number in rng.choice(len(LYING), 3003, p=np.divide(list(LYING.values()), 100)):
            size = list(LYING)[number] or (640, int(rng.integers(300, 640)))
            width, height = size[::-1] if rng.random() < share else size
            records.append(Record(1, Path(), width, height, group, none, none, none, none, None))
    return Split("train", tuple(records), {}, *upright)


def pixels_of(images, batches):
    """How many pixels each batch has, and how many of them are an image's."""
    shapes = [np.array([images.shape(*key) for key in batch]) for batch in batches]
    return [len(each) * each.max(0).prod() for each in shapes], [each.prod(1).sum() for each in shapes]


def test_batches_of_like_shapes_waste_little_on_padding():
    batch_size = 8
    split = like_coco({"female": 0.38, "male": 0.25})
    images = FaapImages(split, Preprocessing(), {}, training=True)
    groups = split.positions("female"), split.positions("male")
    padded, real = pixels_of(images, GroupBalancedBatches(*groups, batch_size, 0))
    assert sum(real) / sum(padded) < 0.7
    padded, real = pixels_of(images, GroupBalancedBatches(*groups, batch_size, 0, shape=images.shape))
    assert sum(real) / sum(padded) >= 0.96
    # Large batches come neither early nor late, nor together.
    assert abs(np.corrcoef(padded, range(len(padded)))[0, 1]) < 0.1
    assert abs(np.corrcoef(padded[1:], padded[:-1])[0, 1]) < 0.1


@pytest.mark.parametrize("seed", range(5))
def test_halves_are_paired_with_the_least_padding(seed):
    shapes = np.random.default_rng(seed).integers(10, 60, (12, 2))
    batches = list(GroupBalancedBatches(range(6), range(6, 12), 2, seed, shape=lambda epoch, index: shapes[index]))
    pixels = [np.maximum(shapes[a], shapes[b]).prod() for (_, a), (_, b) in batches]
    every = [[np.maximum(shapes[a], shapes[b]).prod() for a, b in enumerate(p)] for p in permutations(range(6, 12))]
    assert sum(pixels) == min(map(sum, every))


def test_an_image_of_two_passes_does_not_meet_itself():
    batches = GroupBalancedBatches(range(8), range(100, 160), 8, 0, shape=varied)
    for epoch in range(3):
        for batch in epoch_of(batches, epoch):
            assert len(set(batch)) == len(batch)


@settings(max_examples=60, deadline=None)
@given(**GROUPS, **NUMBERS, world=st.sampled_from([1, 2, 3, 8]))
def test_processes_share_each_batch_or_are_refused(anchors, references, half, seed, images, epoch, world):
    def of(rank, world):
        groups = range(anchors), range(100, 100 + references)
        return GroupBalancedBatches(*groups, 2 * half, seed, images, shape=varied, rank=rank, world=world)

    whole = epoch_of(of(0, 1), epoch)
    if min(map(len, whole)) < world:
        with pytest.raises(FaapError, match=f"{world} processes share a batch: use "):
            of(0, world)
        return
    shares = [epoch_of(of(rank, world), epoch) for rank in range(world)]
    for number, batch in enumerate(whole):
        parts = [share[number] for share in shares]
        assert 1 <= min(map(len, parts)) <= max(map(len, parts)) <= min(map(len, parts)) + 1
        assert [key for part in parts for key in part if key[1] < 100] == batch[: len(batch) // 2]
        assert [key for part in parts for key in part if key[1] >= 100] == batch[len(batch) // 2 :]
        assert all(part == sorted(part, key=lambda key: key[1] >= 100) for part in parts)


def test_processes_without_a_share_are_told_what_would_do():
    def of(world, batch_size=8, images=0):
        return GroupBalancedBatches(range(5), range(10, 15), batch_size, 0, images, rank=0, world=world)

    with pytest.raises(
        FaapError, match=r"last batch of an epoch has 2 of its 10 images, .* use --images_per_epoch 8, or"
    ):
        of(4)
    assert len(of(4, images=8)) == 1
    with pytest.raises(FaapError, match="batch_size is 4, and 5 processes share a batch: use fewer"):
        of(5, batch_size=4)
    with pytest.raises(FaapError, match=r"has 2 of its 2 images, .* use --images_per_epoch 8, or"):
        of(4, images=2)
    with pytest.raises(FaapError, match="has 2 of its 10"):
        of(3)
    assert len(of(2)) == 2
