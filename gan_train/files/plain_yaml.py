"""Reads YAML as a mapping of plain values, within bounds, or says in one line what is wrong.

There are mappings, lists, texts, whole numbers, numbers, `true`, `false` and `null`. As in YAML
1.2, `yes` and `2026-01-31` are texts. Tags such as `!!int` are refused, and so is what is larger
than any recipe: it could fill the memory, or take minutes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from gan_train.errors import UserError

MOST_BYTES = 200_000
MOST_DEPTH = 20
MOST_VALUES = 5_000
"""Of a document, with the values of an alias counted wherever it stands."""
MOST_DIGITS = 30

_TAG = "tag:yaml.org,2002:"
_KEYS = (f"{_TAG}str", f"{_TAG}int", f"{_TAG}merge")

_PATTERNS = {
    f"{_TAG}null": r"(?:~|null|Null|NULL|)\Z",
    f"{_TAG}bool": r"(?:true|True|false|False)\Z",
    f"{_TAG}int": r"[-+]?[0-9][0-9_]*\Z",
    f"{_TAG}float": r"""(?x:
        [-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9]+[eE][-+]?[0-9]+
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))\Z""",
    f"{_TAG}merge": r"<<\Z",
}
"""What a text without quotes is taken for, as YAML 1.2 has it."""


class _Loader(yaml.SafeLoader):
    """Reads bounded YAML, and refuses a key that is given twice."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as the base class has it
        None: [(tag, re.compile(pattern, re.ASCII)) for tag, pattern in _PATTERNS.items()]
    }
    yaml_constructors = {  # noqa: RUF012
        f"{_TAG}null": yaml.SafeLoader.construct_yaml_null,
        f"{_TAG}bool": yaml.SafeLoader.construct_yaml_bool,
        f"{_TAG}int": lambda loader, node: loader.construct_int(node),
        f"{_TAG}float": yaml.SafeLoader.construct_yaml_float,
        f"{_TAG}str": yaml.SafeLoader.construct_yaml_str,
        f"{_TAG}seq": yaml.SafeLoader.construct_yaml_seq,
        f"{_TAG}map": yaml.SafeLoader.construct_yaml_map,
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[int, int] = {}  # by the identity of nodes, which the document keeps alive

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) not in (None, "!"):
            raise _Refused(f"the tag {_short(event.tag)}; write the value without it", event)
        if self._depth > MOST_DEPTH:
            raise _Refused(f"nested deeper than {MOST_DEPTH} levels", event)
        if len(self._sizes) > MOST_VALUES:
            raise _Refused(f"more than {MOST_VALUES} values", event)
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        assert node is not None
        if not isinstance(event, yaml.AliasEvent):
            self._sizes[id(node)] = self._size(node)
        elif id(node) not in self._sizes:
            raise _Refused(f"*{_short(str(event.anchor))} stands in what it stands for", event)
        return node

    def _size(self, node: yaml.Node) -> int:
        """The number of values in a node, aliases written out."""
        inside: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.tag not in _KEYS:
                    raise _Refused("a key that is no text; put it in quotes", key)
                inside.append(value)
        elif isinstance(node, yaml.SequenceNode):
            inside = node.value
        size = 1 + sum(self._sizes[id(child)] for child in inside)
        if size > MOST_VALUES:
            raise _Refused(f"more than {MOST_VALUES} values", node)
        return size

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise _Refused(f"`{_short(key_node.value)}` is given twice", key_node)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        """A whole number of bounded length: a conversion takes the square of it."""
        digits = node.value.replace("_", "")
        if len(digits) > MOST_DIGITS:
            raise _Refused(f"a number of {len(digits)} digits", node)
        return int(digits)


class _Refused(yaml.MarkedYAMLError):
    """What this file does not read, at an event or a node."""

    def __init__(self, problem: str, where: Any) -> None:
        super().__init__(None, None, problem, where.start_mark)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def read(path: Path) -> Any:
    """The value of a YAML file. Raises UserError for what is no readable file, no text in UTF-8
    (with a byte-order mark or without), or no YAML within the bounds."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(data) <= MOST_BYTES:
            raise UserError(
                f"{path}: not a text in UTF-8 (byte {error.start}); save it in that encoding"
            ) from error
        text = data.decode("latin-1")  # it is refused for its size
    return parse(text, str(path))


def parse(text: str, name: str) -> Any:
    """The value of a YAML text; `name` says in messages where it came from. Raises UserError."""
    if len(text) > MOST_BYTES:
        raise UserError(f"{name}: more than {MOST_BYTES} characters; a recipe has fewer")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = _short(str(error.problem or error.context))
        raise UserError(f"{name}: not valid YAML{where}: {problem}") from error
    except yaml.reader.ReaderError as error:
        raise UserError(
            f"{name}: not valid YAML at character {error.position}: {error.reason}"
        ) from error
    except (ValueError, OverflowError) as error:  # of an escape such as "\Uffffffff"
        raise UserError(f"{name}: not valid YAML: no character has this number") from error
