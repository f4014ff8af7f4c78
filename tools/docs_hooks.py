"""Hooks of `make docs`: a file of the repository that a page links to, outside of docs, becomes a page of the site.

So links are written as they work where the pages are read as plain files: ../examples/slurm.sh, ../NOTICE.
"""

import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
NOTEBOOKS = [f"examples/notebooks/{name}.ipynb" for name in ("train_and_read", "audit_your_detector", "deploy")]
WANTED = ("CONTRIBUTING.md", "CHANGELOG.md", *NOTEBOOKS)  # in the navigation, whoever links to them
LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml"}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def place_on_site(path: str) -> str:
    """Where a file of the repository lies on the site, by its path from the root."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"source/{path}" if path.endswith(".md") else f"source/{path}.md"


def linked_again(text: str, path: str) -> tuple[str, set[str]]:
    """Make the links of a page those of the site; return what they lead to outside of docs, too."""
    outside = set()

    def again(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), found[1]))
        if not (ROOT / target).is_file():
            return found[1]
        if not target.startswith("docs/"):
            outside.add(target)
        return posixpath.relpath(place_on_site(target), posixpath.dirname(place_on_site(path)))

    return LINK.sub(again, text), outside


def notebook_page(text: str) -> str:
    """A notebook with its outputs, as Markdown."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if picture := "".join(data.get("image/png", "")).replace("\n", ""):
                parts.append(f"![What this shows](data:image/png;base64,{picture})")
            else:
                parts.append(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that pages link to."""
    linked = [linked_again(each.content_string, f"docs/{each.src_uri}")[1] for each in files.documentation_pages()]
    waiting, made = list(set().union(WANTED, *linked)), set()
    while waiting:
        if (path := waiting.pop()) in made:
            continue
        made.add(path)
        content = (ROOT / path).read_text(encoding="utf-8")
        if path.endswith((".md", ".ipynb")):
            content = notebook_page(content) if path.endswith(".ipynb") else content
            content, more = linked_again(content, path)
            waiting += more
        else:
            fence = LANGUAGES.get(Path(path).suffix, "text")
            content = f"# {path}\n\n````{fence}\n{content}````\n"
        files.append(File.generated(config, place_on_site(path), content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make the links of a page of docs those of the site."""
    generated = page.file.src_uri.startswith("source/")
    return markdown if generated else linked_again(markdown, f"docs/{page.file.src_uri}")[0]
