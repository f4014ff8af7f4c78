"""Batches are half and half, cover everything, and depend on (seed, epoch) alone."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faap.data import GroupBalancedBatches
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
