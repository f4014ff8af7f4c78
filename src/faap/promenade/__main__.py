"""One of the processes in which `build_promenade` writes."""

import json
import sys
from pathlib import Path

from faap.process import end_with_stdin
from faap.promenade.build import write_parts

if __name__ == "__main__":
    end_with_stdin()
    folder, scenes, *which = sys.argv[1:]
    write_parts(Path(folder), json.loads(scenes), *map(int, which))
