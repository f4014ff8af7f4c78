"""What a process of faap shows, and how it ends: its exit status, and the one line that says what the user can mend."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from rich.console import Console
from rich.segment import Segment

from faap.errors import FaapError
from faap.settings import visible


class Terminal(Console):
    """Shows what stands in files and does not obey it: no markup, and control characters are spelt out."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render(self, *rest: Any, **options: Any) -> Iterable[Segment]:
        """Render as ever, but for what files could say to a terminal."""
        for segment in super().render(*rest, **options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: what it has begun it clears away."""

    signum = signal.SIGTERM


def _terminate(*_: object) -> NoReturn:
    raise Terminated


def end_with_stdin() -> None:
    """End this process, which another has started, when its standard input ends: then the other has ended, too."""

    def watch() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def outcome(command: Callable[[], int | None], *, verbose: bool = False) -> int:
    """Run a command; print what the user can mend as one error, with a traceback if asked; return the exit status."""
    first = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if first else None
    try:
        status = command() or 0
        if "torch" in sys.modules:
            from faap import distributed

            distributed.shutdown()  # not after an error: the other processes may be waiting for this one to speak
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read the output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        signum = getattr(error, "signum", signal.SIGINT)
        print(f"{error}; the same command goes on" if str(error) else "interrupted", file=sys.stderr)
        return 128 + signum
    except (FaapError, OSError, RuntimeError) as error:
        if (said := _said(error)) is None:
            raise
        if verbose:
            traceback.print_exc()
        print(f"error: {visible(said)}", file=sys.stderr)
        return 2
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _said(error: FaapError | OSError | RuntimeError) -> str | None:
    """What to say of an error that is the user's or the machine's; None of one that is the program's."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, FaapError | OSError):
        return str(error)
    import torch

    from faap import distributed

    if isinstance(error, torch.OutOfMemoryError):
        reason = str(error).partition(". ")[0]
        return f"{reason}. Use a smaller --batch_size or smaller images, or --device cpu."
    return "another process has ended; what it printed says why." if distributed.is_loss_of_others(error) else None
