"""A stack machine for pickles that builds plain values, and never calls what they name.

A pickle is a program. This machine has the opcodes that build numbers, text, bytes and
containers, of protocols 0 to 5. A name in the pickle (`GLOBAL`) is text that is looked up
in a fixed table; what stands there is a `Constructor` of ours. A name that does not stand
there, and an opcode that runs anything else, end the reading.

Memory and time are bounded by the length of the pickle: no opcode builds more than it
takes from the stack or the stream, sets and constructors are charged for what they take,
there is an end to the steps, and what is hashed has no depth.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any

from brainstore.errors import BadParams
from brainstore.migrate.constructors import (
    MALFORMED,
    Budget,
    Constructor,
    Draft,
    kind_of,
    require_key,
)

MAX_PICKLE_BYTES = 64 << 20
MAX_STEPS = 1 << 23

_RUNS_CODE = {
    b"i": "INST", b"o": "OBJ", b"P": "PERSID", b"\x82": "EXT1", b"\x83": "EXT2",
    b"\x84": "EXT4", b"\x92": "NEWOBJ_EX",
}  # fmt: skip


def unpickle(
    stream: bytes,
    known: Mapping[str, Constructor],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Return the value that a pickle describes.

    Args:
        stream: the whole pickle.
        known: what a pickle may name, by `module.name`.
        persistent: returns the value of a persistent id, which the pickle only names.

    Raises:
        BadParams: it names something else, which the message tells; it is damaged; or it
            is larger than anything that a checkpoint needs.
    """
    if len(stream) > MAX_PICKLE_BYTES:
        raise _too_long(
            f"has {len(stream):,} bytes, more than the {MAX_PICKLE_BYTES:,} that are read"
        )
    return _Machine(stream, known, persistent).run()


def _too_long(problem: str) -> BadParams:
    return BadParams(f"the pickle {problem}. Save the tensors alone, as a state dict")


class _Machine:
    def __init__(
        self,
        stream: bytes,
        known: Mapping[str, Constructor],
        persistent: Callable[[Any], Any] | None,
    ) -> None:
        self.stream = stream
        self.at = 0
        self.known = known
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.budget = Budget()

    def run(self) -> Any:
        try:
            for _ in range(MAX_STEPS):
                opcode = self.take(1)
                if opcode == b".":
                    return self.stack.pop()
                step = _STEPS.get(opcode)
                if step is None:
                    self.refuse(opcode)
                else:
                    step(self)
        except MALFORMED as error:
            if isinstance(error, BadParams):
                raise
            raise BadParams(f"the pickle is damaged at byte {self.at:,}") from error
        raise _too_long(f"takes more than {MAX_STEPS:,} steps")

    def take(self, count: int) -> bytes:
        stop = self.at + count
        if not self.at <= stop <= len(self.stream):
            raise BadParams(f"the pickle ends too early, at byte {len(self.stream):,}")
        found = self.stream[self.at : stop]
        self.at = stop
        return found

    def skip(self, count: int) -> None:
        self.take(count)

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self, encoding: str = "utf-8") -> str:
        stop = self.stream.find(b"\n", self.at)
        if stop < 0:
            raise BadParams("the pickle ends in the middle of a line")
        return self.take(stop + 1 - self.at)[:-1].decode(encoding)

    def refuse(self, opcode: bytes) -> None:
        name = _RUNS_CODE.get(opcode)
        if opcode == b"i":
            self.named(self.line(), self.line())
        if name is None:
            raise BadParams(f"the pickle has an unknown opcode {opcode!r} at byte {self.at - 1:,}")
        raise BadParams(f"the pickle asks for {name}, which no checkpoint needs")

    def named(self, module: str, name: str) -> Constructor:
        whole = f"{module.replace('__builtin__', 'builtins')}.{name}"
        found = self.known.get(whole)
        if found is None:
            raise BadParams(
                f"the pickle asks for {whole:.120}, which is not among what a checkpoint of "
                "tensors needs, so it was not opened. If you trust the file: load it with torch, "
                "and save model.state_dict() alone"
            )
        return found

    def marked(self) -> list[Any]:
        """Return what was pushed since the last mark, and go back to the stack below it."""
        found, self.stack = self.stack, self.below.pop()
        return found

    def charged(self, value: Any) -> Any:
        # An empty set takes 216 bytes, for an opcode of one.
        self.budget.spend(sys.getsizeof(value))
        return value

    def container(self, *kinds: type) -> Any:
        found = self.stack[-1]
        if type(found) not in kinds:
            raise BadParams(
                f"the pickle adds items to {kind_of(found)}, expected {kinds[0].__name__}"
            )
        return found


