"""The errors that a user can mend: their texts name what is wrong and what to do."""


class UserError(ValueError):
    """An input or a setting is wrong. Commands show the text without a traceback, with `status`."""

    status = 2


class DiskFull(UserError, OSError):
    """A disk or a quota has no room left."""

    status = 4


DIVERGED = 3
"""The exit status of a training whose numbers were not finite any more (FloatingPointError)."""
