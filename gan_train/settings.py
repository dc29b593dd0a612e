"""What all groups of settings share: a base class, and types of settings with their bounds.

The bounds keep wrong numbers from becoming a crash, a loop or a full memory later. They lie far
beyond anything that was ever trained.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from gan_train.text import PASSWORD, without_passwords

MOST = 1 << 20
"""The most of anything that is counted: widths, batches, steps, images of a shard."""
MOST_KIMG = 1e7
"""The longest schedule, in thousands of images."""
MOST_CHARACTERS = 4000
"""Of any text."""
_ELSEWHERE = (
    "a password is shown with its run; leave it out of the address, and set MLFLOW_TRACKING_URI or "
    "MLFLOW_TRACKING_PASSWORD, PREFECT_API_AUTH_STRING, RAY_AUTH_TOKEN or AWS_SECRET_ACCESS_KEY in "
    "the environment"
)

Count = Annotated[int, Field(ge=1, le=MOST)]
"""A number of things, such as feature maps or images."""
Layers = Annotated[int, Field(ge=1, le=256)]
"""A number of layers or blocks."""
Resolution = Annotated[int, Field(ge=1, le=1024)]
"""A resolution in pixels, as the key of a mapping."""
Rate = Annotated[float, Field(gt=0, le=1000)]
"""A learning rate."""
Length = Annotated[float, Field(ge=0, le=MOST_KIMG)]
"""A length of the schedule in thousands of images."""


class Settings(BaseModel):
    """A group of settings: it refuses unknown keys, cannot be changed once it is made, and takes
    no value for another that Python thinks equal, such as true for 1."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _are_of_their_kinds(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        wrong: list[InitErrorDetails] = []
        for name in given.keys() & cls.model_fields.keys():
            kinds = _kinds(cast(Hashable, cls.model_fields[name].annotation))
            problem = None
            if not any(issubclass(kind, BaseModel) for kind in kinds):  # a group checks its own
                problem = _problem(given[name], kinds)
            if problem is not None:
                value = given[name]
                shown = without_passwords(value) if isinstance(value, str) else value
                wrong.append({"type": problem, "loc": (name,), "input": shown})
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return given


def harmless(default: Any, description: str, **limits: Any) -> Any:
    """A field that may change on resume without changing what is trained."""
    return Field(
        default, description=description, json_schema_extra={"resume": "harmless"}, **limits
    )


@cache
def _kinds(annotation: Any) -> frozenset[type]:
    """The types of the plain values that an annotation allows, such as int for `list[int]`."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return frozenset(type(value) for value in arguments)
    if arguments:
        return frozenset().union(*map(_kinds, arguments))
    return frozenset([annotation]) if isinstance(annotation, type) else frozenset()


def _problem(value: Any, kinds: frozenset[type]) -> PydanticCustomError | None:
    """What is wrong with a value, or with one inside it, that no setting of these types can be."""
    inside: list[tuple[Any, frozenset[type]]] = []
    if isinstance(value, dict):
        inside = [(key, kinds - {bool}) for key in value] + [(v, kinds) for v in value.values()]
    elif isinstance(value, list | tuple):
        inside = [(one, kinds) for one in value]
    elif value is not None and isinstance(value, bool) != (bool in kinds):
        return PydanticCustomError("other_kind", "")  # else `true` is 1, and `yes` is true
    elif isinstance(value, str):
        return _problem_of_text(value)
    elif isinstance(value, int | float) and not (-1e30 < value < 1 << 63 or value != value):
        return PydanticCustomError("too_large", "allowed: a number of ordinary size")
    return next((found for one in inside if (found := _problem(*one)) is not None), None)


def _problem_of_text(text: str) -> PydanticCustomError | None:
    if len(text) > MOST_CHARACTERS:
        return PydanticCustomError(
            "too_long", f"allowed: a text of at most {MOST_CHARACTERS} characters"
        )
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in text if c not in "\n\t"):
        return PydanticCustomError("unprintable", "allowed: a text without control characters")
    if PASSWORD.search(text):  # a configuration is stored with its run, and shown by the UIs
        return PydanticCustomError("password", _ELSEWHERE)
    return None


def possible_path(text: str) -> str:
    """The path or address as it is. Raises ValueError for one that no file can have on any machine,
    and for `~name` without such a user."""
    if not text.strip() or "\n" in text:
        raise ValueError("allowed: the path or address of a file or folder, in one line")
    longest = max(len(part.encode()) for part in text.split("/"))
    if longest > 255 or len(text.encode()) > 2000:
        raise ValueError("the path is too long; allowed: 255 bytes for each name, 2000 for all")
    if "://" in text:
        urlsplit(text)  # a ValueError says what is wrong with the host
    elif text.startswith("~"):
        try:
            Path(text).expanduser()
        except RuntimeError:
            user = text.split("/")[0]
            raise ValueError(f"there is no user {user}; write the path without `~`") from None
    return text


PathText = Annotated[str, AfterValidator(possible_path)]
"""The path of a file or folder, or its address."""
