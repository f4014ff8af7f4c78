"""The notebooks run, on a Promenade of a few scenes, and their outputs are of a whole run and of no machine."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from faap.promenade import build_promenade

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
TINY = {"train": 8, "val": 3, "test": 4}


def cells(name: str, kind: str) -> list[dict[str, Any]]:
    return [each for each in json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"] if each["cell_type"] == kind]


def trained(names: dict[str, Any]) -> bool:
    measured = names["result"].metrics, names["metrics"]
    return [each["images"] for each in measured] == [{"female": 4, "male": 4}] * 2 and measured[0] != measured[1]


def audited(names: dict[str, Any]) -> bool:
    table = names["frame"].to_frame()
    gap = table.loc[("difference", "female", "AP"), "value"]
    return gap == pytest.approx(names["audit"]["gap"]["value"]) and names["audit"]["images"] == {"female": 4, "male": 4}


def deployed(names: dict[str, Any]) -> bool:
    same = abs(names["by_onnx"] - names["by_torch"]).max() < 1e-4
    return same and names["perturbed"].size == names["image"].size and names["change"].any()


@pytest.mark.parametrize(
    ("name", "done"), [("train_and_read", trained), ("audit_your_detector", audited), ("deploy", deployed)]
)
def test_a_notebook_runs(
    name: str, done: Callable[[dict[str, Any]], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faap.promenade.build_promenade", lambda folder, scenes: build_promenade(folder, TINY))
    monkeypatch.setenv("FAAP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells(name, "code")):
        exec(compile("".join(cell["source"]), f"{name}, code cell {number}", "exec"), names)
    plt.close("all")
    assert done(names)


def test_the_outputs_are_of_a_whole_run_and_of_no_machine() -> None:
    sizes = []
    for path in sorted(FOLDER.glob("*.ipynb")):
        code = cells(path.stem, "code")
        assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
        outputs = [output for cell in code for output in cell["outputs"]]
        assert outputs
        assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
        assert not re.search(r"[\"' ](/|[A-Z]:\\\\)\w", json.dumps(outputs))
        sizes += [len(output["data"]["image/png"]) for output in outputs if "image/png" in output.get("data", {})]
        for link in re.findall(
            r"\]\(([^)]+)\)", "".join("".join(cell["source"]) for cell in cells(path.stem, "markdown"))
        ):
            assert (FOLDER / link).exists(), link
    assert 0 < sum(sizes) < 100_000
