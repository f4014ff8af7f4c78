"""Passing a generator on: its files and a model card, to the Hugging Face hub."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCardData

from faap import recipes
from faap.config import fields_of
from faap.errors import FaapError
from faap.export import measured_in, plain_name
from faap.files import reading, write_text
from faap.perturbation import load_generator, save_generator
from faap.perturbation.storage import place_of
from faap.report import words
from faap.report.page import render
from faap.runs import Run, cost_of, writing
from faap.settings import visible

SENT = ("README.md", "config.json", "model.safetensors")
# of the groups and of their gaps, what stands in the card
_METRICS = ("AP", "AP50", "AR100")


def model_card(run: Run, repository: str = "ORGANISATION/NAME") -> str:
    """Return a model card of what a run measured: use, groups, data, detector, figures with intervals, limits.

    Paths of the machine do not stand in it.

    Raises:
        FaapError: nothing was measured there, or by a faap that did not say with what.
    """
    metrics = run.read_metrics()
    if not (metrics.get("provenance") and metrics.get("changes") and metrics.get("gaps")):
        raise FaapError(f"{run.metrics}: does not say what was measured; evaluate the generator again.")
    with reading(run.metrics, "is not what an evaluation writes"):
        return _card(run, metrics, repository)


def _card(run: Run, metrics: dict[str, Any], repository: str) -> str:
    metrics = words.named(metrics, metrics["images"])
    source = metrics["provenance"]
    settings = recipes.read(run.config) if run.config.is_file() else {}
    anchor, reference = (_plain(group) for group in list(metrics["baseline"])[:2])
    dataset, name = _plain(plain_name(source["dataset"])), _plain(settings.get("name", "faap generator"))
    named = [(f" of {_plain(group)}", each) for group, each in metrics["changes"].items()]
    named += [(f" gap ({reference} − {_plain(group)})", each) for group, each in metrics["gaps"].items()]
    rows = [(f"{metric}{label}", each[metric]) for label, each in named for metric in _METRICS]
    about: Any = {"task_type": "object-detection", "dataset_type": dataset, "dataset_name": dataset}
    results = [
        EvalResult(**about, metric_type=label, metric_value=found["perturbed"], dataset_split=metrics["split"])
        for label, found in rows
        if found["perturbed"] is not None
    ]
    data = ModelCardData(library_name="faap", tags=["faap", "fairness"], model_name=name, eval_results=results)
    kept = [key for key in fields_of() if key in settings and key not in fields_of("run", "data")]
    source = source | {"detector": source["detector"] | {"name": _plain(plain_name(source["detector"]["name"]))}}
    values: dict[str, Any] = {"metrics": metrics, "source": source, "dataset": dataset, "name": name}
    values |= {"anchor": anchor, "reference": reference, "repository": repository}
    values["rows"] = [(label, words.change(found)) for label, found in rows]
    values["notes"] = [*map(_plain, words.notes(metrics))]
    values |= {"measured_on": _plain(words.measured_on(metrics)), "cost": words.cost(metrics | cost_of(run.path))}
    values["sentence"] = words.gap_sentence(metrics, anchor, reference)
    values["recipe"] = "\n".join(f"{key}: {json.dumps(plain_name(settings[key]))}" for key in kept)
    return f"---\n{data}\n---\n\n{render('card.md', **values)}\n"


def _plain(text: str) -> str:
    """Make what a file says harmless in Markdown: one line, without what begins something."""
    return re.sub(r"([\\|\[\]<>#*_!])", r"\\\1", " ".join(visible(text).split()).replace("`", "'"))


def write_folder(place: str | Path, folder: str | Path, repository: str = "ORGANISATION/NAME") -> None:
    """Write what `push` sends: `model.safetensors`, `config.json`, and the card of a run, `README.md`.

    Raises:
        FaapError: nothing was measured of this generator, a file of such a name is there, or no hub has such names.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository, re.ASCII):
        raise FaapError(f"{repository!r}: is no name of a repository; it should be ORG/NAME.")
    run = Run.of(place_of(place)) if place_of(place).exists() else None
    if run is None:
        raise FaapError(f"{place}: is no run; what a generator does is part of what is passed on.")
    card, generator = model_card(run, repository), load_generator(place)
    if not measured_in(run, generator):
        raise FaapError(f"{place}: {run.metrics} is about another generator, or another ε; evaluate this one.")
    if there := [name for name in SENT if (Path(folder) / name).exists()]:
        raise FaapError(f"{Path(folder) / there[0]}: is there, and would be replaced; give another --folder.")
    with writing(Path(folder), "--folder"):
        save_generator(generator, folder)
        write_text(Path(folder) / "README.md", card)


def push(place: str | Path, repository: str, *, private: bool = False) -> str:
    """Send a run's generator with its card to the Hugging Face hub, as who is logged in there.

    Args:
        place: the run, or "promenade".
        repository: "organisation/name"; it is made if it is not there.
        private: if it is made.

    Returns:
        Its address.

    Raises:
        FaapError: nothing was measured, or the hub refuses.
    """
    api = HfApi(library_name="faap")
    with tempfile.TemporaryDirectory() as folder:
        write_folder(place, folder, repository)
        with reading(repository, "cannot be sent (`hf auth login` says who you are)"):
            address = api.create_repo(repository, private=private, exist_ok=True)
            if others := set(api.list_repo_files(repository)) - {*SENT, ".gitattributes"}:
                raise FaapError(f"{repository}: holds other files ({min(others)}); give a repository of its own.")
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="A generator of faap")
    return str(address)
