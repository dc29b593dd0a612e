"""How a recipe, a YAML file with `key=value` overrides, becomes a `Config` or a clear message.

Configurations are read, changed and written here alone. A user's mistake raises a `UserError` that
names each wrong key, its value, what is allowed, and the nearest valid key.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.files import plain_yaml
from gan_train.files.shipped import SHIPPED as SHIPPED
from gan_train.files.shipped import known as known

SOURCES = ("data.source", "data.second.source")
"""The keys of the sources of images."""
MOST_MISTAKES = 10
"""That are explained; of more, the number is told."""


def load(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a recipe (a path, or the bare name of a file in `configs/`) after
    `overrides` such as `train.batch=64`, whose values are read as YAML.

    Raises UserError for anything missing, unknown or out of range.
    """
    path = find(recipe)
    tree = plain_yaml.read(path)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a recipe is a mapping such as `name: demo`, found {_show(tree)}")
    return check(tree, overrides)


def change(config: Config, changes: Mapping[str, Any]) -> Config:
    """The configuration with other values at some dotted keys, such as `{"train.batch": 64}`.

    This is the one way to change a configuration: the result is checked as a recipe is. A value may
    be a group, such as a dictionary or another configuration's part. Raises UserError.
    """
    tree = config.model_dump(mode="json")
    for key, value in changes.items():
        plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        _set(tree, key.split("."), plain, f"changing {key}")
    return check(tree)


