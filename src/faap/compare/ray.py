"""The runs of a comparison as tasks of a Ray cluster; on its node each is the same process as on this machine."""

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console

from faap.compare.local import LocalRunner, Runner, rebuilt, sent
from faap.compare.standing import standing
from faap.config import Recipe
from faap.errors import FaapError

_SHARED = "The working directory and output_dir must lie on storage that every node shares."


class RayRunner(Runner):
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
        self._nodes: list[dict[str, float]] = []

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
        ours = not ray.is_initialized()
        if ours:
            _join(self.address or os.environ.get("RAY_ADDRESS", ""))
        try:
            self._nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            for gpus in sorted({_gpus(run, self._nodes) for run in runs}):
                if not _room(self._nodes, gpus):
                    kind = "GPU" if gpus else "CPU"
                    console.print(f"No node of the Ray cluster has a {kind}: runs wait for one.", style="yellow")
            yield
        finally:
            if ours:
                ray.shutdown()

    def train(self, recipe: Recipe, log: Path, threads: int) -> None:
        """Make one run, on the node that Ray chooses."""
        import ray

        asked = os.environ.get("OMP_NUM_THREADS")
        gpus = _gpus(recipe, self._nodes)
        # what a node cannot spare is not asked for, and the threads stay: their number is seen in the last bits
        cpus = min(torch.get_num_threads() if asked else threads, max(_room(self._nodes, gpus), default=threads))
        task = ray.remote(_train).options(num_cpus=cpus, num_gpus=gpus, name=f"{recipe.name}, seed {recipe.seed}")
        with self._start(lambda: task.remote(sent(recipe), log, asked or str(threads), os.getcwd())) as running:
            try:
                host = ray.get(running)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
        if not standing(recipe).finished:
            raise FaapError(f"{recipe.output_dir}: trained on {host}, and cannot be seen here. {_SHARED}")

    def _stop(self, job: Any) -> None:
        import ray

        ray.cancel(job, force=True)


def _join(address: str) -> None:
    import ray

    try:
        if ":" in address:  # Ray itself would wait for minutes
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address or None, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise FaapError(
            f"Ray cannot be reached at {address or 'this machine'}: {error}\n"
            "--ray takes auto, HOST:PORT, ray://HOST:PORT or nothing, and stands after the recipes."
        ) from error


def _gpus(run: Recipe, nodes: Sequence[dict[str, float]]) -> int:
    """Return how many GPUs the run needs."""
    return int(run.device.startswith("cuda") or (run.device == "auto" and any(node.get("GPU") for node in nodes)))


def _room(nodes: Sequence[dict[str, float]], gpus: int) -> list[int]:
    """Return the CPUs that each node can spare for a run; on a node with GPUs, each GPU's share."""
    fit = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    return [max(1, cpu // gpu if gpus else cpu) for cpu, gpu in fit if cpu >= 1 and gpu >= gpus]


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
