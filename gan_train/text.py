"""Untrusted text as text: names of classes, files and recipes may hold anything.

What shows them goes through here: `visible` and `line` for terminals and logs, `markdown` and
`code` for what the UIs of MLflow and Prefect render, `html_templates` for pages. Passwords in
addresses are left out of every message.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
"""Unicode's categories of what has no shape of its own: controls (with the escape that terminals
obey), formats (with the marks that turn the direction of writing), surrogates, separators."""
_KEPT = "\n\t\u200c\u200d"  # the last two join letters in several scripts, and emoji
_MARKUP = re.compile(
    r"[\\`*~\[\]<>|&@]"
    r"|(?<![a-z0-9])_|_(?![a-z0-9])"  # within a word it stays
    r"|^[#+=-]"
    r"|:(?=//)|(?<=www)\.",  # some renderers make links of bare addresses
    re.IGNORECASE,
)

PASSWORD = re.compile(r"(?<=://)([^\s/:@]*):[^\s/@]+@")
"""The name and the password in an address such as `postgresql://name:password@host`."""


def without_passwords(text: str) -> str:
    """The text with `***` for the password of each address in it."""
    return PASSWORD.sub(r"\1:***@", text)


def visible(text: str) -> str:
    r"""The text with what has no shape as an escape, such as `\x1b` for that of terminals; line
    breaks and tabs stay."""
    return "".join(map(_shown, text))


def line(text: str) -> str:
    """The text, made `visible`, in one line."""
    return visible(" ".join(text.split()))


def _shown(character: str) -> str:
    hidden = unicodedata.category(character) in _HIDDEN and character not in _KEPT
    return character.encode("unicode_escape").decode() if hidden else character


def markdown(text: str, limit: int | None = None) -> str:
    """The text for a place within a line of Markdown, where it shows as it is: no markup, no link,
    no end of a table's cell. With a limit, at most so many characters, the escapes counted."""
    # numbers of characters, because not every renderer knows all escapes by backslash
    escaped = _MARKUP.sub(lambda found: f"&#{ord(found[0])};", line(text))
    if limit is None or len(escaped) <= limit:
        return escaped
    whole = re.compile(r"&#\d+;|.")
    return "".join(part[0] for part in whole.finditer(escaped) if part.end() < limit) + "…"


def code(text: str) -> str:
    """The text as code within a line of Markdown, but not of a table."""
    plain = line(text)
    longest = max(map(len, re.findall("`+", plain)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{plain}{space}{fence}"


class VisibleFormatter(logging.Formatter):
    """Formats a log record for a terminal, which must not obey what stands in a message. It
    holds no password of an address."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's line, or lines."""
        return visible(without_passwords(super().format(record)))


def html_templates(folder: Path) -> Environment:
    """The templates of HTML pages in a folder. Whatever they show is escaped, and a name that they
    do not know is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # not for every command

    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
