"""What asks a training to end from outside: Ctrl-C, a supervisor's SIGTERM, a closed terminal.

`heard` is for every process that trains or drives a training. It turns such a signal into one call,
after which the training saves a checkpoint and ends; a second one of the same kind ends the process
at once.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
IMPORT_S = 10.0
"""Seconds that an interrupt waits for the end of imports."""
_LOOK_S = 0.05
_hearing: list[bool] = []  # an element for each block of `heard` that is open


@contextmanager
def heard(act: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Call `act` when one of `STOPPING` comes during the block; `act` may raise.

    A signal of another kind calls it again. The second of one kind kills the process, as if nobody
    had heard the first; but SIGHUP, which a closing terminal may send twice, is not heard again.
    Signals that this process ignores, as under `nohup`, stay ignored. Only the main thread may
    enter the block, which gives back the earlier handlers at its end.
    """

    def on(number: int, frame: FrameType | None) -> None:
        again = signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL
        signal.signal(number, again)
        act(signal.Signals(number))

    before = {number: signal.getsignal(number) for number in STOPPING}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, on)
    _hearing.append(True)
    try:
        yield
    finally:
        _hearing.pop()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def one_term() -> Iterator[None]:
    """Let the handler of SIGTERM hear one SIGTERM in this block, and no more.

    Within `heard` a second ends the process at once. Elsewhere it is ignored: a Prefect worker may
    hear twice that a flow run was cancelled, and then sends it twice, but what saves at the first
    must not end at the second. Such a worker ends by SIGKILL whatever lives on. Changes nothing in
    a thread other than the main one, or where SIGTERM is not handled in Python.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    if not callable(before):
        yield
        return

    def on(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL if _hearing else signal.SIG_IGN)
        before(number, frame)

    signal.signal(signal.SIGTERM, on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def interrupts() -> Iterator[Callable[[BaseException], None]]:
    """Yields what raises an error in the handler of a signal in this block, and is not lost.

    Whoever imports may take any error for the lack of what it asked for, and go on without it; and
    half a module stays, as of NumPy where PyTorch looks for it. So in an import it is raised behind
    that, but after `IMPORT_S` at the latest. Where Python ignores errors, as in finalizers and in
    what it calls around a fork, it is raised once more. Only the main thread may enter the block.
    """
    alarm, hook = signal.getsignal(signal.SIGALRM), sys.unraisablehook
    pending: list[BaseException] = []
    until = 0.0

    def give(error: BaseException) -> None:
        nonlocal until
        pending[:], until = [error], time.monotonic() + IMPORT_S
        attempt(signal.SIGALRM, sys._getframe())

    def attempt(number: int, frame: FrameType | None) -> None:
        if not _imports(frame) or time.monotonic() > until:
            raise pending[0]
        soon()

    def soon() -> None:
        signal.signal(signal.SIGALRM, attempt)
        signal.setitimer(signal.ITIMER_REAL, _LOOK_S)

    def ignored(what: sys.UnraisableHookArgs) -> None:
        if pending and what.exc_value is pending[0]:
            soon()
        else:
            hook(what)

    sys.unraisablehook = ignored
    try:
        yield give
    finally:
        sys.unraisablehook = hook
        if signal.getsignal(signal.SIGALRM) is attempt:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, alarm)


def _imports(frame: FrameType | None) -> bool:
    """Whether this frame, or one that has called it, is of the import system."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def status_of(number: signal.Signals) -> int:
    """The exit status of a process that a signal has ended in good order, as shells report it: 130
    for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
    return 128 + number
