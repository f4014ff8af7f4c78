"""Feed faap files that are not what they should be: each is used or refused in words, and nothing else happens.

    .venv/bin/python tools/fuzz.py 100000 [--seed 0] [--jobs 2] [--kinds annotations,checkpoint]

Of each kind of file there is a good one. A mutant of it has a value replaced, deleted, renamed or nested (JSON, YAML,
what a checkpoint holds), or its bytes flipped, cut, doubled or overwritten. What is counted: tracebacks (an error that
is no FaapError), hangs (more than 20 seconds), and escapes: a file outside of the data set's folder that is opened, a
module imported, a process or a connection begun because of what a file says. Memory is limited to 2 GiB above what faap
takes.

Prints a line for each, with the seed and number that make it again, and at the end the counts; exits with 1 if there
are any.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from mutants import PLAIN, TENSORS, mutants  # noqa: I001

import faap
from faap.audit import read_results
from faap.check import check
from faap.compare.standing import standing
from faap.config import load_recipe, run_recipe
from faap.data import read_image
from faap.detectors import load_detector
from faap.errors import FaapError
from faap.perturbation import build_generator, load_generator, save_generator
from faap.process import Terminal
from faap.promenade import build_promenade, detector_dir
from faap.runs import Run
from faap.training.checkpoints import recipe_to_resume, save_checkpoint
from faap.training.trainer import Trainer

SECONDS = 20
HOSTILE = [
    "../secret.png",
    "evil",
    "evil:build",
    "evil.py",
    "[/b]\x1b[31m",
    "a\0b",
    "\ud800",
    "..",
    "/dev/zero",
    "pipe",
]
# what begins something outside of this process
OUTSIDE = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.fork", "ctypes.dlopen")


class Hang(BaseException):
    """It took too long."""


class Watch:
    """Notes what is opened, imported or begun while it is on."""

    def __init__(self, inside: Path) -> None:
        own = (sys.prefix, sys.base_prefix, str(Path(faap.__file__).parents[1]), "/proc", "/sys", "/usr", "/etc/ssl")
        self.allowed = tuple(map(os.path.realpath, (inside, *own, "/dev/null", "/dev/urandom")))
        self.escapes: list[str] = []
        self.on = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, details: Any) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(details[0], str | bytes):
            path = os.path.realpath(os.fsdecode(details[0]))
            if not path.startswith(self.allowed):
                self.escapes.append(f"opened {path}")
        elif event in OUTSIDE or (event == "import" and str(details[0]).startswith("evil")):
            self.escapes.append(f"{event} {details!r:.100}")


class Kinds:
    """The good files, and for each kind what writes a mutant and what uses it."""

    def __init__(self, root: Path) -> None:
        self.root, self.inside = root, root / "inside"
        self.inside.mkdir()
        Image.new("RGB", (9, 9)).save(root / "secret.png")
        (root / "evil.py").write_text(f"open({str(root / 'touched')!r}, 'w')\n")
        shutil.copy(root / "evil.py", self.inside / "evil.py")
        os.chdir(self.inside)
        os.mkfifo(self.inside / "pipe")
        self.data = build_promenade(self.inside, {"train": 2, "val": 2, "test": 2})
        source = json.loads((self.data / "women_split" / "gender_women_test.json").read_text())
        other = json.loads((self.data / "men_split" / "gender_men_test.json").read_text())
        for group, each in (("female", source), ("male", other)):
            folder = {"female": "women", "male": "men"}[group]
            for image in each["images"]:
                image |= {"gender": group, "file_name": f"{folder}_split/test/{image['file_name']}"}
                image["id"] += 1000 * (group == "male")
            for annotation in each["annotations"]:
                annotation["image_id"] += 1000 * (group == "male")
                annotation["id"] += 10**6 * (group == "male")
        self.coco = {key: source[key] + other[key] for key in ("images", "annotations")}
        self.coco["categories"] = source["categories"]
        (self.data / "good.json").write_text(json.dumps(self.coco))
        self.table = "".join(f"{image['id']},{image['gender']}\n" for image in self.coco["images"])
        dataset = faap.load_dataset(self.data)
        self.split = faap.load_dataset(self.data, annotations="good.json").split("all")
        boxes = [
            {"image_id": r.image_id, "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.5} for r in self.split.records
        ]
        self.results = boxes
        small: dict[str, Any] = {
            "batch_size": 4,
            "images_per_epoch": 4,
            "widths": "8,8,8",
            "queue_size": 8,
            "epochs": 1,
        }
        small |= {"device": "cpu", "dataset_root": str(self.data), "detr_checkpoint": "promenade"}
        self.recipe = load_recipe("moco_4th", **small)
        self.fields = self.recipe.to_dict()
        trainer = Trainer(self.recipe, torch.device("cpu"), load_detector("promenade"), dataset.split("train"))
        self.state = trainer.state_dict() | {"epoch": 0, "log": []}
        self.trained = faap.train(self.recipe, console=Terminal(quiet=True))
        self.run = self.trained.run_dir
        save_generator(build_generator(widths=(8, 8, 8)), self.inside / "generator")
        self.detector = Path(shutil.copytree(detector_dir("biased"), self.inside / "detector"))
        self.good = {
            path: path.read_bytes()
            for folder in (self.run, self.inside / "generator", self.detector)
            for path in folder.rglob("*")
            if path.is_file()
        }

    def mutant(self, rng: random.Random, content: Any, odd: list[Any]) -> Any:
        """Content with one to three things changed."""
        for _ in range(rng.randint(1, 3)):
            ((_, content),) = mutants(content, 1, rng.randrange(2**31), odd)
        return content

    def bytes_of(self, rng: random.Random, content: bytes) -> bytes:
        """Bytes with one to three things done to them."""
        for _ in range(rng.randint(1, 3)):
            at, size = rng.randrange(len(content) + 1), rng.choice((1, 1, 4, 100))
            new = rng.choice((rng.randbytes(size), b"\0" * size, b"\xff" * size, b"[" * size, content[:size]))
            way = rng.choice(("over", "over", "insert", "cut", "drop"))
            content = {
                "over": content[:at] + new + content[at + size :],
                "insert": content[:at] + new + content[at:],
                "cut": content[:at],
                "drop": content[:at] + content[at + size :],
            }[way]
        return content

    def text(self, rng: random.Random, content: Any) -> bytes:
        """A JSON of it, mutated as a structure or as bytes."""
        if rng.random() < 0.75:
            with contextlib.suppress(ValueError):
                return json.dumps(self.mutant(rng, content, PLAIN + HOSTILE)).encode("utf-8", "surrogatepass")
        return self.bytes_of(rng, json.dumps(content).encode())

    def annotations(self, rng: random.Random) -> None:
        (self.data / "bad.json").write_bytes(self.text(rng, copy.deepcopy(self.coco)))
        dataset = faap.load_dataset(self.data, annotations="bad.json", skip_bad=rng.random() < 0.5)
        check(dataset, images=False)
        for record in dataset.split("all").records[:2]:
            read_image(record.path)

    def tables(self, rng: random.Random) -> None:
        (self.data / "bad.csv").write_bytes(self.bytes_of(rng, ("id,gender\n" + self.table).encode()))
        check(faap.load_dataset(self.data, annotations="good.json", group_csv="bad.csv"), images=False)

    def recipes(self, rng: random.Random) -> None:
        path, fields = self.inside / "recipe.yaml", self.fields
        # a recipe that a person types may name terms that lie beside it, and evil.py does (docs/terms.md)
        odd = PLAIN + [each for each in HOSTILE if each not in ("evil", "evil.py")]
        if rng.random() < 0.3:
            path.write_bytes(self.bytes_of(rng, yaml.safe_dump(fields).encode()))
        else:
            path.write_text(yaml.safe_dump(self.mutant(rng, dict(fields), odd), allow_unicode=True), "utf-8", "replace")
        recipe = load_recipe(path)
        recipe.schedules() if recipe.epochs < 10_000 else None

    def runs(self, rng: random.Random) -> None:
        name = rng.choice(["config.yaml", "metrics.json", "train_log.jsonl", "status.json", "readings.jsonl"])
        path = self.run / name
        content = self.good[path]
        if name == "config.yaml":
            fields = self.mutant(rng, yaml.safe_load(content), PLAIN + HOSTILE)
            path.write_text(yaml.safe_dump(fields, allow_unicode=True), "utf-8", "replace")
        elif name.endswith("json"):
            path.write_bytes(self.text(rng, json.loads(content)))
        else:
            path.write_bytes(b"".join(self.text(rng, json.loads(line)) + b"\n" for line in content.splitlines()))
        run = Run(self.run)
        steps = [run.read_metrics, run.read_log, run.read_status, lambda: run.read_on("x"), lambda: run_recipe(run)]
        steps += [lambda: standing(self.recipe), lambda: load_generator(self.run)]
        try:
            for step in steps:
                with contextlib.suppress(FaapError):
                    step()
        finally:
            path.write_bytes(content)

    def results_(self, rng: random.Random) -> None:
        (self.inside / "results.json").write_bytes(self.text(rng, copy.deepcopy(self.results)))
        read_results(self.inside / "results.json", self.split)

    def checkpoints(self, rng: random.Random) -> None:
        path = self.inside / "bad.pth"
        if rng.random() < 0.4:
            save_checkpoint(path, self.state)
            path.write_bytes(self.bytes_of(rng, path.read_bytes()))
        else:
            torch.save(self.mutant(rng, self.state, PLAIN + TENSORS + HOSTILE), path)
        with contextlib.suppress(FaapError):
            load_generator(path)
        recipe_to_resume(path, "moco_4th", {})

    def generators(self, rng: random.Random) -> None:
        folder = self.inside / "generator"
        name = rng.choice(["config.json", "model.safetensors"])
        content = self.good[folder / name]
        if name == "config.json":
            (folder / name).write_bytes(self.text(rng, json.loads(content)))
        elif rng.random() < 0.5:
            (folder / name).write_bytes(self.bytes_of(rng, content))
        else:
            weights = {f"w{n}": torch.zeros(rng.choice((0, 1, 8)), 3) for n in range(rng.randint(0, 4))}
            save_file(weights, folder / name)
        try:
            load_generator(folder)
        finally:
            (folder / name).write_bytes(content)

    def detectors(self, rng: random.Random) -> None:
        name = rng.choice(["config.json", "config.json", "preprocessor_config.json", "model.safetensors"])
        content = self.good[self.detector / name]
        bad = self.bytes_of(rng, content) if name.endswith("tensors") else self.text(rng, json.loads(content))
        (self.detector / name).write_bytes(bad)
        try:
            load_detector(self.detector)
        finally:
            (self.detector / name).write_bytes(content)

    def images(self, rng: random.Random) -> None:
        kind, image = rng.choice(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "EPS"]), io.BytesIO()
        picture = Image.new("RGB", (rng.randint(1, 90), rng.randint(1, 90)), "red")
        picture.save(image, kind, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0") if kind == "JPEG" else picture.save(image, kind)
        (self.inside / "bad.png").write_bytes(self.bytes_of(rng, image.getvalue()))
        read_image(self.inside / "bad.png")


# of a hundred inputs, how many are of a kind: what loads slowly comes less often
SHARES = {"annotations": 30, "tables": 12, "recipes": 14, "runs": 4, "results_": 14, "checkpoints": 4, "generators": 6}
SHARES |= {"detectors": 1, "images": 15}


def one(kinds: Kinds, watch: Watch, kind: str, rng: random.Random) -> str:
    """Feed one input; return "used" or "refused", or what went wrong."""

    def late(*_: object) -> None:
        raise Hang

    use: Callable[[random.Random], None] = getattr(kinds, kind)
    watch.escapes.clear()
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    watch.on = True
    try:
        use(rng)
        found = "used"
    except FaapError as error:
        found = "refused" if str(error).strip() else "traceback: an error without a word"
    except Hang:
        found = "hang"
    except BaseException:
        found = f"traceback: {traceback.format_exc(limit=-3)}"
    finally:
        watch.on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
    if (kinds.root / "touched").exists():
        watch.escapes.append("code was run")
        (kinds.root / "touched").unlink()
    return f"escape: {watch.escapes[:3]}" if watch.escapes else found


def work(root: Path, kinds: list[str], numbers: range, seed: int) -> None:
    """Feed inputs, and leave the counts."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    made, watch, counts = Kinds(root), Watch(root / "inside"), Counter[str]()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**31, resource.RLIM_INFINITY))
    for number in numbers:
        rng = random.Random(f"{seed} {number}")
        kind = rng.choices(kinds, [SHARES[each] for each in kinds])[0]
        found = one(made, watch, kind, rng)
        what = found.partition(":")[0]
        counts.update([what, kind.strip("_")])
        if what not in ("used", "refused"):
            print(f"--seed {seed}, input {number}, {kind}: {found}", flush=True)
    counts["MiB"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - used) >> 20
    (root / "counts.json").write_text(json.dumps(counts))


