"""Errors that a user can mend. Their text names what is wrong and what to do."""


class UserError(ValueError):
    """A wrong input or configuration: shown without a traceback, exit status 2."""
