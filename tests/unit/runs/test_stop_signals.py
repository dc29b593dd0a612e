"""How often a request to end is heard."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from gan_train.runs import stop_signals

TERM = signal.SIGTERM


@pytest.fixture
def told() -> Iterator[list[int]]:
    """The numbers of the SIGTERMs that a handler hears, as that of an engine would."""
    heard: list[int] = []
    before = signal.signal(TERM, lambda number, frame: heard.append(number))
    yield heard
    signal.signal(TERM, before)


def test_one_term_alone_is_heard_in_a_flow_of_a_worker(told: list[int]) -> None:
    outside = signal.getsignal(TERM)
    with stop_signals.one_term():
        os.kill(os.getpid(), TERM)
        os.kill(os.getpid(), TERM)
    assert told == [TERM]
    assert signal.getsignal(TERM) == outside
    os.kill(os.getpid(), TERM)
    assert told == [TERM, TERM]


@pytest.mark.parametrize("unheard", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_signal_that_nobody_handles_stays_so(unheard: signal.Handlers, told: list[int]) -> None:
    signal.signal(TERM, unheard)
    with stop_signals.one_term():
        assert signal.getsignal(TERM) == unheard


def test_other_threads_hear_no_signals(told: list[int]) -> None:
    outside = signal.getsignal(TERM)

    @stop_signals.one_term()
    def work() -> None:
        assert signal.getsignal(TERM) == outside
        told.append(0)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert told == [0]


def test_a_second_one_ends_a_command_at_once() -> None:
    """A command hears signals itself; in it, an engine has put its own handler before that."""
    command = """
import os, signal
from gan_train.runs import stop_signals
with stop_signals.heard(lambda number: None):
    signal.signal(signal.SIGTERM, lambda number, frame: print("saving", flush=True))
    with stop_signals.one_term():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
print("too late")
"""
    ended = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (-TERM, "saving\n"), ended.stderr


SWALLOWS = """
import os, signal, time
lost = False
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep({seconds})
except BaseException:  # as PyTorch does where it looks for NumPy
    lost = True
"""


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], ModuleType]:
    """Imports, while signals interrupt, a module that takes some seconds and gets one meanwhile."""

    def do(seconds: float) -> ModuleType:
        name = f"swallows_{seconds:.0f}"
        (tmp_path / f"{name}.py").write_text(SWALLOWS.format(seconds=seconds))
        monkeypatch.syspath_prepend(tmp_path)
        return importlib.import_module(name)

    return do


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt."""

    def interrupt(number: signal.Signals) -> None:
        give(KeyboardInterrupt(number))

    before = signal.getsignal(signal.SIGALRM), sys.unraisablehook
    with stop_signals.interrupts() as give, stop_signals.heard(interrupt):
        yield
    assert before == (signal.getsignal(signal.SIGALRM), sys.unraisablehook)


@pytest.mark.usefixtures("interruptible")
def test_a_signal_does_not_tear_an_import(imported: Callable[[float], ModuleType]) -> None:
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt) as raised:
        module = imported(0.2)
        time.sleep(60)
    assert raised.value.args == (TERM,) and time.monotonic() - begun < 30
    assert not module.lost


@pytest.mark.usefixtures("interruptible")
def test_an_import_that_does_not_end_is_torn(
    imported: Callable[[float], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop_signals, "IMPORT_S", 0.1)
    assert imported(60).lost


@pytest.mark.usefixtures("interruptible")
def test_a_signal_is_not_lost_where_python_ignores_errors() -> None:
    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), TERM)
            time.sleep(0.01)

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt) as raised:
        Finalized()
        time.sleep(60)
    assert raised.value.args == (TERM,) and time.monotonic() - begun < 30
