"""The one exception for what a user can mend."""

import difflib
from collections.abc import Iterable


class FaapError(ValueError):
    """Something the user can mend: bad input, a wrong path, an unknown name.

    The message names the file and the record, the value found, and what would have been right. The command line
    prints it without a traceback and exits with status 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the known name closest to `name`, or an empty string if none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ""
