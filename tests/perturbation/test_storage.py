import argparse
import contextlib
import json
import pickle
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from faap.errors import FaapError
from faap.perturbation import Generator, build_generator, load_generator, save_generator
from faap.perturbation.generator import DIGEST
from faap.weights import tensors_sha256
from mutants import PLAIN, TENSORS, mutants, outcome


@pytest.fixture(scope="module")
def x() -> Tensor:
    return 0.5 * torch.randn(1, 3, 32, 40, generator=torch.Generator().manual_seed(0))


def assert_same(one: Generator, other: Generator, x: Tensor) -> None:
    assert one.config() == other.config()
    assert torch.equal(one.eval().perturb(x), other.perturb(x))
    assert not other.training


@pytest.mark.parametrize("arch", ["light", "unet"])
def test_every_way_to_name_a_saved_generator(arch: str, tmp_path: Path, x: Tensor) -> None:
    generator = build_generator(arch, epsilon=0.10)
    generator.epsilon = 0.09
    save_generator(generator, tmp_path / "run" / "generator")
    for path in ("run", "run/generator", "run/generator/model.safetensors"):
        assert_same(generator, load_generator(tmp_path / path), x)
    assert_same(generator, load_generator(str(tmp_path / "run")), x)
    assert {path.name for path in (tmp_path / "run" / "generator").iterdir()} == {"config.json", "model.safetensors"}
    assert load_generator(tmp_path / "run", epsilon=0.03).epsilon == 0.03


def test_the_hubs_own_loading_works(tmp_path: Path, x: Tensor) -> None:
    generator = build_generator(epsilon=0.10, widths=(8, 16, 24))
    generator.epsilon = 0.07
    save_generator(generator, tmp_path)
    assert_same(generator, Generator.from_pretrained(tmp_path), x)
    generator.save_pretrained(tmp_path / "hub")
    assert_same(generator, load_generator(tmp_path / "hub"), x)


def test_a_checkpoint_of_the_training(tmp_path: Path, x: Tensor) -> None:
    generator = build_generator(epsilon=0.06)
    path = tmp_path / "epoch_0003.pth"
    torch.save({"epoch": 3, "generator": generator.state_dict(), "generator_config": generator.config()}, path)
    assert_same(generator, load_generator(path), x)


