"""Being asked to stop: by Ctrl-C, or by who takes the machine away."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# seconds within which a second signal is the first one again: launchers pass on what a terminal has sent to all
SAME = 1.0


class Stop(KeyboardInterrupt):
    """A training has been asked to stop, and has done so.

    Attributes:
        signum: the signal that asked.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Stopping:
    """Takes the first SIGTERM or SIGINT; at a second one, a second or more later, the process ends at once.

    It raises `Stop` where it is, but while something is `held`: then who holds it looks at `signum`.

    Attributes:
        signum: the signal that asked; 0 if none did.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._since = 0.0
        self._held = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen for the block; only a process's first thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self._take) for each in SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the block come to its own end, and raise `Stop` only then."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self.signum:
            raise Stop(self.signum)

    def _take(self, signum: int, frame: Any) -> None:
        now = time.monotonic()
        if not self.signum:
            self.signum, self._since = signum, now
            if not self._held:
                raise Stop(signum)
        elif now - self._since >= SAME:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
