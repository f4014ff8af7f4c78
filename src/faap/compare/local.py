"""Where runs are made: in processes of this machine."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console

from faap.config import Recipe, recipe_class
from faap.errors import FaapError
from faap.process import end_with_stdin
from faap.training import train


class LocalRunner:
    """Makes the runs of one comparison, several at a time from as many threads.

    Each is a process of its own, which ends when this one does; of several GPUs it gets one. Another place for runs is
    a subclass that makes them elsewhere.

    Attributes:
        jobs: runs at the same time, unless said otherwise; None: all, for the place has a queue of its own.
        command: what a process is started with. -P: like the command faap, it imports nothing because of the folder
            that it is started in.
    """

    jobs: ClassVar[int | None] = 1
    command = (sys.executable, "-P", "-m", "faap.compare")

    def __init__(self) -> None:
        self._stops: list[Callable[[], object]] = []  # end the runs under way
        self._ended = False
        self._lock = threading.Lock()
        self._lent: list[int] = []  # a GPU's number for each run on it

    def open(self, runs: Sequence[Recipe], console: Console) -> AbstractContextManager[None]:
        """Return the block in which these runs can be made."""
        return nullcontext()

    def end(self) -> None:
        """End the runs under way, and those that begin from now on."""
        with self._lock:
            self._ended = True
            for stop in self._stops:
                stop()

    @contextmanager
    def _under_way(self, stop: Callable[[], object]) -> Iterator[None]:
        """Take how a run is ended for as long as it lasts; if the others have been, this one is now."""
        with self._lock:
            self._stops.append(stop)
            if self._ended:
                stop()
        try:
            yield
        finally:
            with self._lock:
                self._stops.remove(stop)

    def train(self, recipe: Recipe, log: Path, threads: int) -> None:
        """Make one run.

        Args:
            recipe: what to train.
            log: what is printed is added to this file.
            threads: of the run, unless OMP_NUM_THREADS says otherwise.

        Raises:
            FaapError: if the run fails; of a process, it is the last line that it printed.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        # threads that wait spin a little, but do not starve those of another run
        environment = {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "10000", **os.environ}
        with self._gpu(recipe) as gpu, log.open("ab") as out:
            before = out.tell()
            # its input stays open: the end of it tells the process that nobody waits for it any more
            with subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=out, stderr=out, bufsize=0, env=environment | gpu
            ) as process:
                assert process.stdin is not None
                with self._under_way(process.terminate):
                    with suppress(BrokenPipeError):  # it has ended already, and its log says why
                        process.stdin.write(json.dumps(sent(recipe)).encode() + b"\n")
                    status = process.wait()
        if status:
            printed = log.read_bytes()[before:].decode(errors="replace").strip() or "nothing was printed"
            said = printed.splitlines()[-1].removeprefix("error: ")
            how = f"exit status {status}" if status > 0 else f"ended by {signal.Signals(-status).name}"
            raise FaapError(f"{said} ({how}, log {log})")

    @contextmanager
    def _gpu(self, recipe: Recipe) -> Iterator[dict[str, str]]:
        """Lend a run the GPU that has the fewest runs of this comparison; as environment variables of its process."""
        count = torch.cuda.device_count()
        if count < 2 or recipe.device not in ("auto", "cuda"):
            yield {}
            return
        names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        with self._lock:
            number = min(range(count), key=self._lent.count)
            self._lent.append(number)
        try:
            yield {"CUDA_VISIBLE_DEVICES": names[number] if len(names) >= count else str(number)}
        finally:
            self._lent.remove(number)


def sent(recipe: Recipe) -> dict[str, Any]:
    """Return what another process makes the recipe of: its fields, and where terms of the user's own lie."""
    return {"fields": recipe.to_dict(), "terms": recipe.own.source if recipe.own else ""}


def rebuilt(message: Mapping[str, Any]) -> Recipe:
    """Return the recipe that another process of the same user has sent."""
    return recipe_class(message["terms"])(**message["fields"])


def child() -> None:
    """Train the recipe that the first line of standard input holds; give up when standard input ends."""
    recipe = rebuilt(json.loads(sys.stdin.readline()))
    end_with_stdin()
    train(recipe)
