"""`python -m faap`: the command line, for launchers that start a module."""

import sys

from faap.cli import main

sys.exit(main())
