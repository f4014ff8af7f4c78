"""What a process of `LocalRunner` runs."""

import sys

from faap.compare.local import child

sys.exit(child())
