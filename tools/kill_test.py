"""Kill trainings, and see that the same command ends as if nothing had happened.

    .venv/bin/python tools/kill_test.py 1000 [--seed 0] [--jobs 2] [--dir /dev/shm] [--recipes equal,moco_4th]

Each experiment trains a recipe on a tiny data set in a process that is ended, again and again, and started again by its
own command, until it comes to its end; then generator, log and metrics must be those of a training that nobody ended,
but for seconds and dates. What ends it, in turn: SIGKILL at a random moment; SIGKILL before or after one of the
operations that write, flush, rename or remove a file, any of them; SIGTERM or SIGINT at a random moment, with which it
must exit with 143 or 130 within ten seconds; SIGKILL, and then its newest state is cut short, emptied, or has a bit
flipped; SIGKILL, and the folder is moved, or all dates of files are set anew, years back and forth, and the clock by a
year; SIGKILL of one of two processes that train together, of which the other must end by itself within a minute; a disk
that is full, or read-only at the next start, or an image of the data set that vanishes while it trains, with each of
which it must end with one line of what is wrong. Half of them load images with two processes. Disks take a mount, which
takes root; without, they are left out.

Prints a line for each experiment that went wrong, and at the end the counts; exits with 1 if any did.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
CLOCK, PARTNER, FULL = "and clock and dates of files set", "one of two processes", "ended by a full disk"
READ_ONLY, VANISHED = "and refused by a read-only disk", "ended by a vanished image"
KINDS = ("at a random moment", BETWEEN, ASKED, BETWEEN, DAMAGED, MOVED, BETWEEN, CLOCK, PARTNER, FULL, READ_ONLY)
KINDS += (BETWEEN, VANISHED)
DISKS = (FULL, READ_ONLY)
# what the one line says with which it ends by itself
LINES = {FULL: "make room", READ_ONLY: "Read-only file system", VANISHED: "error: "}
YEAR = 3e7
# now and then a fork has no pool of torch's, which a process of its own would have
NO_POOL = "Invalid thread pool"


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
        self,
        words: Sequence[str],
        folder: Path,
        log: Path,
        *,
        place: int = -1,
        count: Path | None = None,
        environment: Mapping[str, str] | None = None,
        late: float = 0,
    ) -> None:
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        status, now = 1, time.time
        try:
            os.environ |= environment or {}
            time.time = lambda: now() - late
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
    """Trainings of some recipes on one data set, which is theirs alone."""

    def __init__(self, root: Path, data: Path, detector: str, recipes: list[str]) -> None:
        self.root, self.data, self.recipes = root, data, recipes
        self.places = [f"--dataset_root={data}", f"--detr_checkpoint={detector}"]
        self.whole: dict[tuple[str, int, int], dict[str, Any]] = {}
        self.operations: dict[tuple[str, int, int], tuple[int, list[int]]] = {}
        self.seconds: dict[tuple[str, int, int], float] = {}
        self.counts: Counter[str] = Counter()
        self.disks = mounted(self.root / "disk", "1m")
        if self.disks:
            subprocess.run(["umount", self.root / "disk"], check=True)

    def start(self, key: tuple[str, int, int], folder: Path, log: Path, **options: Any) -> list[Child]:
        """Start a training: a recipe, with so many processes that load images, in so many that train."""
        recipe, workers, processes = key
        words = ["train", recipe, *SMALL, *self.places, f"--num_workers={workers}", f"--output_dir={folder}"]
        if processes == 1:
            return [Child(words, folder, log, **options)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        where = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        return [Child(words, folder, log, environment=where | rank, **options) for rank in ranks]

    def uninterrupted(self, key: tuple[str, int, int]) -> None:
        """Train without being ended, once, and remember what came out."""
        if key in self.whole:
            return
        folder = self.root / "whole_{}_{}_{}".format(*key)
        log, count, started = folder.with_suffix(".log"), folder.with_suffix(".json"), time.monotonic()
        for child in self.start(key, folder, log, count=count):
            if child.wait(SECONDS):
                raise SystemExit(log.read_text())
        self.seconds[key], self.whole[key] = time.monotonic() - started, left(Run(folder))
        self.operations[key] = json.loads(count.read_text())

    def one(self, number: int, seed: int) -> str:
        """Make one experiment; return what is wrong, or nothing."""
        rng = random.Random(f"{seed} {number}")
        recipe, kind = self.recipes[number % len(self.recipes)], KINDS[number // len(self.recipes) % len(KINDS)]
        key = recipe, rng.choice((0, 2)), 1 + (kind == PARTNER)
        if kind in DISKS and not self.disks:
            return ""
        self.uninterrupted(key)
        disk = self.root / f"disk_{number}"
        folder = disk / "run" if kind in DISKS else self.root / f"run_{number}"
        said = f"{number}: {recipe}, {key[1]} workers, {kind}"
        try:
            if kind in DISKS:
                mounted(disk, f"{rng.randint(60, 1500)}k" if kind == FULL else "64m")
            return wrong if (wrong := self.until_it_ends(key, kind, folder, rng)) == "" else f"{said}: {wrong}"
        finally:
            if kind in DISKS:
                subprocess.run(["umount", disk], check=True)

    def until_it_ends(self, key: tuple[str, int, int], kind: str, folder: Path, rng: random.Random) -> str:
        """Start a training, and end it, until it has come to its end; return what is wrong, or nothing."""
        wanted, ended = rng.randint(2, 6), 0
        for start in range(MOST):
            log = self.root / f"{folder.name}_{start}.log"
            going, (operations, saves) = ended < wanted, self.operations[key]
            if kind == FULL and ended:  # room for some more each time
                subprocess.run(["mount", "-o", f"remount,size={2 ** (10 + ended)}k", folder.parent], check=True)
            if kind == READ_ONLY and going and ended and folder.exists():
                said = self.refuses(key, folder, log)
                if said:
                    return said
            # every second one while a file is being written
            place = rng.choice([rng.randint(1, operations), rng.choice(saves)]) if going and kind == BETWEEN else -1
            options: dict[str, Any] = {"late": YEAR * rng.choice((-1, 1))} if kind == CLOCK else {"place": place}
            children = self.start(key, folder, log, **options)
            child = rng.choice(children)
            by_itself = place > 0 or kind == FULL
            # rather early than late, as who goes on has less to do than who begins
            seconds = min(rng.uniform(0.1, self.seconds[key]) for _ in range(2))
            status = child.wait(seconds if going and not by_itself else SECONDS)
            asks = status is None and kind == ASKED and self.has_begun(folder, children)
            signum = rng.choice((signal.SIGTERM, signal.SIGINT)) if asks else signal.SIGKILL
            if status is None and not (going or kind == FULL):
                child.send(signal.SIGKILL)
                return f"did not end in {SECONDS} s"
            if status is None and kind == VANISHED:
                status = self.without_an_image(child, rng)
            elif status is None:
                child.send(signum)
                status = child.wait(10)
                if status is None:
                    child.send(signal.SIGKILL)
                    return f"did not end within 10 s of {signum.name}"
                if asks and status not in (0, 128 + signum) and not Run(folder).is_complete():
                    return f"exit status {status} after {signum.name}"
            for other in children:
                if other is not child and (wrong := self.follows(other, status, self.has_begun(folder, children))):
                    return wrong
            if status == 0:
                return self.is_as_wanted(key, folder)
            printed = log.read_text()[-1000:] if log.exists() else ""
            log.unlink(missing_ok=True)
            if NO_POOL in printed:
                continue
            told = status == 2 and kind in (FULL, VANISHED) and LINES[kind] in printed and "Traceback" not in printed
            if not (told or status in (-signal.SIGKILL, 143, 130) or (status < 0 and Run(folder).is_complete())):
                return f"exit status {status}: {printed[-300:]}"
            ended += 1
            self.counts.update([kind] if told else ["kills", kind])
            self.counts["inside a save"] += not told and bool([*folder.rglob(".*.tmp")])
            if kind == DAMAGED:
                self.damage(folder, rng)
            if kind == CLOCK:
                for path in folder.rglob("*"):
                    os.utime(path, (rng.uniform(1, 60 * YEAR),) * 2)
            if kind == MOVED and folder.exists():
                folder = folder.rename(self.root / f"{folder.name}_{start}")
        return f"not at its end after {MOST} starts"

    def is_as_wanted(self, key: tuple[str, int, int], folder: Path) -> str:
        """Compare what a training left with what an uninterrupted one did; return what differs."""
        found = left(Run(folder))
        wrong = [name for name, value in self.whole[key].items() if found[name] != value]
        wrong += [path.name for path in folder.rglob("*.tmp")]
        shutil.rmtree(folder)
        return ", ".join(wrong)

    def follows(self, other: Child, status: int, met: bool) -> str:
        """Wait for a process whose partner has ended; return what is wrong."""
        followed = other.wait(60 if met else 2)
        if followed is None:
            other.send(signal.SIGKILL)
            other.wait(60)
            # where two have not met yet, one waits for the other until who started them ends it, as torchrun does
            return "the other process did not end within a minute" if met else ""
        return "" if followed in (0, 2) and (status or not followed) else f"the other's exit status is {followed}"

    def refuses(self, key: tuple[str, int, int], folder: Path, log: Path) -> str:
        """Start a training on a disk that nobody can write to; return what is wrong with how it ends."""
        subprocess.run(["mount", "-o", "remount,ro", folder.parent], check=True)
        status = self.start(key, folder, log)[0].wait(SECONDS)
        printed = log.read_text()
        if not Run(folder).is_complete() and NO_POOL not in printed:
            if status != 2 or LINES[READ_ONLY] not in printed or "Traceback" in printed:
                return f"exit status {status} on a read-only disk: {printed[-300:]}"
            self.counts[READ_ONLY] += 1
        subprocess.run(["mount", "-o", "remount,rw", folder.parent], check=True)
        log.unlink()
        return ""

    def without_an_image(self, child: Child, rng: random.Random) -> int:
        """Take an image of the data set away until a process has ended; return its exit status."""
        image = rng.choice(sorted(self.data.rglob("*.jpg")))
        away = image.rename(image.with_suffix(".away"))
        status = child.wait(SECONDS)
        away.rename(image)
        return -1 if status is None else status

    def has_begun(self, folder: Path, children: Sequence[Child]) -> bool:
        """Whether processes have begun to train there, from when on they take signals and have met."""
        with contextlib.suppress(FaapError):
            return bool(read_json(Run(folder).status)["pid"] == children[0].pid)
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


def mounted(place: Path, size: str) -> bool:
    """Put a disk of its own there, in memory; return whether that is allowed."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    return subprocess.run(command, capture_output=True).returncode == 0


def main() -> int:
    """Parse the command line, and make the experiments in some processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int, help="how many times a training is ended")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="experiments at the same time")
    parser.add_argument(
        "--dir", help="where; a folder in memory is fastest (default: the system's for temporary files)"
    )
    parser.add_argument(
        "--recipes", default="equal,infonce_4th,wgan_7th,moco_4th,contrastive_1st,infonce_3rd,infonce_3rd_fix2"
    )
    parser.add_argument(
        "--data", default="", help="data set and detector, as in DATA:DETECTOR (default: a tiny Promenade)"
    )
    args, started = parser.parse_args(), time.time()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=args.dir) as place:
        root = Path(place)
        os.environ["HF_HUB_OFFLINE"] = "1"
        data, _, detector = args.data.partition(":")
        data = data or str(build_promenade(root, {"train": 16, "val": 3, "test": 4}))
        pids = []
        for job in range(args.jobs):
            if not (pid := os.fork()):
                own = Path(shutil.copytree(data, root / str(job) / "data"))
                os.environ["FAAP_CACHE_DIR"] = str(root / str(job) / "cache")
                experiments = Experiments(own.parent, own, detector or "promenade", args.recipes.split(","))
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