@pytest.mark.parametrize("arch", ["light", "unet"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_a_checkpoint_of_a_wrapped_generator(arch: str, prefix: str, tmp_path: Path, x: Tensor) -> None:
    generator = build_generator(arch)
    state = {prefix + name: value for name, value in generator.state_dict().items()}
    torch.save({"generator": state, "generator_config": generator.config()}, tmp_path / "wrapped.pth")
    assert_same(generator, load_generator(tmp_path / "wrapped.pth"), x)


@pytest.mark.parametrize("biased", [True, False])
def test_a_checkpoint_of_the_original(biased: bool, tmp_path: Path, x: Tensor) -> None:
    generator = build_generator("unet", epsilon=0.09)
    state = generator.state_dict()
    if not biased:
        for name in [name for name in state if name.endswith(("net.0.bias", "net.3.bias", "conv.bias"))]:
            if name != "out_conv.bias":
                state[name].zero_()
                del state[name]
    path = tmp_path / "epoch_0023.pth"
    torch.save({"epoch": 23, "generator": state, "args": argparse.Namespace(epsilon=0.09)}, path)
    assert_same(generator, load_generator(path, epsilon=0.09), x)


def test_saving_again_replaces_only_its_own_files(tmp_path: Path, x: Tensor) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    save_generator(build_generator(), tmp_path)
    second = build_generator(epsilon=0.02)
    save_generator(second, tmp_path)
    assert_same(second, load_generator(tmp_path), x)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_interrupted_save_leaves_the_old_generator(
    tmp_path: Path, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_generator()
    save_generator(first, tmp_path)

    real = Path.write_bytes

    def fail(path: Path, content: bytes) -> None:
        real(path, content[: len(content) // 2])
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", fail)
        with pytest.raises(OSError, match="disk full"):
            save_generator(build_generator(epsilon=0.01), tmp_path)
    assert_same(first, load_generator(tmp_path), x)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def break_config(folder: Path, text: str | None) -> Path:
    save_generator(build_generator(widths=(8, 8, 8)), folder)
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    return folder


def break_weights(folder: Path) -> Path:
    save_generator(build_generator(widths=(8, 8, 8)), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return folder


def other_weights(folder: Path) -> Path:
    save_generator(build_generator(widths=(8, 8, 8)), folder)
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    return folder


def lfs_pointer(folder: Path, name: str) -> Path:
    save_generator(build_generator(widths=(8, 8, 8)), folder)
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 123\n")
    return folder if name != "epoch_0000.pth" else folder / name


def diverged(folder: Path, value: float) -> Path:
    generator = build_generator(widths=(8, 8, 8))
    generator.get_parameter("down8.conv.bias").data[2] = value
    save_generator(generator, folder)
    return folder


def saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "epoch_0000.pth")
    return folder / "epoch_0000.pth"


def written(folder: Path, content: bytes) -> Path:
    (folder / "epoch_0000.pth").write_bytes(content)
    return folder / "epoch_0000.pth"


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run while loading",)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "absent", "does not exist"),
        (lambda folder: folder / "absent.pth", "does not exist"),
        (lambda folder: folder, "model.safetensors: is missing, and a generator needs both"),
        (lambda folder: break_config(folder, None), "config.json: is missing"),
        (lambda folder: break_config(folder, "{"), "config.json: not valid JSON"),
        (lambda folder: break_config(folder, "[1]"), "config.json: is [1]; it should be a mapping"),
        (lambda folder: break_config(folder, '{"arch": "ligth"}'), "Did you mean 'light'"),
        (lambda folder: break_config(folder, '{"width": 3}'), "config.json: has an entry 'width'"),
        (
            lambda folder: break_config(folder, '{"widths": [8, 16]}'),
            "config.json: widths: is [8, 16]; it should be a list of 3",
        ),
        (lambda folder: break_config(folder, '{"widths": "abc"}'), "config.json: widths: is 'abc'"),
        (lambda folder: break_config(folder, '{"widths": [16000, 8, 8]}'), "config.json: widths[0]: is 16000"),
        (lambda folder: break_config(folder, '{"widths": [2048, 2048, 2048]}'), "of the wrong shape"),
        (lambda folder: break_config(folder, '{"epsilon": NaN}'), "config.json: epsilon: is nan"),
        (lambda folder: break_config(folder, '{"epsilon": 1e999}'), "config.json: epsilon: is inf"),
        (lambda folder: break_config(folder, '{"epsilon": 1e9}'), "config.json: epsilon: is 1000000000.0"),
        (lambda folder: break_config(folder, '{"epsilon": "0.1"}'), "config.json: epsilon: is '0.1'"),
        (lambda folder: break_config(folder, "[" * 100_000), "config.json: not valid JSON"),
        (lambda folder: lfs_pointer(folder, "config.json"), "config.json: is a pointer of Git LFS"),
        (lambda folder: lfs_pointer(folder, "model.safetensors"), "run: git lfs pull"),
        (lambda folder: lfs_pointer(folder, "epoch_0000.pth"), "run: git lfs pull"),
        (lambda folder: diverged(folder, torch.nan), "model.safetensors: down8.conv.bias is NaN or infinite in 1 of 8"),
        (lambda folder: diverged(folder, -torch.inf), "down8.conv.bias is NaN or infinite"),
        (break_weights, "is not a complete safetensors file"),
        (other_weights, "(57 in all) missing; a (1 in all) not of this model"),
        (lambda folder: saved(folder, {"model": {}}), "has no entry 'generator'"),
        (lambda folder: saved(folder, torch.zeros(2)), "a mapping of names to values"),
        (lambda folder: saved(folder, {"generator": {"a": torch.zeros(1)}}), "not the original U-Net"),
        (lambda folder: saved(folder, {"generator": {}, "extra": Harmful()}), "nothing else is ever unpickled"),
        (lambda folder: written(folder, b"no checkpoint"), "epoch_0000.pth"),
        (lambda folder: written(folder, b""), "cannot be read as a checkpoint"),
        (lambda folder: written(folder, pickle.dumps(Harmful(), protocol=2)), "nothing else is ever unpickled"),
    ],
)
def test_what_is_no_generator_is_refused_by_name(make, said: str, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    path = make(tmp_path)
    with pytest.raises(FaapError) as caught:
        load_generator(path)
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "run while loading" not in capsys.readouterr().out


def test_a_name_that_is_no_path_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, x: Tensor) -> None:
    asked = []

    def answer(name: str, **options: object) -> str:
        asked.append((name, options))
        if name != "org/model":
            raise OSError("no such model\nlong story")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", answer)
    generator = build_generator()
    save_generator(generator, tmp_path)
    assert_same(generator, load_generator("org/model"), x)
    assert_same(generator, Generator.from_pretrained("org/model", revision="v2"), x)
    files = {"allow_patterns": ["config.json", "model.safetensors"]}
    assert asked == [("org/model", files), ("org/model", files | {"revision": "v2"})]
    with pytest.raises(FaapError, match=r"^org/other: is no file or directory here, .*: no such model$"):
        load_generator("org/other")
    for local in ("nowhere", "org/model.pth", "org/model.safetensors", f"{tmp_path}/model"):
        with pytest.raises(FaapError, match="does not exist"):
            load_generator(local)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    with pytest.raises(FaapError, match=r"^org/model: does not exist, and the hub is not asked where .* folder org; "):
        load_generator("org/model")
    assert len(asked) == 3


def test_a_bound_that_is_asked_for_is_held_to_the_same_limits(tmp_path: Path) -> None:
    save_generator(build_generator(widths=(8, 8, 8)), tmp_path)
    for epsilon in (-0.1, torch.inf, 50.0):
        with pytest.raises(FaapError, match="epsilon: is"):
            load_generator(tmp_path, epsilon=epsilon)


@pytest.mark.parametrize("kind", ["config.json", "epoch_0000.pth"])
def test_whatever_a_file_holds_it_loads_or_is_refused_in_words(kind: str, tmp_path: Path) -> None:
    generator = build_generator(widths=(8, 8, 8))
    save_generator(generator, tmp_path)
    right: dict[str, object] = dict(generator.config())
    if kind.endswith("pth"):
        right = {"epoch": 3, "generator": dict(generator.state_dict()), "generator_config": right}
    outcomes = []
    for said, wrong in mutants(right, 60, seed=0, odd=PLAIN + (TENSORS if kind.endswith("pth") else [])):
        if kind.endswith("pth"):
            torch.save(wrong, tmp_path / kind)
        else:
            (tmp_path / kind).write_text(json.dumps(wrong))
        outcomes.append(outcome(lambda: load_generator(tmp_path if kind == "config.json" else tmp_path / kind), said))
    told = [text for text in outcomes if text is not None]
    assert 0 < len(told) < 60
    assert all(str(tmp_path) in text for text in told)


def test_the_configuration_is_plain_json(tmp_path: Path) -> None:
    generator = build_generator()
    save_generator(generator, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "arch": "light",
        "epsilon": 0.1,
        "widths": [16, 48, 96],
        "weights_sha256": tensors_sha256(generator.state_dict()),
    }


@pytest.mark.parametrize("seed", range(60))
def test_no_flipped_bit_gives_another_generator(seed: int, tmp_path: Path) -> None:
    """The file is refused, or what it holds is the same: a bit of padding is nobody's."""
    generator = build_generator(widths=(8, 8, 8))
    save_generator(generator, tmp_path)
    path, rng = tmp_path / "model.safetensors", random.Random(seed)
    content = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    with contextlib.suppress(FaapError):
        loaded = load_generator(tmp_path).state_dict()
        assert all(torch.equal(value, loaded[name]) for name, value in generator.state_dict().items())


def test_a_flipped_bit_of_a_weight_is_damage_by_name(tmp_path: Path) -> None:
    save_generator(build_generator(widths=(8, 8, 8)), tmp_path)
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        FaapError, match=r"model\.safetensors: is not as it was written: .*config\.json has another digest"
    ):
        load_generator(tmp_path)
    # without a digest, as an earlier faap wrote it, a file is taken at its word
    config = tmp_path / "config.json"
    config.write_text(json.dumps({key: v for key, v in json.loads(config.read_text()).items() if key != DIGEST}))
    weights = {name: value.contiguous() for name, value in build_generator(widths=(8, 8, 8)).state_dict().items()}
    save_file(weights, path, metadata={"format": "pt"})
    load_generator(tmp_path)
