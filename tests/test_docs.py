"""What the pages say can be typed: their commands are commands, their Python runs."""

import re
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from faap import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.ko.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TOOLS = {"faap", "python", "torchrun", "accelerate", "pre-commit"}


def commands(page: Path) -> list[str]:
    """The indented lines of a page that begin with the name of a program, continued lines joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    return [line for line in lines if line.split() and line.split()[0].rpartition("/")[2] in TOOLS]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_typed_in_the_one_way_that_works_without_an_activated_environment(page: Path) -> None:
    for line in commands(page):
        assert line.startswith(".venv/bin/"), f"{page.name}: {line}"


class Parsed(Exception):
    """A command has read its arguments, and is not to run."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_and_recipe_of_a_command_exists(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = cli.Parser.given

    def only_parse(parser: cli.Parser) -> None:
        given(parser)
        raise Parsed

    monkeypatch.setattr(cli.Parser, "given", only_parse)
    for line in commands(page):
        words = shlex.split(line, comments=True)
        if words[0] != ".venv/bin/faap" or words[1] not in cli.COMMANDS:
            continue
        name, rest = words[1], words[2:]
        known = [word if word.rpartition(".")[2] != "yaml" else "infonce_4th" for word in rest]  # a file of the page's
        with pytest.raises(Parsed):
            cli.COMMANDS[name](cli.Parser(known, prog="faap"), Console(quiet=True))


@pytest.mark.parametrize(
    ("page", "made"),
    [
        ("README.md", "metrics"),
        ("README.ko.md", "metrics"),
        ("docs/evaluation.md", "changes"),
        ("docs/deploy.md", "perturbed"),
    ],
)
def test_the_python_of_a_page_runs(page: str, made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.setenv("FAAP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("faap.promenade.build.SCENES", {"train": 4, "val": 2, "test": 4})
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(block.replace("images_per_epoch=640", "images_per_epoch=8"), names)
    if made == "perturbed":
        assert names[made].size == (160, 128)
        return
    counts = {"metrics": lambda found: found["images"], "changes": lambda found: found.split.counts()}
    assert counts[made](names[made]) == {"female": 4, "male": 4}
