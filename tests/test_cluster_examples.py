"""The scripts for clusters, with stand-ins for the cluster, and what images are built from."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from faap import cli
from faap.runs import Run

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
# starts two tasks, passes the signal that ends a step on to both, and ends with the highest status of theirs
SRUN = """#!/bin/bash
export SLURM_NTASKS=2
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & one=$!
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & two=$!
trap 'kill -TERM $one $two' TERM
while kill -0 $one 2>/dev/null || kill -0 $two 2>/dev/null; do sleep .1; done
wait $one; first=$?
wait $two; second=$?
exit $((first > second ? first : second))
"""
SCONTROL = """#!/bin/bash
echo "$@" >> asked
[ "$1" = show ] && echo 127.0.0.1
exit 0
"""


def test_on_slurm_a_job_that_is_taken_away_is_queued_again_and_goes_on(
    tiny_promenade: Path, tiny_detector: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    for name, text in (
        ("srun", SRUN),
        ("scontrol", SCONTROL),
        ("faap", f'#!/bin/bash\nexec {sys.executable} -P -m faap "$@"\n'),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "here"}
    flags = [f"--dataset_root={tiny_promenade}", f"--detr_checkpoint={tiny_detector}", f"--output_dir={run.path}"]
    flags += ["--images_per_epoch=16", "--batch_size=4", "--device=cpu", "--save_minutes=9"]

    def job(epochs: int) -> "subprocess.Popen[str]":
        words = ["bash", str(EXAMPLES / "slurm.sh"), "infonce_4th", *flags, f"--epochs={epochs}"]
        return subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)

    taken = job(1000)
    end = time.monotonic() + 120
    while not run.epochs() and time.monotonic() < end and taken.poll() is None:
        time.sleep(0.1)
    (step,) = map(int, subprocess.check_output(["pgrep", "-P", str(taken.pid)], text=True).split())
    os.kill(step, signal.SIGTERM)
    said = taken.communicate(timeout=120)[1]
    assert taken.returncode == 143, said
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["show hostnames here", f"requeue {os.getpid()}"]
    made = run.epochs()[-1] + 1
    wrong = job(made + 2)
    said = wrong.communicate(timeout=120)[1]
    assert wrong.returncode == 2
    assert "epochs was 1000" in said
    assert len((tmp_path / "asked").read_text().splitlines()) == 3  # nobody asks for that to be tried again


def test_what_kubernetes_is_told_is_a_command_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    job = yaml.safe_load((EXAMPLES / "kubernetes.yaml").read_text())
    assert job["kind"] == "Job"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    program, *words = container["command"]
    assert program == "faap"
    assert cli.main(words) == 2
    assert "data set /data" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_an_image_is_of_what_is_there_and_runs_without_rights(name: str) -> None:
    lines = (ROOT / "docker" / name).read_text().splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [source for first, *rest in words if first == "COPY" and rest[0] != "--from=build" for source in rest[:-1]]
    assert {"src", "pyproject.toml", "constraints.txt"} <= {*copied}
    for source in copied:
        assert (ROOT / source).exists()
        assert f"!{source}" in allowed
    assert all(re.fullmatch(r"python:3\.11\.\d+-slim-\w+", each[1]) for each in words if each[0] == "FROM")
    assert [each[1] for each in words if each[0] == "USER"] == ["1000:1000"]
    # whoever it runs as, what libraries keep at home is in the volume
    assert "HOME=/data" in next(each for each in reversed(words) if each[0] == "ENV")