def check(tree: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """The configuration that `tree` describes once the overrides have been written into it. Raises
    UserError, whose text lists all mistakes."""
    for override in overrides:
        _override(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as problems:
        errors = problems.errors(include_url=False)
    # a wrong choice in a union is reported once per member
    lines = list(dict.fromkeys(_explain(error, tree) for error in errors[:MOST_MISTAKES]))
    more = len(errors) - MOST_MISTAKES
    if more > 0:
        lines.append(f"and {more} more")
    count = len(errors) if more > 0 else len(lines)
    head = "" if count == 1 else f"{count} mistakes in the configuration:\n"
    raise UserError(head + "\n".join(lines))


def find(recipe: str) -> Path:
    """The file of a recipe. A bare name is looked up in `./configs`, then among the recipes that
    come with the project. Raises UserError, which names the nearest one, if there is none."""
    given = Path(recipe)
    if given.suffix in (".yaml", ".yml"):
        with suppress(OSError):  # of a name that is too long
            if given.is_file():
                return given
        raise UserError(
            f"{_show(recipe)}: no such recipe file; allowed: the path of a YAML file, or a name "
            "that `gan-train recipes` lists"
        )
    files = {path.stem: path for path in known()}
    if recipe in files:
        return files[recipe]
    raise UserError(
        f"{_show(recipe)}: no such recipe{_nearest(recipe, list(files)) or '.'}"
        f" Allowed: a path ending in .yaml, or one of {', '.join(files)}"
    )


def about(path: Path) -> str:
    """What a recipe's file says of itself: the comment at its head, as one paragraph."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head = takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.removeprefix("#").strip() for line in head)


def dump(config: Config) -> str:
    """The configuration as YAML with every default written out, which `load` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def with_absolute_paths(config: Config) -> Config:
    """The same configuration with absolute paths, for processes that run in other folders.

    Addresses such as `https://...` stay as they are. A source that is not in the present folder,
    such as `sample_data/glyphs.zip`, is looked for among the files that come with the project.
    """
    return change(
        config,
        {key: _absolute(path, shipped=key in SOURCES) for key, path in paths(config).items()},
    )


def paths(config: Config) -> dict[str, str]:
    """The paths and addresses of files in a configuration, by dotted key, where they are set."""
    keys = [
        *SOURCES,
        *("workspace", "train.start_from"),
        *("evaluate.weights", "evaluate.perceptual_weights", "evaluate.pictures"),
        *(
            f"family.{name}"
            for name, field in type(config.family).model_fields.items()
            if field.json_schema_extra == {"path": True}
        ),
    ]
    return {key: path for key in keys if (path := _value(config, key))}


def _absolute(path: str, shipped: bool) -> str:
    """The absolute path. With `shipped`, a relative path that does not exist in the present folder
    is looked for among the files that come with the project."""
    if "://" in path:
        return path
    here, there = Path(path).expanduser().absolute(), SHIPPED.parent / path
    return str(there if shipped and there.exists() and not here.exists() else here)


def _value(config: Config, key: str) -> str:
    """The value at a dotted key as text; empty where it is not set."""
    if key == "workspace" and config.store is not None:
        return config.store
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part) if found is not None else None
    return "" if found is None else str(found)


def _override(tree: dict[str, Any], override: str) -> None:
    """Set the value of `a.b=value` in the tree."""
    key, equals, text = override.partition("=")
    parts, what = key.strip().split("."), f"--set {_show(override)}"
    if not equals or not all(parts):
        raise UserError(f"{what}: expected key=value, such as train.batch=64")
    if len(parts) > plain_yaml.MOST_DEPTH:
        raise UserError(f"{what}: a key has few parts, such as train.batch")
    _set(tree, parts, plain_yaml.parse(text, what), what)


def _set(tree: dict[str, Any], parts: Sequence[str], value: Any, what: str) -> None:
    """Put the value at the path of keys `parts`; error messages name `what`."""
    node = tree
    for depth, part in enumerate(parts[:-1]):
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            group = ".".join(parts[: depth + 1])
            raise UserError(f"{what}: {group} is a value ({_show(child)}), it has no keys")
        node = child
    node[parts[-1]] = value


def _explain(error: ErrorDetails, tree: dict[str, Any]) -> str:
    """One line on one problem: the key, its value, what is allowed, and the nearest valid key."""
    fields = _fields(_family(tree))
    path = _path(error["loc"], tree, fields)
    key, value = _show(".".join(path)), error["input"]
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        names = _names()
        key, name = f"{key}.name", value.get("name")
        shown = key if name is None else f"{key}={_show(name)}"
        return f"{shown}: allowed: {', '.join(names)}{_nearest(_show(name), names)}"
    shown = key if isinstance(value, dict) else f"{key}={_show(value)}"
    if error["type"] == "extra_forbidden":
        return f"{shown}: unknown key{_suggest(path, fields)}"
    if error["type"] == "missing":
        return f"{key}: missing; allowed: {_allowed(path, fields)}"
    if error["type"] in (
        "value_error",
        "too_large",
        "too_long",
        "unprintable",
        "password",
    ):  # our own validators say what is allowed
        message = error["msg"].removeprefix("Value error, ")
        return f"{shown}: {message}" if path and not isinstance(value, dict) else message
    nearest = _nearest(_show(value), _choices(path, fields))
    return f"{shown}: allowed: {_allowed(path, fields)}{nearest}"


def _family(tree: dict[str, Any]) -> str:
    """The name that the tree gives its family; empty where it gives none."""
    family = tree.get("family")
    name = family.get("name") if isinstance(family, dict) else None
    return name if isinstance(name, str) else ""


def _path(loc: tuple[int | str, ...], tree: Any, fields: Fields) -> list[str]:
    """The keys of a location, without the names that pydantic adds for the members of a union."""
    path: list[str] = []
    for part in loc:
        inside = isinstance(tree, dict) and part in tree
        if isinstance(part, str) and not inside and ".".join([*path, part]) not in fields:
            continue
        path.append(str(part))
        inside |= isinstance(tree, list) and isinstance(part, int) and part < len(tree)
        tree = tree[part] if inside else None
    return path


def _show(value: Any) -> str:
    """A value as a recipe has it, cut to some words, in one line that a terminal can print."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    try:
        shown = value if isinstance(value, str) else repr(value)
    except ValueError:  # of a whole number with thousands of digits, which Python does not write
        return "a number of thousands of digits"
    if not shown.isprintable():
        shown = ascii(shown)
    return shown if len(shown) <= 100 else f"{shown[:80]}... ({len(shown)} characters)"


Fields = dict[str, dict[str, Any]]
"""The JSON Schema of every key, groups included, by dotted path."""


@cache
def _fields(family: str) -> Fields:
    """The keys of a configuration with this family, or with any family if none has this name."""
    schema = Config.model_json_schema()
    return dict(_walk(schema, schema.get("$defs", {}), "", family))


@cache
def _names() -> list[str]:
    """The names of the families."""
    schema = Config.model_json_schema()
    return sorted(schema["properties"]["family"]["discriminator"]["mapping"])


def _walk(
    node: dict[str, Any], definitions: dict[str, Any], prefix: str, family: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    if "$ref" in node:
        node = definitions[node["$ref"].rsplit("/", 1)[-1]]
    members = node.get("oneOf", node.get("anyOf", []))
    of_name = node.get("discriminator", {}).get("mapping", {})
    if family in of_name:
        members = [{"$ref": of_name[family]}]
    for member in members:
        yield from _walk(member, definitions, prefix, family)
    for name, field in node.get("properties", {}).items():
        yield prefix + name, field
        yield from _walk(field, definitions, f"{prefix}{name}.", family)


def _suggest(path: list[str], fields: Fields) -> str:
    """The end of a message on an unknown key: the valid key that was most likely meant."""
    *group, name = path
    prefix = "".join(f"{part}." for part in group)
    siblings = {
        key.removeprefix(prefix): key
        for key in fields
        if key.startswith(prefix) and "." not in key.removeprefix(prefix)
    }
    name = name[:100]  # no key is as long
    close = difflib.get_close_matches(name, siblings, 1)
    if close:
        return f"; did you mean {siblings[close[0]]}?"
    # the right name in the wrong group
    names = {key.rsplit(".", 1)[-1] for key in fields}
    close = difflib.get_close_matches(name, sorted(names), 1, cutoff=0.8)
    if close:
        meant = [key for key in fields if key.rsplit(".", 1)[-1] == close[0]]
        return f"; did you mean {' or '.join(meant)}?"
    return f"; allowed here: {', '.join(sorted(siblings))}"


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name[:100], known, 1)  # no name is as long
    return f"; did you mean {close[0]}?" if close else ""


def _allowed(path: list[str], fields: Fields) -> str:
    """What the schema allows at a key, in words, and the key's description."""
    field = _field(path, fields)
    description = field.get("description", "")
    return _words(field) + (f" ({description.rstrip('.')})" if description else "")


def _choices(path: list[str], fields: Fields) -> list[str]:
    """The values that are allowed at a key, if the schema lists them; otherwise none."""
    field = _field(path, fields)
    return [str(choice) for choice in field.get("items", field).get("enum", [])]


def _field(path: list[str], fields: Fields) -> dict[str, Any]:
    """The schema at a path; for an element of a list, the schema of the list."""
    while path and ".".join(path) not in fields:
        path = path[:-1]
    return fields.get(".".join(path), {})


_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "boolean": "true or false",
    "null": "empty",
    "array": "a list",
    "object": "a mapping",
}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
    "pattern": "matching",
}


def _words(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_words(member) for member in field["anyOf"])
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    if "items" in field:
        return "a list of " + _words(field["items"])
    if "prefixItems" in field:
        parts = field["prefixItems"]
        return f"a list of {len(parts)}, each {_words(parts[0])}"
    bounds = [f"{word} {_bound(field[name])}" for name, word in _BOUNDS.items() if name in field]
    return " ".join([_TYPES.get(field.get("type", "object"), "a mapping"), *bounds])


def _bound(bound: Any) -> Any:
    """A bound as one reads it: 10000000, not 10000000.0."""
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound
