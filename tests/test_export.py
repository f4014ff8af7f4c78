"""What is exported does what PyTorch does, at any size, and says what it is."""

import json
import logging
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import ExifTags, Image

import faap
from detectors.tiny_families import build
from faap import cli, export
from faap.deploy import apply
from faap.errors import FaapError
from faap.perturbation import Generator, build_generator, save_generator
from faap.promenade import shipped_run
from faap.runs import Run

RNG = np.random.default_rng(0)
# twenty, among them the smallest, odd ones and multiples of what the generator works in
TWENTY = [(1, 16, 16), (3, 16, 48), (2, 64, 64), (1, 128, 160), (1, 17, 300)]
TWENTY += [(int(RNG.integers(1, 4)), int(RNG.integers(16, 200)), int(RNG.integers(16, 200))) for _ in range(15)]


def moving(arch: str) -> Generator:
    torch.manual_seed(0)
    generator = build_generator(arch, 0.1, (8, 8, 16) if arch == "light" else (4, 4, 4))
    with torch.no_grad():
        (generator.out if arch == "light" else generator.out_conv).weight.mul_(300 if arch == "light" else 3)
    return generator.eval()


@pytest.mark.parametrize("to", ["onnx", "torch"])
@pytest.mark.parametrize("arch", ["light", "unet"])
def test_a_generator_is_the_same_at_twenty_sizes(arch: str, to: str, tmp_path: Path) -> None:
    generator, path = moving(arch), tmp_path / "g"
    about = export.export(generator, path, to=to)
    assert about["largest_difference"] <= 1e-4
    exported = export.load_exported(path, to)
    for batch, height, width in TWENTY:
        images = torch.randn(batch, 3, height, width)
        with torch.no_grad():
            wanted = generator.perturb(images)
        (found,) = exported(images)
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() <= 1e-4, (batch, height, width)
    assert (wanted - images).abs().max() > 0.01
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("to", "name", "right"), [("onnx", "g.pt2", ".onnx"), ("torch", "g.onnx", ".pt2")])
def test_a_file_is_of_the_format_that_its_name_says(
    to: str, name: str, right: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FaapError, match=rf"{name}: would be of the format {to}, whose files end in {right}; "):
        export.export(moving("light"), tmp_path / name, to=to)
    assert [*tmp_path.iterdir()] == []
    said = list[Any]()
    monkeypatch.setattr(logging.getLogger("torch.export.pt2_archive._package"), "filters", [said.append])
    export.export(moving("light"), tmp_path / f"g{right}", to=to)
    assert said == []  # torch complained of the name that a file has while it is written


@pytest.mark.parametrize(("kind", "to"), [("detr", "onnx"), ("conditional_softmax", "torch")])
def test_a_detector_behind_it_goes_into_the_same_file(kind: str, to: str, tiny, wrap, tmp_path: Path) -> None:
    generator, detector = moving("light"), wrap(tiny(kind))
    path = tmp_path / "g"
    export.export(generator, path, to=to, detector=detector)
    exported = export.load_exported(path, to)
    for batch, height, width in ((1, 48, 64), (2, 61, 50), (3, 96, 96)):
        images = torch.randn(batch, 3, height, width)
        with torch.no_grad():
            perturbed = generator.perturb(images)
            out = detector(perturbed)
        for mine, theirs in zip((perturbed, out.logits, out.boxes), exported(images), strict=True):
            assert (mine - theirs).abs().max() <= 1e-4


def test_the_file_says_what_it_is_and_stands_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "there" / "generator.onnx"
    assert cli.main(["export", "promenade", f"--output={path}"]) == 0
    assert "differs from PyTorch by" in capsys.readouterr().out
    known = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    generator = faap.load_generator("promenade")
    assert float(known["epsilon"]) == generator.epsilon
    gap = json.loads(known["gap"])["AP"]
    assert gap["perturbed"] < gap["baseline"]
    assert len(gap["ci95"]) == 2
    assert json.loads(known["measured_with"])["name"] == "promenade"
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 56, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    script = Path(__file__).parents[1] / "examples" / "onnx_detector.py"
    subprocess.run([sys.executable, str(script), str(path), "a.png"], cwd=tmp_path, check=True)
    by_example = np.asarray(Image.open(tmp_path / "perturbed.png")).astype(int)
    assert np.abs(by_example - np.asarray(apply(generator, image))).max() <= 1  # a half may round either way


