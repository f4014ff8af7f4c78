"""Kill trainings, and see that the same command ends as if nothing had happened.

    .venv/bin/python tools/kill_test.py 1000 [--seed 0] [--jobs 2] [--dir /dev/shm] [--recipes equal,moco_4th]

Each experiment trains a recipe on a tiny data set in a process that is ended, again and again, and started again by its
own command, until it comes to its end; then generator, log and metrics must be those of a training that nobody ended,
but for seconds and dates. What ends it, in turn: SIGKILL at a random moment; SIGKILL before or after one of the
operations that write, flush, rename or remove a file, any of them; SIGTERM or SIGINT at a random moment, with which it
must exit with 143 or 130 within ten seconds; SIGKILL, and then its newest state is cut short, emptied, or has a bit
flipped; SIGKILL, and the folder is moved. Half of them load images with two processes.

Prints a line for each experiment that went wrong, and at the end the counts; exits with 1 if any did.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from faap import cli
from faap.errors import FaapError
from faap.files import file_sha256, read_json
from faap.promenade import build_promenade
from faap.runs import Run

# what a training writes with: the places between two of these are where it is killed
OPERATIONS = ("os.open", "os.fsync", "os.replace", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
SMALL = ["--epochs=3", "--batch_size=4", "--images_per_epoch=24", "--device=cpu", "--save_steps=2", "--widths=8,8,8"]
MOST = 40  # starts of one experiment, after which something is wrong
SECONDS = 300
BETWEEN, ASKED, DAMAGED, MOVED = "between two file operations", "asked to stop", "and a state damaged", "and moved"
KINDS = ("at a random moment", BETWEEN, BETWEEN, ASKED, DAMAGED, MOVED)


def killed_at(place: int, inside: Path) -> Callable[[], tuple[int, list[int]]]:
    """Let this process kill itself at one of its file operations; return their number, and which are in a save."""
    seen, saves, real = [0], list[int](), os.fsync

    def count(path: str = "") -> None:
        seen[0] += 1
        if path.endswith(".tmp"):
            saves.append(seen[0])
        if seen[0] == place:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, details: Any) -> None:
        if event == "open":
            flags, mode = details[2], details[1]
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not writes and not (isinstance(mode, str) and set(mode) & set("wax+")):
                return
        elif event not in OPERATIONS:
            return
        path = details[0] if details else None
        if isinstance(path, str | bytes | os.PathLike) and os.path.abspath(os.fsdecode(path)).startswith(str(inside)):
            count(os.fsdecode(path) if event == "os.rename" else "")

    def flushed(descriptor: int) -> None:
        real(descriptor)
        count(os.readlink(f"/proc/self/fd/{descriptor}"))

    sys.addaudithook(hook)
    os.fsync = flushed
    return lambda: (seen[0], saves)


class Child:
    """A process that trains: a fork of this one, in which everything is imported already."""

    def __init__(
        self, words: Sequence[str], folder: Path, log: Path, place: int = -1, count: Path | None = None
    ) -> None:
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1)
            os.dup2(out, 2)
            seen = killed_at(place, folder)
            status = cli.main(words)
            if count:
                count.write_text(json.dumps(seen()))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def wait(self, seconds: float) -> int | None:
        """Return the exit status, negative for a signal; None if it goes on."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        return None

    def send(self, signum: int) -> None:
        os.kill(self.pid, signum)


def left(run: Run) -> dict[str, Any]:
    """What a training left, but for seconds and dates."""
    metrics = run.read_metrics()
    metrics["provenance"].pop("date")
    rows = [{**row, "seconds": 0} for row in run.read_log()]
    return {"generator": file_sha256(run.generator / "model.safetensors"), "log": rows, "metrics": metrics}


