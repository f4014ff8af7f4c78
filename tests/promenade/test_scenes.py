import numpy as np
import pytest

from faap.promenade import scenes
from faap.promenade.people import load_people
from faap.promenade.scenes import HEIGHT, PAIRED_SPLITS, WIDTH, compose


def test_a_scene_is_a_function_of_its_arguments() -> None:
    first, again, other = (compose(0, "test", index, "female") for index in (3, 3, 4))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.boxes, again.boxes)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("split", PAIRED_SPLITS)
def test_twins_differ_in_the_people_only(split: str) -> None:
    for index in range(20):
        woman, man = (compose(0, split, index, group) for group in ("female", "male"))
        assert woman.identities == man.identities
        assert not np.array_equal(woman.image, man.image)
        near = np.zeros((HEIGHT, WIDTH), bool)
        for x, y, w, h in np.concatenate([woman.boxes, man.boxes]):
            near[max(0, int(y) - 4) : int(y + h) + 4, max(0, int(x) - 4) : int(x + w) + 4] = True
        assert np.array_equal(woman.image[~near], man.image[~near])


def test_sprites_fill_their_height_so_that_twins_are_equally_tall() -> None:
    people = load_people()
    for identity, view, group in people.places:
        used = np.flatnonzero(people.sprite(identity, view, group).any(1))
        assert used[0] <= 1
        assert used[-1] >= people.height - 2


def test_training_scenes_have_no_twin() -> None:
    woman, man = (compose(0, "train", 5, group) for group in ("female", "male"))
    assert woman.identities != man.identities


def test_no_identity_is_in_two_splits() -> None:
    people = load_people()
    seen = [set(identities) for identities in people.splits.values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) >= 300
    for split, identities in people.splits.items():
        assert {i for index in range(50) for i in compose(0, split, index, "male").identities} <= set(identities)


def test_every_identity_exists_as_woman_and_man_in_every_view() -> None:
    people = load_people()
    for identities in people.splits.values():
        for identity in identities:
            for view in range(people.views):
                assert {(identity, view, "female"), (identity, view, "male")} <= people.places.keys()


def test_boxes_hug_what_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Independent route: paint the people in two colours and see which pixels change."""
    real = scenes.colour
    monkeypatch.setattr(scenes, "_develop", lambda rng, canvas: np.asarray(canvas))
    checked = 0
    for index in range(60):
        pictures = []
        for tone in (0.0, 255.0):
            monkeypatch.setattr(scenes, "colour", lambda sprite, _, tone=tone: real(sprite, np.full((5, 3), tone)))
            scene = compose(1, "val", index, "female", statues=False)  # statues are painted by the same function
            pictures.append(scene.image.astype(int))
        if len(scene.boxes) > 1:
            continue
        changed = abs(pictures[0] - pictures[1]).max(-1) > 127 * 0.1
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        x, y, w, h = scene.boxes[0]
        # A pixel counts as the person's from half coverage on, so the edge may differ by one.
        assert np.allclose([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], [x, y, x + w, y + h], atol=1.01)
        checked += 1
    assert checked > 10


def test_boxes_lie_inside_the_image_and_are_not_tiny() -> None:
    boxes = np.concatenate([compose(0, "train", index, "female").boxes for index in range(300)])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= WIDTH).all()
    assert (boxes[:, 1] + boxes[:, 3] <= HEIGHT).all()
    assert boxes[:, 3].min() > 15


@pytest.mark.parametrize(("split", "group"), [("testing", "male"), ("test", "child")])
def test_unknown_split_or_group(split: str, group: str) -> None:
    with pytest.raises(ValueError, match="must be one of"):
        compose(0, split, 0, group)


def test_without_statues_the_scene_is_otherwise_the_same() -> None:
    different = 0
    for index in range(30):
        with_statues, without = (compose(0, "test", index, "male", statues=flag) for flag in (True, False))
        assert np.array_equal(with_statues.boxes, without.boxes)
        assert with_statues.identities == without.identities
        different += not np.array_equal(with_statues.image, without.image)
    assert 5 < different < 25
