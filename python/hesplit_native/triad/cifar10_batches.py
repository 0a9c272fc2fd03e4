"""One batch file of CIFAR-10's Python version, which is a pickle, without unpickling it.

The few opcodes that such files consist of are interpreted here; what they name is compared with a short list and never imported,
what they call is never called. Anything else is refused.
"""

from __future__ import annotations

import pickletools
import struct
import warnings
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from hesplit_native.errors import DataError

_MAX_OPCODES = 1_000_000  # a batch has some 40,000
_DTYPES = frozenset({"u1", "i1", "i2", "i4", "i8"})
_PUSH = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE"),
        *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, type] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_OPERANDS = {
    "TUPLE1": 1,
    "TUPLE2": 2,
    "TUPLE3": 3,
    "APPEND": 1,
    "SETITEM": 2,
    "STACK_GLOBAL": 2,
    "REDUCE": 2,
    "BUILD": 1,
}


class _Name(NamedTuple):
    module: str
    name: str


class _Type:
    """What a pickle says of a dtype; its byte order follows in a state."""

    def __init__(self, name: Any) -> None:
        if name not in _DTYPES:
            raise ValueError(f"an array of type {name!r}")
        self.name = name
        self.order = "|"

    def build(self, state: Any) -> None:
        self.order = state[1]

    def dtype(self) -> np.dtype[Any]:
        if self.order not in ("|", "<", "="):
            raise ValueError(f"an array in byte order {self.order!r}")
        return np.dtype(f"<{self.name}")


class _Array:
    """What a pickle says of an array; its content follows in a state."""

    value: npt.NDArray[Any] | None = None

    def build(self, state: Any) -> None:
        _, shape, kind, fortran, raw = state
        self.fill(_bytes(raw), kind, shape, "F" if fortran is True else "C")

    def fill(self, raw: bytes, kind: Any, shape: Any, order: Any) -> _Array:
        if not isinstance(kind, _Type) or not isinstance(shape, tuple) or order not in ("C", "F"):
            raise ValueError("an array of another kind")
        self.value = np.frombuffer(raw, kind.dtype()).reshape([int(side) for side in shape], order=order)
        return self


def read_batch(data: bytes, where: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The arrays ``data`` and ``labels`` of a batch file, of whatever shape and integer type it has.

    Raises
    ------
    DataError
        Beginning with ``where``, when the file is damaged or does anything that CIFAR-10's files do not.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in opcodes for text, which are refused
            found = {_text(key): value for key, value in _interpret(data).items()}
        arrays = [np.asarray(_plain(found[name])) for name in ("data", "labels")]
    except (
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        raise DataError(f"{where} is no batch of CIFAR-10's Python version, or damaged: {error}") from error
    return arrays[0], arrays[1]


def _interpret(data: bytes) -> dict[Any, Any]:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    operation: Any
    for count, (operation, argument, _) in enumerate(pickletools.genops(data)):
        name, arg = operation.name, cast(Any, argument)
        if count > _MAX_OPCODES:
            raise ValueError("it is too long")
        if name == "STOP":
            break
        if name in _PUSH:
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if arg is None else arg] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name == "MARK":
            marks.append(len(stack))
        elif name not in ("PROTO", "FRAME"):
            since = marks.pop() if name in ("TUPLE", "APPENDS", "SETITEMS") else len(stack) - _OPERANDS.get(name, 0)
            operands = stack[since:]
            del stack[since:]
            _combine(name, arg, operands, stack)
    content: dict[Any, Any] = _expect(stack.pop(), dict)
    return content


def _combine(name: str, arg: Any, operands: list[Any], stack: list[Any]) -> None:
    """What an opcode makes of its operands, onto the stack or into what lies on top of it."""
    if name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
        stack.append(tuple(operands))
    elif name in ("APPEND", "APPENDS"):
        _expect(stack[-1], list).extend(operands)
    elif name in ("SETITEM", "SETITEMS"):
        _expect(stack[-1], dict).update(zip(operands[::2], operands[1::2], strict=True))
    elif name == "GLOBAL":
        stack.append(_known(*arg.split(" ")))
    elif name == "STACK_GLOBAL":
        stack.append(_known(*operands))
    elif name == "REDUCE":
        stack.append(_reduce(*operands))
    elif name == "BUILD":
        _expect(stack[-1], _Array, _Type).build(operands[0])
    else:
        raise ValueError(f"it uses the opcode {name}")


def _known(module: str, name: str) -> _Name:
    known = _Name(module.replace("numpy._core.", "numpy.core."), name)
    if known not in (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.numeric", "_frombuffer"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    ):
        raise ValueError(f"it asks for {module}.{name}")
    return known


def _reduce(function: Any, arguments: Any) -> Any:
    """What the call would give; nothing is called."""
    name = _expect(function, _Name).name
    if name == "_reconstruct":
        return _Array()
    if name == "dtype":
        return _Type(_text(arguments[0]))
    if name == "_frombuffer":
        raw, kind, shape, order = arguments
        return _Array().fill(_bytes(raw), kind, shape, order)
    if name == "encode" and arguments[1] == "latin1":
        return _bytes(arguments[0])
    raise ValueError(f"it calls {name}")


def _expect(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds):
        raise ValueError(f"it has a {type(value).__name__} where a {kinds[0].__name__} belongs")
    return value


def _bytes(value: Any) -> bytes:
    """Bytes; Python 2 had them in strings."""
    return value.encode("latin-1") if isinstance(value, str) else bytes(_expect(value, bytes, bytearray))


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(_expect(value, str))


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        if value.value is None:
            raise ValueError("an array without content")
        return value.value
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise ValueError("it has no integers where labels belong")
    return np.array(value, np.int64)
