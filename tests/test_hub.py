"""Passing a generator on, to a stand-in for the hub, and having it back."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from faap import cli, hub
from faap.errors import FaapError
from faap.perturbation import load_generator, save_generator
from faap.promenade import shipped_run
from faap.runs import Run

SHA = "0123456789abcdef0123456789abcdef01234567"
FILES = {"README.md", "config.json", "model.safetensors"}


class Hub(BaseHTTPRequestHandler):
    """So much of the hub's interface as sending and fetching a small model takes."""

    files: dict[str, bytes]
    asked: list[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
        self.asked.append(f"{self.path} {self.headers.get('Authorization')}")
        if self.path == "/api/repos/create":
            self.answer({"url": f"http://{self.headers['Host']}/org/name", "name": json.loads(body)["name"]})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path == "/api/models/org/name/preupload/main":
            paths = [each["path"] for each in json.loads(body)["files"]]
            each = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer({"files": [{"path": path} | each for path in paths]})
        elif self.path.startswith("/api/models/org/name/commit/main"):
            for row in map(json.loads, body.splitlines()):
                if row["key"] == "file":
                    self.files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            self.answer(
                {"success": True, "commitOid": SHA, "commitUrl": f"http://{self.headers['Host']}/org/name/commit/{SHA}"}
            )
        else:
            self.answer({"error": "unknown"}, 404)

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/org/name/revision/main"):
            names = [{"rfilename": name} for name in self.files]
            self.answer({"id": "org/name", "modelId": "org/name", "sha": SHA, "siblings": names, "tags": []})
        elif self.path.startswith("/api/models/org/name/tree/"):
            sizes = [{"type": "file", "path": n, "size": len(c), "oid": SHA} for n, c in self.files.items()]
            self.answer(sizes)
        elif self.path.startswith("/org/name/resolve/"):
            content = self.files.get(self.path.rpartition("/")[2])
            self.answer(content, 200 if content is not None else 404)
        else:
            self.answer({"error": "unknown"}, 404)

    do_HEAD = do_GET

    def answer(self, content: Any, status: int = 200) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{len(body):040d}"')
        self.send_header("X-Repo-Commit", SHA)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *rest: object) -> None:
        """Stay silent."""


@pytest.fixture
def served() -> Iterator[ThreadingHTTPServer]:
    Hub.files, Hub.asked = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


# in one process: sent, fetched, sent again; then what must be refused, the last without a hub that answers
PUSHES = """
import huggingface_hub.constants
import faap
from faap import cli
assert cli.main(["push", "promenade", "org/name"]) == 0
print(faap.load_generator("org/name").state_dict()["stem.weight"].double().sum().item())
assert cli.main(["push", "promenade", "org/name"]) == 0
huggingface_hub.upload_file(path_or_fileobj=b"a detector", path_in_repo="pytorch_model.bin", repo_id="org/name")
print(cli.main(["push", "promenade", "org/name"]))
print(cli.main(["push", "promenade", "other/name"]))
huggingface_hub.constants.ENDPOINT = "http://127.0.0.1:9"
print(cli.main(["push", "promenade", "org/name"]))
"""


def test_what_is_sent_comes_back(served: ThreadingHTTPServer, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{served.server_port}", "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_TOKEN": "secret", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    python: Any = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([sys.executable, "-P", "-c", PUSHES], **python)
    assert done.returncode == 0, done.stderr
    first, weights, *statuses = done.stdout.split()
    assert first.endswith("/org/name")
    weight = load_generator("promenade").state_dict()["stem.weight"]
    assert float(weights) == pytest.approx(weight.double().sum().item(), rel=1e-12)
    assert statuses[0].endswith("/org/name")
    assert statuses[1:] == ["2", "2", "2"]
    assert Hub.files.keys() == FILES | {"pytorch_model.bin"}
    assert all(each.endswith("Bearer secret") for each in Hub.asked if "validate" not in each)
    taken, refused, lost = done.stderr.split("error: ")[1:]
    assert "holds other files (pytorch_model.bin)" in taken
    assert refused.startswith("other/name: ")
    assert lost.startswith("org/name: ")
    assert "Traceback" not in done.stderr


def test_the_files_that_would_be_sent_can_be_read_by_others_and_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["push", "promenade", "org/name", f"--folder={tmp_path / 'there'}"]) == 0
    found = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "there").iterdir()}
    assert found == dict.fromkeys(FILES, 0o644)
    assert load_generator(tmp_path / "there").epsilon == 0.1


