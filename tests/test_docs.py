"""What the pages say can be typed: their commands run, their Python runs, their links lead somewhere."""

import functools
import glob
import hashlib
import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console
from transformers import AutoImageProcessor, AutoModelForObjectDetection

import faap
from faap import cli, evaluation
from faap.compare import LocalRunner
from faap.data import STD
from faap.errors import FaapError
from faap.files import write_text
from faap.promenade import detector_dir, shipped_run
from faap.promenade.build import build_promenade
from faap.report import words
from faap.runs import Run

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "README.ko.md", ROOT / "CONTRIBUTING.md", *DOCS]
PROGRAMS = {"faap", "python", "torchrun", "accelerate", "pre-commit", "make", "sbatch"}
QUIET = Console(quiet=True)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """The lines of a page, indented or in a block of sh, that begin with a program's name; continued ones joined."""
    text = text_of(page).replace("\\\n", " ")
    lines = [line for line in re.sub(r"^```.*?^```", "", text, flags=re.S | re.M).splitlines() if line[:4] == "    "]
    lines += [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [line.strip() for line in lines if line.split() and line.split()[0].rpartition("/")[2] in PROGRAMS]


def files(page: Path) -> dict[str, str]:
    """The blocks of a page that stand for a file: named in the line before, or in their own first."""
    named = re.findall(r"`([\w.]+)`[^`\n]*:\n\n```\w+\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)
    begun = re.findall(r"^```python\n(# ([\w.]+\.py)\n.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)
    return dict(named) | {name: content for content, name in begun}


EVERY = sorted({shlex.join(shlex.split(line, comments=True)) for page in PAGES for line in commands(page)})


@every_page
def test_every_command_is_typed_in_the_one_way_that_works_without_an_activated_environment(page: Path) -> None:
    targets = re.findall(r"^(\w+):", text_of(ROOT / "Makefile"), re.MULTILINE)
    for line in commands(page):
        program, *rest = line.split()
        if program == "make":
            assert rest[0] in targets
        elif program != "sbatch":
            assert program.startswith(".venv/bin/"), line


class Parsed(Exception):
    """A command has read its arguments, and is not to run."""


@every_page
def test_every_flag_and_recipe_of_a_command_in_a_sentence_exists(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = cli.Parser.given

    def only_parse(parser: cli.Parser) -> None:
        given(parser)
        raise Parsed

    monkeypatch.setattr(cli.Parser, "given", only_parse)
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    for line in re.findall(r"`(?:\.venv/bin/)?faap (\w+ [^`]*)`", text):
        name, *rest = shlex.split(line.replace("\n", " "))
        known = [re.sub(r"^(RECIPE|\w+\.yaml)$", "infonce_4th", word) for word in rest]
        if name in cli.COMMANDS and "--help" not in rest and "…" not in rest:
            with pytest.raises((Parsed, FaapError)) as ended:
                cli.COMMANDS[name](cli.Parser(known, prog="faap"), QUIET)
            # a sentence may leave out what it is not about
            assert ended.type is Parsed or "arguments are required" in str(ended.value), line


# Commands that are run elsewhere, or not: by what, or why.
ELSEWHERE = {
    "make app": "tests/test_app_browser.py",
    "make demo": "tests/test_end_to_end.py",
    "make install": "",
    "make test": "",
    ".venv/bin/python benchmarks/growth.py --out docs/performance/bench_growth.png": "tests/test_bench.py::test_growth",
    ".venv/bin/python benchmarks/loader.py": "tests/test_bench.py::test_loader",
    ".venv/bin/python benchmarks/step.py --out docs/performance/bench_profile.png": "tests/test_bench.py::test_step",
    ".venv/bin/torchrun --nproc-per-node=4 -m faap train infonce_4th --precision bf16 --num_workers 8": (
        "tests/training/test_parallel.py"
    ),
    (
        "sbatch examples/slurm.sh equal --dataset_root /data/people --detr_checkpoint /models/detr "
        "--output_dir /shared/run"
    ): "tests/test_cluster_examples.py",
    ".venv/bin/python tools/fuzz.py 100000": "tests/test_tools.py",
    ".venv/bin/python tools/kill_test.py 1000 --dir /dev/shm": "tests/test_tools.py",
    ".venv/bin/faap export faap_outputs/faap_outputs_equal --to onnx": "tests/test_export.py",
    ".venv/bin/faap export promenade --to onnx --output generator.onnx": "tests/test_export.py",
    ".venv/bin/faap export promenade --to onnx --with_detector --output both.onnx": "tests/test_export.py",
    ".venv/bin/faap export promenade --to torch --output generator.pt2": "tests/test_export.py",
    ".venv/bin/python examples/onnx_detector.py generator.onnx picture.jpg": "tests/test_export.py",
    ".venv/bin/python examples/onnx_detector.py faap_outputs/generator.onnx photo.jpg": "tests/test_export.py",
    ".venv/bin/faap push faap_outputs/faap_outputs_equal organisation/name": "tests/test_hub.py",
    ".venv/bin/faap compare infonce_4th --ablate --seeds 3 --ray": "tests/compare/test_ray.py",
}
TINY = ["--epochs", "1", "--images_per_epoch", "4", "--batch_size", "4", "--widths", "8,8,8", "--device", "cpu"]
# What makes a command small; what is given twice, counts as it is given last.
SMALLER = {
    "train": [*TINY, "--num_workers", "0"],
    "compare": [*TINY, "--seeds", "1", "--jobs", "1"],
    "audit": ["--samples", "10"],
}
# a network as users have them, for docs/detectors.md
MODELS = """
import torch


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.look = torch.nn.Conv2d(3, 256, 16, stride=16)
        self.logits, self.boxes = torch.nn.Linear(256, 2), torch.nn.Linear(256, 4)

    def forward(self, pixel_values, pixel_mask):
        states = torch.nn.functional.adaptive_avg_pool2d(self.look(pixel_values), 10).flatten(2).mT
        return self.logits(states), self.boxes(states).sigmoid(), states


network = Network()
"""


def typed(command: str) -> int:
    """Run a command here, as a shell would; return its exit status."""
    program, *words = shlex.split(command)
    words = [found for word in words for found in sorted(glob.glob(os.path.expanduser(word))) or [word]]
    if program.endswith("/faap"):
        try:
            return cli.main([*words, *SMALLER.get(words[0], [])])
        except SystemExit as ended:  # of --help
            return int(ended.code or 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words + (SMALLER["train"] if words[0].startswith("train") else []))
        patch.setattr(evaluation, "evaluate", functools.partial(evaluation.evaluate, bootstrap=10))
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


def launched(command: str) -> int:
    """Run a command that starts processes on data that is there, since they know nothing of this one."""
    program, *words = shlex.split(command.replace("--num_processes 4", "--cpu --num_processes 1"))
    given = [*SMALLER["train"], "--dataset_root", "path/to/data", "--detr_checkpoint", "path/to/detector"]
    place = Path(sys.executable).with_name(program.rpartition("/")[2])
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.run([place, *words, *given], env=environment, timeout=300).returncode


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with everything that the pages name, and a home with a small Promenade."""
    root = tmp_path_factory.mktemp("world")
    scenes = {"train": 4, "val": 2, "test": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(root / "home"))
        patch.delenv("FAAP_CACHE_DIR", raising=False)
        patch.delenv("XDG_CACHE_HOME", raising=False)
        patch.setattr("faap.promenade.build.SCENES", scenes)
        place = root / "place"
        place.mkdir()
        patch.chdir(place)
        shutil.copytree(build_promenade(), "path/to/data")
        shutil.copytree("path/to/data/women_split/test", "path/to/pictures")
        for name in ("path/to/detector", "DETECTOR", "ANOTHER_DETECTOR"):
            Path(name).symlink_to(detector_dir("biased"))
        _as_coco(Path("path/to/data"), Path("data"))
        Path("DATA").symlink_to("data")
        Path("data/results.json").rename("results.json")
        shutil.copytree("path/to/pictures", "photos")
        shutil.copy("path/to/pictures/00000.jpg", "picture.jpg")
        _film(Path("holiday.mp4"))
        write_text(Path("my_models.py"), MODELS)
        for page in PAGES:
            for name, content in files(page).items():
                write_text(Path(name), content.replace("=800", "=64").replace("=1333", "=96"))
        for folder in ("examples", "tools"):
            shutil.copytree(ROOT / folder, folder)
        shutil.copytree(ROOT / "docs/results", "docs/results")
        shutil.copy(ROOT / "train_faap_simclr_infonce_4th.py", place)
        assert typed(".venv/bin/faap train equal") == typed(".venv/bin/faap train infonce_4th") == 0
        checkpoints = Path("faap_outputs/faap_outputs_infonce_4th/checkpoints")
        shutil.copy(checkpoints / "epoch_0000.pth", checkpoints / "epoch_0009.pth")
        shutil.copytree("faap_outputs/faap_outputs_equal", "RUN")
        shutil.copytree("RUN", "faap_outputs/robust")
        shutil.copy("RUN/checkpoints/best.pth", "unet.pth")
        yield place


def _as_coco(source: Path, target: Path) -> None:
    """The data set of split folders once more, as COCO JSON: by splits, in one file, and with results."""
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for split, (group, folder) in product(("train", "val", "test"), (("female", "women"), ("male", "men"))):
        home = source / f"{folder}_split"
        given = json.loads((home / f"gender_{folder}_{split}.json").read_text())
        for image in given["images"]:
            name, number = f"{split}_{folder}_{image['file_name']}", len(images) + 1
            for place in (target / split, target / "pictures" / split):
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(home / split / image["file_name"], place / name)
            known = {"file_name": name, "id": number, "gender": group, "sex": group, "split": split}
            images.append(image | known)
            mine = [box for box in given["annotations"] if box["image_id"] == image["id"]]
            boxes += [box | {"image_id": number, "id": len(boxes) + place} for place, box in enumerate(mine, 1)]
    parts = {split: [image for image in images if image["split"] == split] for split in ("train", "val", "test")}
    for name, part in {"people": images, **parts}.items():
        ids = {image["id"] for image in part}
        found = [box for box in boxes if box["image_id"] in ids]
        content = json.dumps({"images": part, "annotations": found, "categories": given["categories"]})
        for path in (target / f"{name}.json", target / "labels" / f"{name}.json"):
            write_text(path, content)
    results = [{key: box[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} for box in found]
    write_text(target / "results.json", json.dumps(results))


def _film(path: Path) -> None:
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=5)
        stream.width, stream.height = 160, 128
        for level in (40, 120, 200):
            frame = av.VideoFrame.from_ndarray(np.full((128, 160, 3), level, np.uint8), format="rgb24")
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))


@pytest.fixture
def place(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, to work in; the runs of a comparison are made in this process, and each once."""
    copy = tmp_path / "place"
    shutil.copytree(world, copy, symlinks=True)
    monkeypatch.chdir(copy)
    monkeypatch.setattr("faap.report.charts.embed", lambda figure: "data:,")
    monkeypatch.setattr(LocalRunner, "train", functools.partial(_once, world.parent / "made"))
    few = copy / "recipes/ablations/infonce_4th"  # of its 14 variants
    few.mkdir(parents=True)
    shutil.copy(ROOT / "src/faap/recipes/ablations/infonce_4th/m2f.yaml", few)
    monkeypatch.setattr(sys.modules["faap.compare.compare"], "RECIPES", few.parents[1])
    return copy


def _once(made: Path, recipe: faap.Recipe, log: Path, threads: int) -> None:
    settings = yaml.safe_dump(recipe.to_dict() | {"output_dir": ""})
    known = made / hashlib.sha256(settings.encode()).hexdigest()
    if not known.exists():
        with pytest.MonkeyPatch.context() as patch:  # its page takes half of the time
            patch.setattr(sys.modules["faap.report.measure"], "write_report", lambda *_: None)
            faap.train(recipe, console=QUIET)
        shutil.copytree(recipe.output_dir, known)
    shutil.copytree(known, recipe.output_dir, dirs_exist_ok=True)


@pytest.mark.parametrize("command", [command for command in EVERY if command not in ELSEWHERE])
def test_the_command_runs(command: str, place: Path) -> None:
    if re.search(r" train[ _]| compare ", command) and "--resume" not in command:
        shutil.rmtree("faap_outputs")
    run = launched if "/accelerate " in command else typed
    assert run(command) == 0


def test_what_is_run_elsewhere_is_on_a_page_and_is_there() -> None:
    assert ELSEWHERE.keys() <= set(EVERY)
    for place in filter(None, ELSEWHERE.values()):
        file, _, name = place.partition("::")
        assert f"def {name}" in text_of(ROOT / file)


# What is around a page's Python, by the names it takes for granted.
def _around(page: Path) -> dict[str, object]:
    if "processor(" not in text_of(page):
        return {}
    processor = AutoImageProcessor.from_pretrained("DETECTOR", backend="pil")
    model = AutoModelForObjectDetection.from_pretrained("DETECTOR", dtype="float32")
    images = [Image.open(path) for path in sorted(Path("photos").iterdir())[:2]]
    return {"processor": processor, "model": model, "images": images, "generator": faap.load_generator("promenade")}


def measured(left: SimpleNamespace) -> bool:
    return bool(left.metrics["images"] == {"female": 4, "male": 4})


# What they leave, by page: that it ran to the end and did what the page says.
LEFT: dict[str, Callable[[SimpleNamespace], bool]] = {
    "README.md": lambda left: measured(left) and left.outputs.logits.shape[0] == 2,
    "README.ko.md": lambda left: measured(left) and left.outputs.logits.shape[0] == 2,
    "docs/deploy.md": lambda left: left.outputs.logits.shape[0] == 2 and left.perturbed.size == (160, 128),
    "docs/detectors.md": lambda left: left.build().name == "mine",
    "docs/evaluation.md": lambda left: left.changes.split.counts() == {"female": 4, "male": 4},
    "docs/generators.md": lambda left: left.metrics["images"] == {"female": 2, "male": 2},
    "docs/terms.md": lambda left: float(left.spread.value(left.view)) == -0.75,
    "docs/train.md": lambda left: left.result.run_dir.name == "faap_outputs_equal",
}


def test_no_python_of_a_page_is_left_out() -> None:
    assert {name_of(page) for page in PAGES if blocks(page, "python")} == LEFT.keys()


@pytest.mark.parametrize("name", LEFT)
def test_the_python_of_a_page_runs(name: str, place: Path) -> None:
    shutil.rmtree("faap_outputs")
    names = _around(ROOT / name) | {"__name__": "page"}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend("")
        for block in blocks(ROOT / name, "python"):
            exec(re.sub(r"images_per_epoch=\d+", "images_per_epoch=4, widths='8,8,8'", block), names)
    assert LEFT[name](SimpleNamespace(**names))


def slug(heading: str) -> str:
    """What GitHub calls a heading's place, and the site: letters, digits, _ and -, in small, with - for blanks."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", unicodedata.normalize("NFC", plain).strip().lower()).replace(" ", "-")


def anchors(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    return [slug(heading) for heading in re.findall(r"^#+ (.*)", text, re.MULTILINE)]


@every_page
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    assert len(anchors(page)) == len(set(anchors(page)))  # two of a name are numbered otherwise on GitHub and the site
    text = re.sub(r"^```.*?^```|`[^`]*`", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.is_relative_to(ROOT), link
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def site() -> dict[str, Any]:
    """What mkdocs.yml says; its one word of Python is left alone."""
    text = text_of(ROOT / "mkdocs.yml")
    return dict(yaml.safe_load(re.sub(r"!!python/\S+ ", "", text)))


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    listed = re.findall(r"[\w/.]+\.md", json.dumps(site()["nav"]))
    assert len(listed) == len(set(listed))
    there = {path.relative_to(ROOT / "docs").as_posix() for path in DOCS}
    assert {name for name in listed if not name.startswith("source/")} == there


def test_the_reference_has_every_public_name() -> None:
    rooms = ["data", "detectors", "perturbation", "objectives", "evaluation", "audit", "compare"]
    for name, page in {"faap": "api.md", **{f"faap.{room}": f"api/{room}.md" for room in rooms}}.items():
        source = text_of(ROOT / "src" / name.replace(".", "/") / "__init__.py")
        public = set(re.findall(r"^ *from [\w.]+ import (\w+) as \1$", source, re.MULTILINE))
        public |= set(getattr(importlib.import_module(name), "__all__", []))
        shown = {line.rpartition(".")[2] for line in re.findall(r"^::: (.*)", text_of(ROOT / "docs" / page), re.M)}
        assert shown == public - {"objectives"}, page


def test_the_figures_of_the_drawing_are_those_of_the_generator_that_ships() -> None:
    """A drawing is made by hand, and would not move with them."""
    drawn = set(re.findall(r"[−+]?\.\d{4}", text_of(ROOT / "docs/images/gap.svg")))
    metrics = Run(shipped_run()).read_metrics()
    gap, aps = metrics["gap"]["AP"], [metrics["changes"][group]["AP"] for group in ("female", "male")]
    known = [*gap["baseline_ci95"], *gap["perturbed_ci95"]]
    known += [change[side] for change in (gap, *aps) for side in ("baseline", "perturbed")]
    assert drawn <= {words.number(value, sign=sign).replace("0.", ".") for value in known for sign in (True, False)}
    levels = re.findall(r"= (\d\.\d\d)", text_of(ROOT / "docs/images/epsilon.svg"))
    assert levels == [f"{0.10 * std * 255:.2f}" for std in STD]