@pytest.mark.parametrize("to", ["onnx", "torch"])
def test_a_file_tells_nothing_of_the_machine_and_no_figures_of_another_generator(to: str, tmp_path: Path) -> None:
    run = Run(shutil.copytree(shipped_run(), tmp_path / "somebody" / "run"))
    metrics = run.read_metrics()
    metrics["provenance"] |= {"dataset": str(tmp_path / "somebody" / "people")}
    run.write_metrics(metrics)
    generator = faap.load_generator(run.path)
    about = export.export(generator, tmp_path / "g", to=to, run=run)
    assert about["dataset"] == "people"
    assert about["gap"] == metrics["gap"]
    content = (tmp_path / "g").read_bytes()
    assert str(tmp_path).encode() not in content
    assert str(Path(faap.__file__).parent).encode() not in content
    generator.epsilon = 0.05  # of which nothing is known
    assert "gap" not in export._about(generator, None, run)


def test_the_command_says_where_figures_are_of_another_generator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(shutil.copytree(shipped_run(), tmp_path / "run"))
    command = ["export", str(run.path), "--to=torch", f"--output={tmp_path / 'g.pt2'}"]
    assert cli.main(command) == 0
    assert "another generator" not in capsys.readouterr().out
    save_generator(moving("light"), run.generator)  # in place of the one that was measured
    assert cli.main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "metrics.json is about another generator, or another ε: its figures are left out." in said
    inside = {"faap.json": ""}
    torch.export.load(tmp_path / "g.pt2", extra_files=inside)
    about = json.loads(inside["faap.json"])
    assert about["epsilon"] == 0.1
    assert "gap" not in about


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are not exported, which takes ten seconds each, but marked as if they were."""
    monkeypatch.setattr(export, "_write_onnx", lambda *rest: export._MARK)
    monkeypatch.setattr(export, "compare", lambda *rest: 0.0)


@pytest.mark.usefixtures("written")
def test_what_is_not_an_export_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, path = moving("light"), tmp_path / "mine.onnx"
    path.write_text("mine")
    (tmp_path / "zero.onnx").symlink_to("/dev/zero")  # which has no end
    with pytest.raises(FaapError, match="is a pipe or a device"):
        export.export(generator, tmp_path / "zero.onnx")
    for place in (path, tmp_path):
        with pytest.raises(FaapError, match=r"is there, and no export of faap; .*--output"):
            export.export(generator, place)
    assert path.read_text() == "mine"
    path.unlink()
    export.export(generator, path)
    before = path.read_bytes()
    monkeypatch.setattr(export, "compare", lambda *rest: 0.1)
    with pytest.raises(FaapError, match="is not kept"):
        export.export(generator, path)
    assert path.read_bytes() == before


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("case", ["rt_detr", "lw_detr"])
def test_a_detector_whose_sides_must_divide_is_not_put_into_a_file_for_any_size(
    case: str, wrap, tmp_path: Path
) -> None:
    detector = wrap(build(case))
    with pytest.raises(
        FaapError, match=r"^the detector tiny takes sides that are multiples of \d+, .* --with_detector.$"
    ):
        export.export(moving("light"), tmp_path / "g.onnx", detector=detector)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize(("by", "said"), [(0.1, "1.0e-01"), (math.nan, "nan")])
def test_what_differs_leaves_no_file(by: float, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "compare", lambda *rest: by)
    with pytest.raises(FaapError, match=f"differs from PyTorch by {said}"):
        export.export(moving("light"), tmp_path / "g.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, path = moving("light"), tmp_path / "g.onnx"
    with pytest.raises(FaapError, match="'tflite': it can be one of onnx, torch"):
        export.export(generator, path, to="tflite")

    def odd(*rest: Any, **named: Any) -> Any:
        raise RuntimeError("Failed. \x1b[96mThis is step 1/3") from ValueError("no counterpart\nmore")

    monkeypatch.setattr(torch.onnx, "export", odd)
    with pytest.raises(FaapError, match=r"the generator cannot be exported to onnx: no counterpart\.$"):
        export.export(generator, path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(FaapError, match=r"pip install 'faap\[onnx\]'"):
        export.export(generator, path)
    assert list(tmp_path.iterdir()) == []


def test_a_difference_is_seen(tmp_path: Path) -> None:
    generator, path = moving("light"), tmp_path / "g.pt2"
    export.export(generator, path, to="torch")
    whole = export._Whole(generator, None)
    assert export.compare(path, whole, "torch") <= 1e-4
    with torch.no_grad():
        whole.generator.out.bias.add_(0.1)
    assert export.compare(path, whole, "torch") > 1e-3


def test_onnxruntime_is_told_to_tell_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []

    def imported(name: str) -> None:
        said.append((name, os.environ.get("ORT_DISABLE_TELEMETRY")))
        raise ImportError

    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setattr(export, "import_module", imported)
    with pytest.raises(ImportError):
        export.load_exported(tmp_path / "g.onnx")
    assert said == [("onnxruntime", "1")]
