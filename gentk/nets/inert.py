"""A pickle's instructions carried out with nothing that they could do harm with.

A pickle is a program for a stack machine. `pickle` lets it import and call whatever it can name; here the names come
from a table of the caller's, what is called is an `Entry` of that table, and what is set or filled is a `Record`, list,
dict or set that this program has made itself. Instructions beyond that are refused. Lengths and places that a file
claims cost nothing: nothing is set aside before there is content for it.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any


class Refused(Exception):
    """The file asks for something that could run code; the message names it."""


class Damaged(Exception):
    """The file is not what it should be."""


class Record:
    """An object of the file as data: its class's name and its state. The class itself is never looked up."""

    __slots__ = ("name", "state")

    def __init__(self, name: str, state: Any = None) -> None:
        self.name = name
        self.state = state

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute that the object had."""
        return self.state.get(attribute, default) if isinstance(self.state, dict) else default


class Entry:
    """What a global stands for: it can be called and nothing else; nothing can be set on it."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __setattr__(self, name: str, value: Any) -> None:
        raise Refused(f"asks to set `{name}` on a function")

    def __call__(self, *args: Any) -> Any:
        """What the table's owner makes of the arguments."""
        return self._call(*args)


class Bounded:
    """A file that is never asked for more than it has, whatever lengths its content claims."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left, self._size = file, size, size

    def read(self, n: int) -> bytes:
        """The next n bytes. Raises EOFError where there are fewer."""
        if n > self._left:
            raise EOFError
        return self._counted(self._file.read(n))

    def readline(self) -> bytes:
        """The next line."""
        return self._counted(self._file.readline())

    def tell(self) -> int:
        """How much has been read."""
        return self._size - self._left

    def _counted(self, block: bytes) -> bytes:
        self._left -= len(block)
        return block


def what(value: Any) -> str:
    """A value's kind, for messages."""
    return f"a {value.name}" if isinstance(value, Record) else f"a {type(value).__name__.lower()}"


def run(file: Bounded, table: Mapping[tuple[str, str], Any], storages: Callable[[Any], Any] | None = None) -> Any:
    """What the pickle in `file` stands for. `table`: (module, name) -> what stands for a global; `storages`: what
    stands for an object kept outside of the pickle, by its id.

    Raises Refused for any other global, call or instruction; EOFError and all that a damaged program may cause.
    """
    machine = _Machine(table, storages)
    for instruction, argument, _ in pickletools.genops(file):  # type: ignore[arg-type]
        if instruction.name == "STOP":
            break
        machine.step(instruction.name, argument)
    return machine.stack.pop()


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    [
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    ]
)
_EMPTY: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": set}


class _Machine:
    """The stack, its marks and the memo (a dict: a place in it may have any number)."""

    def __init__(self, table: Mapping[tuple[str, str], Any], storages: Callable[[Any], Any] | None) -> None:
        self.table, self.storages = table, storages
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """One instruction but STOP."""
        push, pop = self.stack.append, self.stack.pop
        if name in _LITERALS:
            push(argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in _EMPTY:
            push(_EMPTY[name]())
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            push(self.memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            push(tuple(self._last(int(name[-1]))))
        else:
            match name:
                case "PROTO" | "FRAME":
                    pass
                case "MARK":
                    self.marks.append(len(self.stack))
                case "POP":
                    pop()
                case "POP_MARK":
                    self._marked()
                case "DUP":
                    push(self.stack[-1])
                case "LIST":
                    push(self._marked())
                case "TUPLE":
                    push(tuple(self._marked()))
                case "DICT":
                    push(_pairs(self._marked()))
                case "FROZENSET":
                    push(frozenset(self._marked()))
                case "APPEND":
                    self._fill(self._last(1))
                case "SETITEM":
                    self._fill(self._last(2))
                case "APPENDS" | "SETITEMS" | "ADDITEMS":
                    self._fill(self._marked())
                case "GLOBAL" | "INST":
                    push(self._global(*argument.split(" ", 1)))
                    if name == "INST":
                        raise Refused("makes an object in the way of protocol 0")
                case "STACK_GLOBAL":
                    push(self._global(*self._last(2)))
                case "REDUCE" | "NEWOBJ":
                    push(self._called(*self._last(2)))
                case "BUILD":
                    self._built(pop())
                case "BINPERSID" if self.storages:
                    push(self.storages(pop()))
                case _:
                    raise Refused(f"uses the instruction {name}, which no model's file needs")

    def _last(self, n: int) -> list[Any]:
        if len(self.stack) < n:
            raise Damaged("its instructions do not fit together")
        items = self.stack[-n:]
        del self.stack[-n:]
        return items

    def _marked(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _global(self, module: Any, name: Any) -> Any:
        try:
            return self.table[module, name]
        except (KeyError, TypeError):
            raise Refused(f"asks for `{module}.{name}`") from None

    def _called(self, function: Any, args: Any) -> Any:
        if not isinstance(function, Entry) or not isinstance(args, tuple):
            raise Refused(f"asks to call {what(function)}")
        return function(*args)

    def _built(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, Record) and target.state is None:
            target.state = state
        elif not isinstance(target, dict):  # the attributes of a dict are of no use to anyone
            raise Refused(f"asks to set attributes on {what(target)}")

    def _fill(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, dict):
            target.update(_pairs(items))
        elif isinstance(target, set):
            target.update(items)
        else:
            raise Refused(f"asks to fill {what(target)}")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))