def _pushes(make: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        machine.stack.append(make(machine))

    return step


def _mark(machine: _Machine) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _pop(machine: _Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.marked()


def _pop_marked(machine: _Machine) -> None:
    machine.marked()


def _tuple_of(count: int) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        items = tuple(machine.stack[-count:])
        if len(items) < count:
            raise IndexError
        machine.stack[-count:] = [items]

    return step


def _set_items(machine: _Machine, items: list[Any]) -> None:
    found = machine.container(dict)
    for key, value in zip(items[::2], items[1::2], strict=True):
        require_key(key)
        found[key] = value


def _add_items(machine: _Machine) -> None:
    items = machine.marked()
    found = machine.container(set)
    for item in items:
        require_key(item)
        found.add(item)


def _frozen_set(machine: _Machine) -> None:
    items = machine.marked()
    for item in items:
        require_key(item)
    machine.stack.append(machine.charged(frozenset(items)))


def _append(machine: _Machine) -> None:
    item = machine.stack.pop()
    machine.container(list).append(item)


def _appends(machine: _Machine) -> None:
    items = machine.marked()
    machine.container(list).extend(items)


def _set_item(machine: _Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _set_items(machine, [key, value])


def _dict(machine: _Machine) -> None:
    items = machine.marked()
    machine.stack.append({})
    _set_items(machine, items)


def _put(form: str) -> Callable[[_Machine], None]:
    def step(machine: _Machine) -> None:
        machine.memo[machine.number(form)] = machine.stack[-1]

    return step


def _memoize(machine: _Machine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _put_line(machine: _Machine) -> None:
    machine.memo[int(machine.line())] = machine.stack[-1]


def _stack_global(machine: _Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise BadParams("the pickle asks for something whose name is no text")
    machine.stack.append(machine.named(module, name))


def _call(machine: _Machine) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    if not isinstance(function, Constructor):
        raise BadParams(f"the pickle calls {kind_of(function)}, which is no constructor")
    machine.stack.append(function.call(machine.budget, arguments))


def _build(machine: _Machine) -> None:
    state = machine.stack.pop()
    found = machine.stack[-1]
    if isinstance(found, Draft):
        found.set_state(state)
    # The attributes of an OrderedDict, such as a state dict's `_metadata`, hold no tensors.
    elif type(found) is not dict or type(state) is not dict:
        raise BadParams(f"the pickle sets the state of {kind_of(found)}, which has none")


def _persistent(machine: _Machine) -> Any:
    if machine.persistent is None:
        raise BadParams("the pickle refers to storages, and there are none beside it")
    return machine.persistent(machine.stack.pop())


def _line_integer(machine: _Machine) -> int | bool:
    text = machine.line()
    # Protocols 0 and 1 write booleans so.
    return {"00": False, "01": True}[text] if text in ("00", "01") else int(text)


def _signed(machine: _Machine, form: str) -> int:
    return int.from_bytes(machine.take(machine.number(form)), "little", signed=True)


def _text(machine: _Machine, form: str) -> str:
    return machine.take(machine.number(form)).decode()


_STEPS: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": lambda m: m.skip(1),  # the protocol
    b"\x95": lambda m: m.skip(8),  # the length of a frame
    b"(": _mark,
    b"0": _pop,
    b"1": _pop_marked,
    b"2": lambda m: m.stack.append(m.stack[-1]),
    # Plain values
    b"N": _pushes(lambda _: None),
    b"\x88": _pushes(lambda _: True),
    b"\x89": _pushes(lambda _: False),
    b"J": _pushes(lambda m: m.number("<i")),
    b"K": _pushes(lambda m: m.number("B")),
    b"M": _pushes(lambda m: m.number("<H")),
    b"G": _pushes(lambda m: m.number(">d")),
    b"I": _pushes(_line_integer),
    b"L": _pushes(lambda m: int(m.line().removesuffix("L"))),
    b"F": _pushes(lambda m: float(m.line())),
    b"\x8a": _pushes(lambda m: _signed(m, "B")),
    b"\x8b": _pushes(lambda m: _signed(m, "<i")),
    b"V": _pushes(lambda m: m.line("raw_unicode_escape")),
    b"X": _pushes(lambda m: _text(m, "<I")),
    b"\x8c": _pushes(lambda m: _text(m, "B")),
    b"\x8d": _pushes(lambda m: _text(m, "<Q")),
    b"B": _pushes(lambda m: m.take(m.number("<I"))),
    b"C": _pushes(lambda m: m.take(m.number("B"))),
    b"\x8e": _pushes(lambda m: m.take(m.number("<Q"))),
    b"\x96": _pushes(lambda m: bytearray(m.take(m.number("<Q")))),
    # What Python 2 wrote as a `str`
    b"U": _pushes(lambda m: m.take(m.number("B")).decode("latin-1")),
    b"T": _pushes(lambda m: m.take(m.number("<i")).decode("latin-1")),
    # Containers
    b")": _pushes(lambda _: ()),
    b"]": _pushes(lambda _: []),
    b"}": _pushes(lambda _: {}),
    b"\x8f": _pushes(lambda m: m.charged(set())),
    b"t": lambda m: _replace_marked(m, tuple),
    b"l": lambda m: _replace_marked(m, list),
    b"\x91": _frozen_set,
    b"d": _dict,
    b"\x85": _tuple_of(1),
    b"\x86": _tuple_of(2),
    b"\x87": _tuple_of(3),
    b"a": _append,
    b"e": _appends,
    b"s": _set_item,
    b"u": lambda m: _set_items(m, m.marked()),
    b"\x90": _add_items,
    # The memo
    b"q": _put("B"),
    b"r": _put("<I"),
    b"p": _put_line,
    b"\x94": _memoize,
    b"h": _pushes(lambda m: m.memo[m.number("B")]),
    b"j": _pushes(lambda m: m.memo[m.number("<I")]),
    b"g": _pushes(lambda m: m.memo[int(m.line())]),
    # Names and calls, of our own constructors alone
    b"c": _pushes(lambda m: m.named(m.line(), m.line())),
    b"\x93": _stack_global,
    b"R": _call,
    b"\x81": _call,
    b"b": _build,
    b"Q": _pushes(_persistent),
}


def _replace_marked(machine: _Machine, make: Callable[[list[Any]], Any]) -> None:
    items = machine.marked()
    machine.stack.append(make(items))
