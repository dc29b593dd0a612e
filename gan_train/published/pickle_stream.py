"""Pickles read as data: nothing that they name is imported, nothing is called.

A pickle is a program for a stack machine that may import and call whatever it names. Here stands
that machine without those powers: `pickletools` splits the stream into instructions, and the
instructions build numbers, texts, bytes, tuples, lists, sets and dictionaries. Where the stream
names a class or function, the name must be in the caller's `Vocabulary`, and what is built for it
is built by the caller's own function. Everything else is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from gan_train.errors import UserError

# The largest published networks need some hundred thousand instructions; these stop a small file
# from growing in memory or time.
MAX_INSTRUCTIONS = 1_000_000
MAX_DEPTH = 200  # containers begun and not yet ended
MAX_TEXT = 16 << 20  # characters
MAX_INTEGER_BITS = 128


class StreamError(UserError):
    """The stream is damaged, or asks for what is not done here. The text names it."""


class Stream(Protocol):
    """What is read from: an `io.BytesIO` or an `mmap`, whose `read` returns less at the end."""

    def read(self, count: int, /) -> bytes: ...
    def readline(self) -> bytes: ...
    def tell(self) -> int: ...


@dataclass(frozen=True)
class Name:
    """A class or function that a stream names. Only a name: it stands for nothing but itself."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@runtime_checkable
class TakesState(Protocol):
    """Something built by a vocabulary to which the stream may give a state afterwards."""

    def take_state(self, state: Any) -> None:
        """Raises StreamError for a state that it does not know."""


Builder = Callable[[tuple[Any, ...]], Any]
"""Makes an inert value of the arguments that the stream gives; raises StreamError."""
Vocabulary = Mapping[Name, Builder | None]
"""All that a stream may name. Without a builder a name may stand in it, but not be called."""


def read_pickle(
    stream: Stream, vocabulary: Vocabulary, persistent: Builder | None = None
) -> object:
    """The value of the one pickle that begins here; the stream then stands behind it.

    `persistent` makes values of tuples that stand for data outside the pickle; without it they are
    refused. The value may contain itself, and may be small in memory but endless to walk: walk it
    with a bound. Raises StreamError.
    """
    return _Machine(vocabulary, persistent).run(stream)


