"""Signals end a command with the status that shells report for them."""

from __future__ import annotations

import signal

import pytest

from pipelines.cli import ending


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_the_status_tells_the_signal(
    number: signal.Signals, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt) as raised, ending.interruptible():
            signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_DFL, "what was before acts again"
    finally:
        signal.signal(number, before)
    assert ending.stopped(raised.value) == status
    assert capsys.readouterr().err == "gan-train: stopped\n"
