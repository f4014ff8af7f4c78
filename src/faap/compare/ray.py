"""The runs of a comparison as tasks of a Ray cluster; on its node each is the same process as on this machine."""

import logging
import os
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console

from faap.compare.gather import title
from faap.compare.local import LocalRunner, rebuilt, sent
from faap.compare.standing import standing
from faap.config import Recipe
from faap.errors import FaapError

_SHARED = "The working directory and output_dir must lie on storage that every node shares."


class RayRunner(LocalRunner):
    """Joins a Ray cluster, or starts one on this machine that ends with the comparison.

    Every node must see this working directory and the data, and have the same Python environment. A run whose worker is
    lost is made again by Ray, from its last checkpoint on.

    Args:
        address: "auto", "HOST:PORT" or "ray://HOST:PORT"; empty: what `ray.init` finds, or a new cluster.
    """

    jobs: ClassVar[int | None] = None

    def __init__(self, address: str = "") -> None:
        super().__init__()
        self.address = address

    @contextmanager
    def open(self, runs: Sequence[Recipe], console: Console) -> Iterator[None]:
        """Join the cluster for the block.

        Raises:
            FaapError: if Ray is not installed or not there at the address, or a run asks for a GPU by its number.
        """
        try:
            import ray
        except ImportError:
            raise FaapError("--ray needs Ray, which is not installed: pip install 'faap[ray]'.") from None
        for run in runs:
            if run.device not in ("auto", "cpu", "cuda", "cuda:0"):
                raise FaapError(f"{run.name} has device {run.device}; with --ray it must be auto, cpu or cuda.")
        with ExitStack() as afterwards:
            if not ray.is_initialized():
                with console.status("joining the Ray cluster, or starting one"):
                    _join(self.address or os.environ.get("RAY_ADDRESS", ""))
                afterwards.callback(ray.shutdown)
            for kind in sorted({"GPU" if gpus else "CPU" for gpus, room in map(_wanted, runs) if not room}):
                console.print(f"No node of the Ray cluster has a {kind}: runs wait for one.", style="yellow")
            yield

    def train(self, recipe: Recipe, log: Path, threads: int) -> None:
        """Make one run, on the node that Ray chooses."""
        import ray

        asked, (gpus, room) = os.environ.get("OMP_NUM_THREADS"), _wanted(recipe)
        # what a node cannot spare is not asked for, and the threads stay: their number is seen in the last bits
        cpus = min(torch.get_num_threads() if asked else threads, max(room, default=threads))
        task = ray.remote(_train).options(num_cpus=cpus, num_gpus=gpus, name=title(recipe))
        running = task.remote(sent(recipe), log, asked or str(threads), os.getcwd())
        try:
            with self._under_way(partial(ray.cancel, running, force=True)):  # no longer: Ray aborts at an ended one's
                host = ray.get(running)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        if not standing(recipe).finished:
            raise FaapError(f"{recipe.output_dir}: trained on {host}, and cannot be seen here. {_SHARED}")


def _join(address: str) -> None:
    import ray

    try:
        if ":" in address:  # Ray itself would wait for minutes
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address or None, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        advice = "--ray takes auto, HOST:PORT, ray://HOST:PORT or nothing, and stands after the recipes."
        raise FaapError(f"Ray cannot be reached at {address or 'this machine'}: {error}\n{advice}") from error


def _wanted(run: Recipe) -> tuple[int, list[int]]:
    """Return how many GPUs a run needs, and the CPUs that each node can spare for it; of each GPU, its share."""
    import ray

    nodes = [Counter(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    gpus = int(run.device.startswith("cuda") or (run.device == "auto" and any(node["GPU"] for node in nodes)))
    fit = [node for node in nodes if node["CPU"] >= 1 and node["GPU"] >= gpus]
    return gpus, [max(1, int(node["CPU"] // node["GPU"] if gpus else node["CPU"])) for node in fit]


def _train(message: Mapping[str, Any], log: Path, threads: str, folder: str) -> str:
    """Train a recipe on the node that Ray chose; return its host."""
    import ray

    host = socket.gethostname()
    try:
        os.chdir(folder)
    except OSError as error:
        raise FaapError(f"host {host}: {error}. {_SHARED}") from error
    os.environ["OMP_NUM_THREADS"] = threads  # Ray sets its own
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as out:
        print(f"Ray node {ray.get_runtime_context().get_node_id()}, host {host}", file=out)
    # by now the run may have a checkpoint of a worker that was lost
    LocalRunner().train(standing(rebuilt(message)).recipe, log, 1)
    return host
