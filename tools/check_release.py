"""See whether a wheel is fit to be released: its version, its changelog, what is in it, its size.

    .venv/bin/python tools/check_release.py dist/faap-0.1.0-py3-none-any.whl

`make release` builds the wheel, calls this, and tries the wheel in an environment of its own. Prints what is wrong, a
line each, and exits with 1 if anything is.
"""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST = 8_000_000  # bytes


def wrong_with(wheel: Path, root: Path = ROOT) -> list[str]:
    """Return what is wrong with a wheel of the package in `root`."""
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    wrong = []
    if not wheel.name.startswith(f"faap-{version}-"):
        wrong.append(f"{wheel.name}: pyproject.toml has the version {version}")
    heading = re.search(
        rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", (root / "CHANGELOG.md").read_text(), re.M
    )
    if heading is None:
        wrong.append(f"CHANGELOG.md: has no heading '## [{version}] - YEAR-MONTH-DAY'")
    if (size := wheel.stat().st_size) > MOST:
        wrong.append(f"{wheel.name}: has {size:,} bytes, and {MOST:,} are the most")
    known = subprocess.check_output(["git", "ls-files", "src/faap"], cwd=root, text=True).splitlines()
    wanted = {path.removeprefix("src/") for path in known}
    with zipfile.ZipFile(wheel) as file:
        held = {name for name in file.namelist() if ".dist-info/" not in name}
    wrong += [f"{wheel.name}: lacks {name}" for name in sorted(wanted - held)]
    wrong += [f"{wheel.name}: has {name}, which is not of the repository" for name in sorted(held - wanted)]
    return wrong


if __name__ == "__main__":
    found = wrong_with(Path(sys.argv[1]))
    print("\n".join(found) or f"{sys.argv[1]}: fit to be released")
    sys.exit(bool(found))