def test_the_card_holds_the_figures_with_their_intervals() -> None:
    run = Run(shipped_run())
    card, metrics = hub.model_card(run, "org/name"), run.read_metrics()
    _, head, text = card.split("---\n", 2)
    results = yaml.safe_load(head)["model-index"][0]["results"]
    values = {each["metrics"][0]["type"]: each["metrics"][0]["value"] for each in results[0:1]}
    every = {each["type"]: each["value"] for result in results for each in result["metrics"]} | values
    assert every["AP of female"] == metrics["perturbed"]["female"]["AP"]
    assert every["AP gap (male − female)"] == metrics["gap"]["AP"]["perturbed"]
    gap = metrics["gap"]["AP"]
    low, high = (f"{bound:+.4f}".replace("-", "−") for bound in gap["ci95"])
    assert f"({low} to {high})" in text
    assert "://" not in card  # there is no page of faap's to lead to
    for word in ("700 female, 700 male", metrics["provenance"]["split_sha256"], "Ethical", "Limits", 'lr_g: "0.005"'):
        assert word in text
    assert "what is to let\nthat detector find" in card  # whether it does is said by the figures


def test_no_path_of_the_machine_and_no_markup_of_a_file_stands_in_the_card(tmp_path: Path) -> None:
    run = Run(shutil.copytree(shipped_run(), tmp_path / "run"))
    hostile = "[x](http://evil)|<script>\x1b[2J`\n\n# Heading"
    text = run.metrics.read_text().replace('"female"', json.dumps(hostile))
    metrics = json.loads(text)
    metrics["provenance"] |= {"dataset": "/home/somebody/secret/people"}
    metrics["provenance"]["detector"]["name"] = "C:\\Users\\somebody\\detr"
    run.write_metrics(metrics)
    settings = run.config.read_text().replace("terms: ''", "terms: /home/somebody/my_terms.py")
    run.config.write_text(settings)
    card = hub.model_card(run)
    assert "somebody" not in card
    assert "people" in card
    assert "<script>" not in card.split("---\n", 2)[2]
    assert "\x1b" not in card
    assert "\n# Heading" not in card
    assert "[x](" not in card.split("---\n", 2)[2]
    rows = [line for line in card.splitlines() if line.startswith("| AP of")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {5}


def test_nothing_is_replaced_and_no_figures_of_another_go_along(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("mine")
    with pytest.raises(FaapError, match=r"config.json: is there, and would be replaced; .*--folder"):
        hub.write_folder("promenade", tmp_path / "mine")
    assert [each.name for each in (tmp_path / "mine").iterdir()] == ["config.json"]
    for name in ("name", "org/my generator", "https://hub/org/name"):
        with pytest.raises(FaapError, match=r"is no name of a repository; it should be ORG/NAME\.$"):
            hub.write_folder("promenade", tmp_path / "out", name)
    run = Run(shutil.copytree(shipped_run(), tmp_path / "run"))
    generator = load_generator(run.path)
    generator.epsilon = 0.05
    save_generator(generator, run.generator)
    with pytest.raises(FaapError, match="is about another generator, or another ε"):
        hub.write_folder(run.path, tmp_path / "out")
    generator.epsilon = 0.1
    save_generator(generator, run.generator)
    hub.write_folder(run.path, tmp_path / "same")
    generator.out.bias.data.add_(1e-3)
    save_generator(generator, run.generator)
    with pytest.raises(FaapError, match="is about another generator, or another ε"):
        hub.write_folder(run.path, tmp_path / "out")
    metrics = run.read_metrics() | {"changes": {"female": {}, "male": {}}}
    run.write_metrics(metrics)
    with pytest.raises(FaapError, match="is not what an evaluation writes"):
        hub.model_card(run)
    assert not (tmp_path / "out").exists()


def test_what_was_never_measured_is_not_passed_on(tmp_path: Path) -> None:
    with pytest.raises(FaapError, match="is no run"):
        hub.write_folder(tmp_path, tmp_path / "out")
    run = Run(shutil.copytree(shipped_run(), tmp_path / "run"))
    metrics = run.read_metrics()
    del metrics["provenance"]
    run.write_metrics(metrics)
    with pytest.raises(FaapError, match="evaluate the generator again"):
        hub.write_folder(run.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