def main() -> int:
    """Parse the command line, and feed in some processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--kinds", default=",".join(each.strip("_") for each in SHARES))
    args, started, counts = parser.parse_args(), time.time(), Counter[str]()
    kinds = [each if each in SHARES else f"{each}_" for each in args.kinds.split(",")]
    with tempfile.TemporaryDirectory() as place:
        os.environ |= {"FAAP_CACHE_DIR": f"{place}/cache", "HF_HUB_OFFLINE": "1"}
        pids = []
        for job in range(args.jobs):
            root = Path(place).resolve() / str(job)
            root.mkdir()
            if not (pid := os.fork()):
                status = 1
                try:
                    work(root, kinds, range(args.first + job, args.first + args.inputs, args.jobs), args.seed)
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    os._exit(status)
            pids.append(pid)
        ended = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        for job in range(args.jobs):
            if (left := Path(place) / str(job) / "counts.json").exists():
                each = json.loads(left.read_text())
                counts["most MiB"] = max(counts["most MiB"], each.pop("MiB"))
                counts.update(each)
    print(json.dumps({**counts, "seed": args.seed, "minutes": round((time.time() - started) / 60, 1), "ended": ended}))
    wrong = [counts["traceback"], counts["hang"], counts["escape"]]
    print("{} tracebacks, {} hangs, {} escapes".format(*wrong))
    return int(any(wrong) or any(ended))


if __name__ == "__main__":
    sys.exit(main())