class _Machine:
    def __init__(self, vocabulary: Vocabulary, persistent: Builder | None) -> None:
        self.vocabulary, self.persistent = vocabulary, persistent
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def run(self, stream: Stream) -> Any:
        """Follow the instructions to the end of the pickle."""
        count = 0
        try:
            for opcode, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]
                count += 1
                if count > MAX_INSTRUCTIONS:
                    raise StreamError(f"the pickle has more than {MAX_INSTRUCTIONS} instructions")
                if opcode.name == "STOP":
                    return self.last()
                self.follow(opcode.name, argument)
        except StreamError:
            raise
        except ValueError as error:  # what pickletools raises for every damage
            raise StreamError(f"the pickle is damaged or cut off: {error}") from error
        raise StreamError("the pickle is cut off")

    def last(self) -> Any:
        """The one value that is left at the end."""
        if len(self.stack) != 1 or self.outer:
            raise StreamError("the pickle is damaged: it does not end with one value")
        return self.stack[0]

    def pop(self) -> Any:
        if not self.stack:
            raise StreamError("the pickle is damaged: it takes a value where there is none")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.outer:
            raise StreamError("the pickle is damaged: it ends a container that it did not begin")
        values, self.stack = self.stack, self.outer.pop()
        return values

    def top(self, kind: type) -> Any:
        """The value that is added to, which must be such a container."""
        if not self.stack or type(self.stack[-1]) is not kind:
            found = type(self.stack[-1]).__name__ if self.stack else "nothing"
            raise StreamError(f"the pickle adds to {found} as if it were a {kind.__name__}")
        return self.stack[-1]

    def follow(self, instruction: str, argument: Any) -> None:
        """One instruction; those that are not listed are refused by name."""
        match instruction:
            case "PROTO" | "FRAME":
                pass
            # plain values
            case "NONE":
                self.stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                self.stack.append(instruction == "NEWTRUE")
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4":
                if argument.bit_length() > MAX_INTEGER_BITS:
                    raise StreamError(f"an integer has more than {MAX_INTEGER_BITS} bits")
                self.stack.append(argument)
            case "FLOAT" | "BINFLOAT":
                self.stack.append(argument)
            case "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                if len(argument) > MAX_TEXT:
                    raise StreamError(f"a text has more than {MAX_TEXT} characters")
                self.stack.append(argument)
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                self.stack.append(argument)
            # containers
            case "MARK":
                if len(self.outer) >= MAX_DEPTH:
                    raise StreamError(f"containers are nested deeper than {MAX_DEPTH}")
                self.outer.append(self.stack)
                self.stack = []
            case "POP" if not self.stack:
                self.pop_to_mark()
            case "POP":
                self.pop()
            case "POP_MARK":
                self.pop_to_mark()
            case "EMPTY_TUPLE":
                self.stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                values = [self.pop() for _ in range(int(instruction[-1]))]
                self.stack.append(tuple(reversed(values)))
            case "TUPLE":
                values = self.pop_to_mark()
                self.stack.append(tuple(values))
            case "EMPTY_LIST":
                self.stack.append([])
            case "LIST":
                values = self.pop_to_mark()
                self.stack.append(values)
            case "APPEND":
                value = self.pop()
                self.top(list).append(value)
            case "APPENDS":
                values = self.pop_to_mark()
                self.top(list).extend(values)
            case "EMPTY_DICT":
                self.stack.append({})
            case "DICT":
                values = self.pop_to_mark()
                self.stack.append({})
                self.set_items(values)
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self.set_items([key, value])
            case "SETITEMS":
                self.set_items(self.pop_to_mark())
            case "EMPTY_SET":
                self.stack.append(set())
            case "ADDITEMS":
                values = self.pop_to_mark()
                self.top(set).update(map(key_of, values))
            # values met before
            case "MEMOIZE":
                self.remember(len(self.memo))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.remember(argument)
            case "GET" | "BINGET" | "LONG_BINGET":
                if argument not in self.memo:
                    raise StreamError("the pickle is damaged: it recalls what it did not store")
                self.stack.append(self.memo[argument])
            # names, and what is made of them
            case "GLOBAL":
                module, _, name = argument.partition(" ")
                self.stack.append(self.allowed(Name(module, name)))
            case "STACK_GLOBAL":
                name, module = self.pop(), self.pop()
                if type(name) is not str or type(module) is not str:
                    raise StreamError("the pickle is damaged: a name is no text")
                self.stack.append(self.allowed(Name(module, name)))
            case "REDUCE" | "NEWOBJ":
                arguments, name = self.pop(), self.pop()
                self.stack.append(self.made(name, arguments))
            case "BUILD":
                state = self.pop()
                target = self.stack[-1] if self.stack else None
                if not isinstance(target, TakesState):
                    raise StreamError(f"the pickle gives a state to {type(target).__name__}")
                target.take_state(state)
            case "BINPERSID" if self.persistent is not None:
                reference = self.pop()
                if type(reference) is not tuple:
                    raise StreamError("the pickle is damaged: a reference is no tuple")
                self.stack.append(self.persistent(reference))
            case _:
                raise StreamError(f"the pickle uses {instruction}, an instruction that is refused")

    def remember(self, place: int) -> None:
        if not self.stack:
            raise StreamError("the pickle is damaged: it stores a value where there is none")
        self.memo[place] = self.stack[-1]

    def set_items(self, values: list[Any]) -> None:
        """Keys and values by turns, into the dictionary on top."""
        if len(values) % 2:
            raise StreamError("the pickle is damaged: a key has no value")
        target = self.top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[key_of(key)] = value

    def allowed(self, name: Name) -> Name:
        if name not in self.vocabulary:
            raise StreamError(f"the pickle names {name}, which is refused")
        return name

    def made(self, name: Any, arguments: Any) -> Any:
        """What our own builder makes for a name of the stream."""
        builder = self.vocabulary.get(name) if isinstance(name, Name) else None
        if builder is None or type(arguments) is not tuple:
            called = name if isinstance(name, Name) else type(name).__name__
            raise StreamError(f"the pickle calls {called}, which is refused")
        return builder(arguments)


def key_of(value: Any) -> str | int | None:
    """A key or a member of a set. Tuples are refused: their hash walks all that they contain."""
    if value is not None and type(value) not in (str, int, bool):
        raise StreamError(f"the pickle uses a {type(value).__name__} as a key, which is refused")
    key: str | int | None = value
    return key
