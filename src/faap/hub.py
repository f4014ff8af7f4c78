"""Passing a generator on: its files and a model card, to the Hugging Face hub."""

import tempfile
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, HfApi, ModelCardData
from huggingface_hub.errors import HfHubHTTPError

from faap import recipes
from faap.config import fields_of
from faap.errors import FaapError
from faap.files import write_text
from faap.perturbation import load_generator, save_generator
from faap.perturbation.storage import place_of
from faap.report import words
from faap.report.page import render
from faap.runs import Run, cost_of, writing
from faap.settings import visible

# of the groups and of their gaps, what stands in the card
_METRICS = ("AP", "AP50", "AR100")


def model_card(run: Run, repository: str = "ORGANISATION/NAME") -> str:
    """Return a model card of what a run measured: use, groups, data, detector, figures with intervals, limits.

    Paths of the machine do not stand in it.

    Raises:
        FaapError: nothing was measured there, or by a faap that did not say with what.
    """
    metrics = run.read_metrics()
    source = metrics.get("provenance")
    if source is None or not metrics.get("changes"):
        raise FaapError(f"{run.metrics}: does not say what was measured; evaluate the generator again.")
    settings = recipes.read(run.config) if run.config.is_file() else {}
    anchor, reference = (_plain(group) for group in list(metrics["baseline"])[:2])
    dataset, name = _plain(Path(source["dataset"]).name), _plain(settings.get("name", "faap generator"))
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
    source = source | {"detector": source["detector"] | {"name": _plain(Path(source["detector"]["name"]).name)}}
    values: dict[str, Any] = {"metrics": metrics, "source": source, "dataset": dataset, "name": name}
    values |= {"anchor": anchor, "reference": reference, "repository": repository}
    values |= {"rows": [(label, words.change(found)) for label, found in rows]}
    values |= {"measured_on": _plain(words.measured_on(metrics)), "cost": words.cost(metrics | cost_of(run.path))}
    values |= {"sentence": words.gap_sentence(metrics, anchor, reference), "notes": words.notes(metrics)}
    values["recipe"] = yaml.safe_dump({key: settings[key] for key in kept}, sort_keys=False)
    return f"---\n{data}\n---\n\n{render('card.md', **values)}\n"


def _plain(text: str) -> str:
    """Make what a file says harmless in Markdown."""
    return visible(text).replace("|", "\\|").replace("`", "'")


def write_folder(place: str | Path, folder: str | Path, repository: str = "ORGANISATION/NAME") -> None:
    """Write what `push` sends: `model.safetensors`, `config.json`, and the card of a run, `README.md`."""
    run = Run.of(place_of(place))
    if run is None:
        raise FaapError(f"{place}: is no run; what a generator does is part of what is passed on.")
    card, generator = model_card(run, repository), load_generator(place)
    with writing(Path(folder)):
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
        try:
            address = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="A generator of faap")
        except (HfHubHTTPError, ValueError, OSError) as error:
            said = str(error).strip().partition("\n")[0]
            raise FaapError(f"{repository}: {said} (`hf auth login` says who you are)") from error
    return str(address)
