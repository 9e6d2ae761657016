"""Signals are kept while a run finishes its step, and end it as shells and schedulers expect."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from pidistill.training.signals import CAUGHT, Signals, end_for_signal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_kept_and_the_first_one_counts(number, capfd):
    handlers = [signal.getsignal(number) for number in CAUGHT]
    with Signals() as signals:
        assert signals.caught == 0
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.caught == number
    assert [signal.getsignal(number) for number in CAUGHT] == handlers
    assert capfd.readouterr().err == f"{number.name}: the step is finished and saved first\n"  # once


def test_after_sigint_the_next_one_is_the_kernel_s(capfd):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.caught == signal.SIGINT and signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err == "SIGINT: the step is finished and saved first; again to stop at once\n"


def test_in_another_thread_signals_act_as_before():
    entered = []

    def enter():
        with Signals() as signals:
            entered.append(dict(signals.handlers))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [{}]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_ends_with_its_exit_code_and_the_text(number, code, capfd):
    with pytest.raises(SystemExit) as caught:
        end_for_signal(number, "stopped\n")
    assert caught.value.code == code and capfd.readouterr().err == "stopped\n"


def test_sigint_ends_as_ctrl_c_does(capfd):
    with pytest.raises(KeyboardInterrupt, match="stopped"):
        end_for_signal(signal.SIGINT, "stopped")
    assert capfd.readouterr().err == ""
