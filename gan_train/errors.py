"""The error that a user can mend: its text names what is wrong and what to do."""


class UserError(ValueError):
    """An input or a setting is wrong. Commands show the text without a traceback, with status 2."""
