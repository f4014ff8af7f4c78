"""Samples and batches: the right targets, the right padding, the same whatever the workers."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from faap.data import (
    FaapImages,
    GroupBalancedBatches,
    Preprocessing,
    Record,
    Split,
    collate,
    evaluation_transform,
    load_dataset,
    normalise,
    read_image,
)
from faap.errors import FaapError

PREPROCESSING = Preprocessing(shortest_edge=48, longest_edge=90)


@pytest.fixture
def split(dataset_root):
    return load_dataset(dataset_root).split("train")


def test_a_sample_is_the_transformed_record(split):
    sample = FaapImages(split, PREPROCESSING, {1: 4})[2]
    record = split.records[2]
    pixels, boxes = evaluation_transform(read_image(record.path), record.boxes, PREPROCESSING)
    assert torch.equal(sample.pixels, pixels)
    assert torch.equal(sample.boxes, boxes)
    assert sample.labels.tolist() == [4, 4]
    assert (sample.group, sample.image_id, sample.size) == ("female", record.image_id, (30, 40))


@pytest.mark.parametrize("training", [False, True])
def test_crowds_and_unknown_categories_are_no_targets(split, training):
    record = replace(
        split.records[0],
        boxes=np.array([[1.0, 1, 20, 20], [2, 2, 30, 20], [3, 3, 30, 20]]),
        labels=np.array([1, 1, 9]),
        areas=np.ones(3),
        crowd=np.array([False, True, False]),
    )
    images = FaapImages(replace(split, records=(record,)), Preprocessing(None, None), {1: 0}, training=training)
    assert images[0].labels.tolist() == [0]
    assert (images[0].boxes[:, 2:] * torch.tensor([40, 30])).tolist() == [[20, 20]]


def test_collate_pads_to_the_largest_and_says_where(split):
    images = FaapImages(split, PREPROCESSING, {1: 0})
    wide, tall = images[1], images[2]
    wide.pixels, tall.pixels = torch.randint(1, 256, (3, 20, 50)), torch.randint(1, 256, (3, 40, 30))
    batch = collate([wide, tall])
    assert batch.pixel_values.shape == (2, 3, 40, 50)
    assert batch.pixel_mask.dtype == torch.bool
    assert batch.valid.tolist() == [[20, 50], [40, 30]]
    assert batch.sizes.tolist() == [[30, 40], [30, 40]]
    for index, sample in enumerate([wide, tall]):
        height, width = batch.valid[index].tolist()
        assert torch.equal(batch.images[index, :, :height, :width], sample.pixels)
        values = normalise(sample.pixels / 255)
        assert torch.equal(batch.pixel_values[index, :, :height, :width], values)
        assert batch.pixel_mask[index].sum() == height * width
        assert batch.pixel_mask[index, :height, :width].all()
        assert torch.equal(batch.targets[index]["boxes"], sample.boxes)
    assert (batch.pixel_values[~batch.pixel_mask[:, None].expand(-1, 3, -1, -1)] == 0).all()
    assert batch.groups == ("female", "female")
    assert batch.image_ids.tolist() == [2, 3]


def test_a_batch_without_padding_has_no_mask(split):
    images = FaapImages(split, PREPROCESSING, {1: 0})
    assert collate([images[1], images[1]]).pixel_mask is None


def test_what_a_device_computes_with_moves_and_what_is_read_stays(split):
    wide, tall = (FaapImages(split, PREPROCESSING, {1: 0})[index] for index in (1, 2))
    wide.pixels = wide.pixels[:, :-1]
    batch = collate([wide, tall])
    moved = batch.to("meta")
    tensors = [moved.images, moved.pixel_values, moved.pixel_mask, moved.targets.real]
    tensors += [value for target in moved.targets for value in target.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert {tensor.device.type for tensor in (moved.image_ids, moved.sizes, moved.valid)} == {"cpu"}
    assert moved.groups == batch.groups
    assert moved.targets.counts == batch.targets.counts


def test_images_that_are_kept_are_read_once_and_no_more_than_there_is_room_for(split, monkeypatch):
    size = 40 * 30 * 3
    images = FaapImages(split, PREPROCESSING, {1: 0}, training=True, memory=2 * size + 1)
    first = [images[epoch, index] for epoch in range(2) for index in range(3)]
    read = []
    monkeypatch.setattr("faap.data.dataset.read_image", lambda path: read.append(path) or read_image(path))
    again = [images[epoch, index] for epoch in range(2) for index in range(3)]
    assert all(torch.equal(one.pixels, other.pixels) for one, other in zip(first, again, strict=True))
    assert read == [split.records[2].path] * 2


def batches_of(split, workers, seed=0):
    images = FaapImages(split, PREPROCESSING, {1: 0}, training=True, seed=seed)
    indices = {group: [i for i, r in enumerate(split.records) if r.group == group] for group in ("female", "male")}
    sampler = GroupBalancedBatches(indices["female"], indices["male"], 4, seed)
    loader = DataLoader(images, batch_sampler=sampler, collate_fn=collate, num_workers=workers)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        yield from loader


def test_workers_change_nothing(split):
    alone, together = list(batches_of(split, 0)), list(batches_of(split, 2))
    assert len(alone) == len(together) == 6
    for first, second in zip(alone, together, strict=True):
        assert torch.equal(first.pixel_values, second.pixel_values)
        assert torch.equal(first.image_ids, second.image_ids)
        for a, b in zip(first.targets, second.targets, strict=True):
            assert torch.equal(a["boxes"], b["boxes"])
            assert torch.equal(a["labels"], b["labels"])


def test_augmentation_is_a_function_of_seed_epoch_and_index(split):
    def drawn(seed, epoch, index):
        sample = FaapImages(split, PREPROCESSING, {1: 0}, training=True, seed=seed)[epoch, index]
        return tuple(sample.pixels.shape), sample.pixels.sum().item()

    assert drawn(0, 1, 2) == drawn(0, 1, 2)
    varied = {drawn(seed, epoch, 2) for seed in range(4) for epoch in range(4)}
    assert len(varied) > 8


def test_an_image_of_another_size_than_annotated_is_named(split, tmp_path):
    path = tmp_path / "other.jpg"
    Image.new("RGB", (30, 40)).save(path)
    wrong = replace(split, records=(replace(split.records[0], path=path),))
    with pytest.raises(FaapError, match=r"other\.jpg: the image is 30x40 pixels .* but 40x30 in its annotations"):
        FaapImages(wrong, PREPROCESSING, {1: 0})[0]


@settings(max_examples=80, deadline=None)
@given(
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    edges=st.tuples(st.integers(8, 120), st.none() | st.integers(30, 160)) | st.just((None, None)),
    fixed=st.none() | st.tuples(st.integers(4, 90), st.integers(4, 90)),
    multiple=st.sampled_from([1, 8, 32]),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 5),
)
def test_the_shape_of_a_sample_is_known_before_its_file_is_read(size, edges, fixed, multiple, seed, epoch):
    none = np.zeros(0)
    record = Record(1, Path("nowhere.jpg"), *size, "female", np.zeros((0, 4)), none, none, none.astype(bool), None)
    split = Split("train", (record,) * 3, {1: "person"}, "female", "male")
    preprocessing = Preprocessing(*edges, size=fixed, multiple=multiple)
    images = FaapImages(split, preprocessing, {1: 0}, training=True, seed=seed, edges=(480, 700, 800))
    shapes = [images.shape(epoch, index) for index in range(3)]
    with patch("faap.data.dataset.read_image", lambda path: Image.new("RGB", size)):
        assert shapes == [tuple(images[epoch, index].pixels.shape[1:]) for index in range(3)]
