"""What a process of `LocalRunner` runs."""

import sys

from faap.compare.local import child
from faap.process import outcome

sys.exit(outcome(child))
