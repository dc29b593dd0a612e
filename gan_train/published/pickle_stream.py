"""Reads pickles as data: nothing that they name is imported or called.

A pickle is a program for a stack machine, which may import and call any function. This file has a
stack machine that cannot: `pickletools` splits the stream into instructions, and the instructions
build numbers, texts, bytes, tuples, lists, sets and dictionaries. Where the stream
names a class or function, the name must be in the caller's `Vocabulary`, and the caller's own
function builds a value for it. Everything else is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from gan_train.errors import UserError

# The largest published networks need some hundred thousand instructions. These limits stop a small
# file from taking much memory or time.
MAX_INSTRUCTIONS = 1_000_000
MAX_DEPTH = 200  # containers begun and not yet ended
MAX_TEXT = 16 << 20  # characters
MAX_INTEGER_BITS = 128


class StreamError(UserError):
    """The stream is damaged, or asks for something that is refused. The text says what."""


class Stream(Protocol):
    """The source of a pickle: an `io.BytesIO` or an `mmap`. At its end `read` returns less."""

    def read(self, count: int, /) -> bytes: ...
    def readline(self) -> bytes: ...
    def tell(self) -> int: ...


@dataclass(frozen=True)
class Name:
    """The name of a class or function in a stream. The class or function is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@runtime_checkable
class TakesState(Protocol):
    """A value that was built for a name, and that the stream may give a state afterwards."""

    def take_state(self, state: Any) -> None:
        """Take the state. Raises StreamError for a state that the value does not know."""


Builder = Callable[[tuple[Any, ...]], Any]
"""Builds an inert value from the arguments that the stream gives; may raise StreamError."""
Vocabulary = Mapping[Name, Builder | None]
"""The names that a stream may contain. A name whose builder is None may not be called."""


def read_pickle(
    stream: Stream, vocabulary: Vocabulary, persistent: Builder | None = None
) -> object:
    """Read the one pickle that begins here, and leave the stream at its end; returns its value.

    `persistent` builds values for tuples that refer to data outside the pickle; without it, these
    tuples are refused. The value may contain itself, so code that walks it must set a bound. Raises
    StreamError.
    """
    return _Machine(vocabulary, persistent).run(stream)


class _Machine:
    """The stack machine: it follows the instructions of one pickle."""

    def __init__(self, vocabulary: Vocabulary, persistent: Builder | None) -> None:
        self.vocabulary, self.persistent = vocabulary, persistent
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def run(self, stream: Stream) -> Any:
        """Follow the instructions to the end of the pickle; returns its value."""
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
        except ValueError as error:  # pickletools raises it for all damage
            raise StreamError(f"the pickle is damaged or cut off: {error}") from error
        raise StreamError("the pickle is cut off")

    def last(self) -> Any:
        """The value of the pickle: the only one that may be on the stack at the end."""
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
        """The container on top of the stack, which must be of this kind."""
        if not self.stack or type(self.stack[-1]) is not kind:
            found = type(self.stack[-1]).__name__ if self.stack else "nothing"
            raise StreamError(f"the pickle adds to {found} as if it were a {kind.__name__}")
        return self.stack[-1]

    def follow(self, instruction: str, argument: Any) -> None:
        """Follow one instruction. An instruction that is not listed here is refused."""
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
                self.stack.append(self.check(Name(module, name)))
            case "STACK_GLOBAL":
                name, module = self.pop(), self.pop()
                if type(name) is not str or type(module) is not str:
                    raise StreamError("the pickle is damaged: a name is no text")
                self.stack.append(self.check(Name(module, name)))
            case "REDUCE" | "NEWOBJ":
                arguments, name = self.pop(), self.pop()
                self.stack.append(self.build(name, arguments))
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
        """Put keys and values, which alternate, into the dictionary on top of the stack."""
        if len(values) % 2:
            raise StreamError("the pickle is damaged: a key has no value")
        target = self.top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[key_of(key)] = value

    def check(self, name: Name) -> Name:
        """The name itself. Raises StreamError unless it is in the vocabulary."""
        if name not in self.vocabulary:
            raise StreamError(f"the pickle names {name}, which is refused")
        return name

    def build(self, name: Any, arguments: Any) -> Any:
        """The value that the caller's own builder makes for a name of the stream."""
        builder = self.vocabulary.get(name) if isinstance(name, Name) else None
        if builder is None or type(arguments) is not tuple:
            called = name if isinstance(name, Name) else type(name).__name__
            raise StreamError(f"the pickle calls {called}, which is refused")
        return builder(arguments)


def key_of(value: Any) -> str | int | None:
    """The value itself. Raises StreamError if it may not be a key or a member of a set. Tuples are
    refused, because their hash walks everything that they contain."""
    if value is not None and type(value) not in (str, int, bool):
        raise StreamError(f"the pickle uses a {type(value).__name__} as a key, which is refused")
    key: str | int | None = value
    return key
