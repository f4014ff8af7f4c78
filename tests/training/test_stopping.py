import os
import signal
import threading

import pytest

from faap.training.stopping import Stop, Stopping

SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize("second", SIGNALS)
@pytest.mark.parametrize("first", SIGNALS)
def test_told_twice_a_process_ends_at_once(first: signal.Signals, second: signal.Signals) -> None:
    child = os.fork()
    if not child:
        stopping = Stopping()
        with stopping.listening(), stopping.held():
            os.kill(os.getpid(), first)
            if stopping.signum == first:
                os.kill(os.getpid(), second)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -second


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
