"""The errors that a user can mend, and how commands show errors and end."""

from __future__ import annotations

import sys
import traceback
from types import TracebackType

from gan_train.text import visible, without_passwords


class UserError(ValueError):
    """An input or a setting is wrong: its text names what is wrong and what to do. Commands show
    the text without a traceback, and end with `status`."""

    status = 2

    def __str__(self) -> str:
        """The text, which logs and Prefect keep, without the passwords of addresses."""
        return without_passwords(super().__str__())


class DiskFull(UserError, OSError):
    """A disk or a quota has no room left."""

    status = 4


DIVERGED = 3
"""The exit status of a training whose numbers were not finite any more (FloatingPointError)."""

Told = UserError | OSError | FloatingPointError
"""What commands tell without a traceback."""


def told(error: Told, debug: bool) -> int:
    """Tell a user's mistake, numbers that are not finite, or what the system says of a file, with
    `debug` by its traceback; returns the exit status. Raises an OSError again that names no file: a
    user cannot mend it.
    """
    if isinstance(error, OSError) and not isinstance(error, UserError) and error.filename is None:
        raise error
    if debug:
        traceback.print_exception(error)
    else:
        print(f"gan-train: {visible(_words(error))}", file=sys.stderr)
    if isinstance(error, FloatingPointError):
        return DIVERGED
    return error.status if isinstance(error, UserError) else UserError.status


def _words(error: Told) -> str:
    if isinstance(error, OSError) and not isinstance(error, UserError):
        return (
            f"{str(error.filename)[:200]}: {error.strerror}; check that the path is right, that "
            "there is room, and that you may read and write there"
        )
    return str(error)


def hide_tracebacks() -> None:
    """From now on, an error that nobody catches ends this process with two lines, and status 1."""
    sys.excepthook = _in_two_lines


def _in_two_lines(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    words = " ".join(str(error).split())[:500]
    print(
        f"gan-train: {kind.__name__}: {visible(words)}\nThe option --debug shows where it arose.",
        file=sys.stderr,
    )
