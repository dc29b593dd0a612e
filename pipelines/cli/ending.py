"""How a command ends: its exit status, signals, a terminal or a reader that is gone."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from gan_train.runs import stop_signals
from pipelines.compute.cluster import THREAD

STOPPED = stop_signals.status_of(signal.SIGINT)
"""The status of a run that was stopped otherwise than by a signal, such as in Prefect's UI."""


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt in this block, with the signal's number:
    at once, or behind what is just imported. A terminal that has closed is not written to any more.
    """
    terminal = [stream for stream in (1, 2) if os.isatty(stream)]

    def interrupt(number: signal.Signals) -> None:
        if number == signal.SIGHUP:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in terminal:
                os.dup2(nowhere, stream)
        give(KeyboardInterrupt(number))

    with stop_signals.interrupts() as give, stop_signals.heard(interrupt):
        yield


def stopped(interrupt: KeyboardInterrupt) -> int:
    """Say that the command was stopped, and return its exit status: 130 after SIGINT, 143 after
    SIGTERM, 129 after SIGHUP."""
    print("gan-train: stopped", file=sys.stderr)
    return left(stop_signals.status_of(*(interrupt.args or (signal.SIGINT,))))


def left(status: int) -> int:
    """The exit status of a command that did not come to its end. Where a thread is still in Ray's
    code, the process ends here, because it would abort at the interpreter's end."""
    if any(thread.name.startswith(THREAD) for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def reader_is_there() -> bool:
    """Whether someone still reads the output: `head`, say, ends when it has seen enough. If nobody
    does, what is left is dropped, or the interpreter would complain of it at its end."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if not output.poll(0):  # of a pipe without a reader it tells POLLERR
        return True
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return False
