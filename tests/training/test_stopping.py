import os
import signal
import threading
import time

import pytest

from faap.training import stopping
from faap.training.stopping import Stop, Stopping

SIGNALS = [signal.SIGTERM, signal.SIGINT]


def ended(first: signal.Signals, second: signal.Signals, same: float) -> int:
    """How a process ends that is told to stop twice, the second time after what counts as the same by `same`."""
    child = os.fork()
    if not child:
        try:
            stopping.SAME, told = same, Stopping()
            with told.listening(), told.held():
                os.kill(os.getpid(), first)
                if told.signum == first:
                    os.kill(os.getpid(), second)
                time.sleep(0)
        except Stop as stop:
            os._exit(100 + stop.signum)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("second", SIGNALS)
@pytest.mark.parametrize("first", SIGNALS)
def test_told_twice_a_process_ends_at_once(first: signal.Signals, second: signal.Signals) -> None:
    assert ended(first, second, same=0) == -second


@pytest.mark.parametrize("second", SIGNALS)
@pytest.mark.parametrize("first", SIGNALS)
def test_what_a_launcher_passes_on_at_once_is_no_second_time(first: signal.Signals, second: signal.Signals) -> None:
    assert ended(first, second, same=60) == 100 + first


def test_what_is_held_comes_to_its_end_and_then_stops() -> None:
    done: list[int] = []

    def told(signum: int) -> None:
        os.kill(os.getpid(), signum)
        done.append(signum)

    for signum in SIGNALS:
        stopping = Stopping()
        with pytest.raises(Stop) as stopped, stopping.listening(), stopping.held():
            told(signum)
        assert stopped.value.signum == signum
    assert done == SIGNALS
    with pytest.raises(Stop), Stopping().listening():
        told(signal.SIGTERM)
    assert done == SIGNALS


def test_where_no_signal_can_be_taken_nothing_is_listened_to() -> None:
    failed: list[BaseException] = []

    def elsewhere() -> None:
        try:
            with Stopping().listening():
                pass
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert failed == []