class Experiments:
    """Trainings of some recipes on one data set."""

    def __init__(self, root: Path, places: list[str], recipes: list[str]) -> None:
        self.root, self.places, self.recipes = root, places, recipes
        self.whole: dict[tuple[str, int], dict[str, Any]] = {}
        self.operations: dict[tuple[str, int], tuple[int, list[int]]] = {}
        self.seconds: dict[tuple[str, int], float] = {}
        self.counts: Counter[str] = Counter()

    def words(self, folder: Path, recipe: str, workers: int) -> list[str]:
        """The command line of one of them."""
        return ["train", recipe, *SMALL, *self.places, f"--num_workers={workers}", f"--output_dir={folder}"]

    def uninterrupted(self, recipe: str, workers: int) -> None:
        """Train without being ended, and remember what came out."""
        folder, count = self.root / f"whole_{recipe}_{workers}", self.root / f"count_{recipe}_{workers}"
        log, started = folder.with_suffix(".log"), time.monotonic()
        if Child(self.words(folder, recipe, workers), folder, log, count=count).wait(SECONDS):
            raise SystemExit(log.read_text())
        key = recipe, workers
        self.seconds[key], self.whole[key] = time.monotonic() - started, left(Run(folder))
        self.operations[key] = json.loads(count.read_text())

    def one(self, number: int, seed: int) -> str:
        """Make one experiment; return what is wrong, or nothing."""
        rng = random.Random(f"{seed} {number}")
        recipe, workers = self.recipes[number % len(self.recipes)], rng.choice((0, 2))
        kind = KINDS[number // len(self.recipes) % len(KINDS)]
        folder, wanted, said = (
            self.root / f"run_{number}",
            rng.randint(2, 6),
            f"{number}: {recipe}, {workers} workers, {kind}",
        )
        for kills in range(MOST):
            log = folder.with_suffix(".log")
            going = kills < wanted
            all_of_them, saves = self.operations[recipe, workers]
            # every second one while a file is being written
            place = rng.choice([rng.randint(1, all_of_them), rng.choice(saves)]) if going and kind == BETWEEN else -1
            seconds = rng.uniform(0.1, self.seconds[recipe, workers])
            child = Child(self.words(folder, recipe, workers), folder, log, place)
            status = child.wait(seconds if going and place < 0 else SECONDS)
            if status is None and not going:
                child.send(signal.SIGKILL)
                return f"{said}: did not end in {SECONDS} s"
            if status is None:
                asks = kind == ASKED and self.listens(folder, child.pid)
                signum = rng.choice((signal.SIGTERM, signal.SIGINT)) if asks else signal.SIGKILL
                child.send(signum)
                status = child.wait(10)
                if status is None:
                    child.send(signal.SIGKILL)
                    return f"{said}: did not end within 10 s of {signum.name}"
                if asks and status not in (0, 128 + signum) and not Run(folder).is_complete():
                    return f"{said}: exit status {status} after {signum.name}"
            if status == 0:
                found = left(Run(folder))
                wrong = [name for name, value in self.whole[recipe, workers].items() if found[name] != value]
                wrong += [path.name for path in folder.rglob("*.tmp")]
                if wrong:
                    return f"{said}: {', '.join(wrong)}"
                shutil.rmtree(folder)
                log.unlink()
                return ""
            if status not in (-signal.SIGKILL, 143, 130) and not (status < 0 and Run(folder).is_complete()):
                if "Invalid thread pool" not in (printed := log.read_text()[-1000:]):
                    return f"{said}: exit status {status}: {printed[-300:]}"
                log.unlink()  # now and then a fork has no pool of torch's, which a process of its own would have
                continue
            self.counts.update(["kills", kind] + ["inside a save"] * bool([*folder.rglob(".*.tmp")]))
            if kind == DAMAGED:
                self.damage(folder, rng)
            if kind == MOVED and folder.exists():
                log.rename(folder.with_name(f"run_{number}_{kills}.log"))
                folder = folder.rename(folder.with_name(f"run_{number}_{kills}"))
        return f"{said}: not at its end after {MOST} starts"

    def listens(self, folder: Path, pid: int) -> bool:
        """Whether a process has begun to train there, from when on it takes signals."""
        with contextlib.suppress(FaapError):
            return bool(read_json(Run(folder).status)["pid"] == pid)
        return False

    def damage(self, folder: Path, rng: random.Random) -> None:
        """Harm the newest state there is."""
        if states := sorted(folder.glob("checkpoints/*.pth"), key=lambda path: path.stat().st_mtime_ns):
            content, way = bytearray(states[-1].read_bytes()), rng.choice(("cut short", "emptied", "a flipped bit"))
            if content:
                bit = rng.randrange(8 * len(content))
                content[bit // 8] ^= 1 << bit % 8
            states[-1].write_bytes({"cut short": content[: len(content) // 2], "emptied": b""}.get(way, content))
            self.counts[f"state {way}"] += 1

    def all(self, wanted: int, seed: int, first: int, step: int) -> list[str]:
        """Make every so many-th experiment until trainings have been ended often enough; return what is wrong."""
        wrong: list[str] = []
        while self.counts["kills"] < wanted:
            if said := self.one(first, seed):
                wrong.append(said)
                print(said, flush=True)
            self.counts["experiments"] += 1
            first += step
        return wrong


def main() -> int:
    """Parse the command line, and make the experiments in some processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int, help="how many times a training is ended")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="experiments at the same time")
    parser.add_argument(
        "--dir", help="where; a folder in memory is fastest (default: the system's for temporary files)"
    )
    parser.add_argument("--recipes", default="equal,infonce_4th,wgan_7th,moco_4th,contrastive_1st,infonce_3rd_fix2")
    parser.add_argument(
        "--data", default="", help="data set and detector, as in DATA:DETECTOR (default: a tiny Promenade)"
    )
    args, started = parser.parse_args(), time.time()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.dir) as place:
        root = Path(place)
        os.environ |= {"FAAP_CACHE_DIR": str(root / "cache"), "HF_HUB_OFFLINE": "1"}
        data, _, detector = args.data.partition(":")
        data = data or str(build_promenade(root, {"train": 16, "val": 3, "test": 4}))
        places = [f"--dataset_root={data}", f"--detr_checkpoint={detector or 'promenade'}"]
        experiments = Experiments(root, places, args.recipes.split(","))
        for recipe in experiments.recipes:
            for workers in (0, 2):
                experiments.uninterrupted(recipe, workers)
        pids = []
        for job in range(args.jobs):
            if not (pid := os.fork()):
                wrong = experiments.all(-(-args.kills // args.jobs), args.seed, job, args.jobs)
                (root / f"counts_{job}").write_text(json.dumps(experiments.counts | {"mismatches": len(wrong)}))
                os._exit(0)
            pids.append(pid)
        for pid in pids:
            os.waitpid(pid, 0)
        counts: Counter[str] = Counter()
        for job in range(args.jobs):
            counts.update(json.loads((root / f"counts_{job}").read_text()))
    print(json.dumps({**counts, "seed": args.seed, "minutes": round((time.time() - started) / 60, 1)}))
    numbers = f"{counts['kills']} kills, {counts['inside a save']} inside a save, {counts[BETWEEN]} between files"
    print(f"{numbers}, {counts['mismatches']} mismatches")
    return int(bool(counts["mismatches"]))


if __name__ == "__main__":
    sys.exit(main())
