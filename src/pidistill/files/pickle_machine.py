"""A pickle is a program of a stack machine; this machine runs it, and imports and calls nothing.

Its stack holds plain values and inert records only. A class or function in a file is a name, which is looked up in a short
list; what an entry of that list stands for is made here. Storages and tensors are descriptions of bytes; torch is imported
only where one is loaded.
"""

from __future__ import annotations

import math
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor

PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"  # NVIDIA's
STORAGES = {  # type and size of the elements of torch's storages, by their names
    "FloatStorage": ("float32", 4), "DoubleStorage": ("float64", 8), "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2), "LongStorage": ("int64", 8), "IntStorage": ("int32", 4), "BoolStorage": ("bool", 1),
    "ByteStorage": ("uint8", 1), "UntypedStorage": ("uint8", 1)}
NUMBERS = {"f2": "e", "f4": "f", "f8": "d", "i4": "i", "i8": "q", "u1": "B", "b1": "?"}  # numpy's names in struct's
INSTRUCTIONS = 2_000_000  # a large network has some ten thousand


class MalformedPickle(Exception):
    """The file is wrong. The message says how, for the one line that the file's reader raises."""


@dataclass
class Global:
    """The name of a class or function; never the thing itself."""

    name: str


@dataclass
class Record:
    """An object that the file describes.

    name: its class's name.
    args: the arguments that it was made with.
    state: its __dict__.
    """

    name: str
    args: tuple = ()
    state: dict[str, Any] = field(default_factory=dict)


@dataclass
class Storage:
    """The elements of one tensor or several.

    dtype: their type, by torch's name.
    count: their number.
    data: their bytes.
    elements: the tensor (count,) of them, once it is loaded.
    """

    dtype: str
    count: int
    data: bytes
    elements: Tensor | None = None

    def load(self) -> Tensor:
        """Make the tensor (count,) of all elements, once, however many tensors lie in it."""
        import torch

        if self.elements is None:
            dtype = getattr(torch, self.dtype)
            self.elements = torch.frombuffer(bytearray(self.data or bytes(8)), dtype=dtype)[:self.count]
        return self.elements


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a storage, which has all of its elements, none of them twice.

    storage: the storage.
    offset: where in the storage its first element is.
    size: its shape.
    stride: the steps in the storage from one element to the next, one a dimension.
    """

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def load(self) -> Tensor:
        """Make the tensor, which shares the storage's memory."""
        return self.storage.load().as_strided(self.size, self.stride, self.offset)


class BoundedReader:
    """A file that is never asked for more than it has: a claim of 10 GB costs nothing."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.remaining = file, size

    def read(self, n: int) -> bytes:
        """Read n bytes. Raises MalformedPickle if the file has fewer."""
        if n < 0 or n > self.remaining:
            raise MalformedPickle("truncated, or it claims more bytes than it has")
        self.remaining -= n
        return self.file.read(n)

    def readline(self) -> bytes:
        """Read a line, or 10,000 bytes of a longer one."""
        line = self.file.readline(10_000)
        self.remaining -= len(line)
        return line

    def tell(self) -> int:
        """Give the position in the file."""
        return self.file.tell()


class Machine:
    """Pickle's stack machine, without imports, calls or attributes.

    file: the program, as a BoundedReader.
    storage: whether the program describes one of torch's storages, to which it then may refer by key.
    """

    def __init__(self, file: Any, storage: bool = False):
        self.file, self.storage = file, storage
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[int, Storage] = {}  # by the identity of their bytes, which are read once

    def run(self) -> Any:
        """Run the program and give the object that it describes. Damaged bytes raise MalformedPickle or another error."""
        arg: Any
        for count, (op, arg, _) in enumerate(pickletools.genops(self.file)):
            name = op.name
            if count > INSTRUCTIONS:
                raise MalformedPickle(f"it has more than {INSTRUCTIONS:,} instructions")
            if name == "STOP":
                return self.stack.pop()
            if name in VALUES:
                self.stack.append(VALUES[name](arg))
            elif name in ("PROTO", "FRAME"):
                pass
            elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
                self.memo[len(self.memo) if name == "MEMOIZE" else arg] = self.stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                self.stack.append(self.memo[arg])
            elif name == "MARK":
                self.marks.append(len(self.stack))
            elif name in ("TUPLE", "LIST", "DICT", "FROZENSET"):
                items = self.pop_to_mark()
                self.stack.append(pair_up(items) if name == "DICT" else tuple(items) if name == "TUPLE" else list(items))
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                n = int(name[-1])
                self.stack[-n:] = [tuple(self.stack[-n:])]
            elif name in ("APPEND", "APPENDS", "ADDITEMS"):
                items = [self.stack.pop()] if name == "APPEND" else self.pop_to_mark()
                expect_type(self.stack[-1], list).extend(items)  # sets are kept as lists
            elif name in ("SETITEM", "SETITEMS"):
                items = [self.stack.pop(-2), self.stack.pop()] if name == "SETITEM" else self.pop_to_mark()
                expect_type(self.stack[-1], dict).update(pair_up(items))
            elif name in ("GLOBAL", "STACK_GLOBAL"):
                if name == "GLOBAL":
                    module, _, attribute = arg.partition(" ")
                else:
                    attribute, module = self.stack.pop(), self.stack.pop()
                path = f"{expect_type(module, str)}.{expect_type(attribute, str)}"
                self.stack.append(Global(expect_known(path, self.storage)))
            elif name in ("REDUCE", "NEWOBJ"):
                args, function = expect_type(self.stack.pop(), tuple), expect_type(self.stack.pop(), Global)
                self.stack.append(self.reduce(function.name, args))
            elif name == "BUILD":
                state = self.stack.pop()
                self.set_state(self.stack[-1], state)
            elif name == "BINPERSID" and self.storage:
                self.stack.append(Record("storage", expect_type(self.stack.pop(), tuple)))
            else:
                raise MalformedPickle(f"it uses the instruction {name}, which networks do not need")
        raise MalformedPickle("truncated")

    def reduce(self, name: str, args: tuple) -> Any:
        """Make what the file's call of this name stands for. Nothing is copied: the file may call it again and again."""
        if name == "torch.storage._load_from_bytes":
            data, = args
            if id(data) not in self.storages:
                self.storages[id(data)] = load_storage(data)
            return self.storages[id(data)]
        return REDUCERS[name](*args) if name in REDUCERS else Record(name, args)

    @staticmethod
    def set_state(target: Any, state: Any) -> None:
        """Give a record its state, as BUILD does; for all else on the stack BUILD does nothing."""
        if isinstance(target, Record) and isinstance(state, dict):
            if target.state:
                raise MalformedPickle("an object in it gets its state twice")
            target.state = state
        elif isinstance(target, Record) and target.name == "numpy.dtype":
            target.state["order"] = expect_type(state, tuple)[1]
        elif isinstance(target, Record) and target.name == "numpy.ndarray":
            target.state["array"] = expect_type(state, tuple)

    def pop_to_mark(self) -> list[Any]:
        """Take what was put on the stack since the last mark, and the mark."""
        items = self.stack[self.marks[-1]:]
        del self.stack[self.marks.pop():]
        return items


VALUES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
                     "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINSTRING", "SHORT_BINSTRING"), lambda arg: arg),
    "NONE": lambda _: None, "NEWTRUE": lambda _: True, "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {}, "EMPTY_LIST": lambda _: [], "EMPTY_SET": lambda _: [], "EMPTY_TUPLE": lambda _: ()}


def expect_known(name: str, storage: bool) -> str:
    """Give a name back, with numpy's new path made the old one, if files of networks may hold it.

    name: the dotted name of a class or function.
    storage: whether the file describes one of torch's storages.
    """
    name = name.replace("numpy._core.", "numpy.core.")
    inert = name.startswith("torch.nn.modules.") and name.replace(".", "").replace("_", "").isalnum()
    if storage:
        if name.rpartition(".")[0] in ("torch", "torch.storage") and name.rpartition(".")[2] in STORAGES:
            return name
    elif name in REDUCERS or name == "torch.storage._load_from_bytes" or inert:
        return name
    raise MalformedPickle(f"it refers to {shorten(name)}, which networks do not need")


def rebuild_persistent(meta: Any) -> Record:
    """Make the record of one of NVIDIA's persistent objects from its description."""
    meta = expect_type(meta, dict)
    return Record(expect_type(meta.get("class_name"), str), state=expect_mapping(meta.get("state")))


def load_storage(data: Any) -> Storage:
    """Read a storage that torch.save wrote in its format before zip: five pickles, then the elements' number and bytes."""
    file = BytesIO(expect_type(data, bytes))
    reader = BoundedReader(file, len(data))
    if data[:2] == b"PK":
        raise MalformedPickle("a storage in it is an archive")
    magic, protocol, info, storage, keys = (Machine(reader, storage=True).run() for _ in range(5))
    if magic != 0x1950a86a20f9469cfc6c or protocol != 1001 or expect_type(info, dict).get("little_endian") is not True:
        raise MalformedPickle("a storage in it has an unknown format")
    args = expect_type(storage, Record).args
    if len(args) < 5 or args[0] != "storage" or keys != [args[2]] or not isinstance(args[4], int):
        raise MalformedPickle("a storage in it is damaged")
    dtype, size = STORAGES[expect_type(args[1], Global).name.rpartition(".")[2]]
    count, = struct.unpack("<q", reader.read(8))
    if not 0 <= count == args[4] or reader.remaining != count * size:
        raise MalformedPickle(f"a storage in it says {shorten(count)} elements and has {reader.remaining} bytes")
    return Storage(dtype, count, reader.read(reader.remaining))


def rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> StoredTensor:
    """Describe a tensor in its storage, if all of its elements lie there and none of them twice.

    storage: a Storage.
    offset: where in the storage the first element is.
    size: the shape.
    stride: the steps in the storage from one element to the next, one a dimension.
    """
    size, stride = expect_type(size, tuple), expect_type(stride, tuple)
    elements: Storage = expect_type(storage, Storage)
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > 8 or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
        raise MalformedPickle("a tensor in it has an impossible shape")
    total = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if total else offset
    if total > elements.count or (total and last >= elements.count) or any(n > 1 and not s for n, s in zip(size, stride)):
        raise MalformedPickle(f"a tensor in it of {shorten(size)} does not fit its storage of {elements.count}")
    return StoredTensor(elements, offset, size, stride)


def rebuild_scalar(dtype: Any, data: Any = b"") -> float | int | bool:
    """Make the number that numpy's type and bytes stand for."""
    code = expect_type(dtype, Record).args[0]
    order = dtype.state.get("order", "<")
    if code not in NUMBERS or order not in ("<", "|", "="):
        raise MalformedPickle(f"a number in it has the type {shorten(code)}")
    return struct.unpack("<" + NUMBERS[code], expect_type(data, bytes))[0]


REDUCERS: dict[str, Callable[..., Any]] = {
    PERSISTENT: rebuild_persistent,
    "collections.OrderedDict": lambda: {},  # filled afterwards, by SETITEMS
    "dnnlib.util.EasyDict": lambda items=None: expect_mapping(items) if items else {},
    "builtins.set": lambda items=None: expect_type(items, list) if items else [],
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: expect_type(data, StoredTensor),
    "numpy.dtype": lambda *args: Record("numpy.dtype", args),
    "numpy.core.multiarray.scalar": rebuild_scalar,
    # Arrays: what EDM2's references are made of; networks have none, and EDM2's encoders' are read past.
    "numpy.ndarray": lambda *_: Record("numpy.ndarray"),
    "numpy.core.multiarray._reconstruct": lambda *_: Record("numpy.ndarray"),
}


def pair_up(items: list[Any]) -> dict[Any, Any]:
    """Make a dictionary of [key, value, key, value, ...]; keys are plain, as hashing nested ones may recurse without end."""
    if len(items) % 2 or not all(isinstance(key, (str, int, float, bool, type(None))) for key in items[::2]):
        raise MalformedPickle("a dictionary in it has an unusual key")
    return dict(zip(items[::2], items[1::2]))


def expect_mapping(value: Any) -> dict[Any, Any]:
    """Give the value back, if it is a dictionary. Raises MalformedPickle if it is not."""
    return expect_type(value, dict)


def expect_type(value: Any, expected: type) -> Any:
    """Give the value back, if it is of the expected type. Raises MalformedPickle if it is not."""
    if not isinstance(value, expected):
        raise MalformedPickle(f"a {type(value).__name__} stands where a {expected.__name__} was expected")
    return value


def shorten(value: Any) -> str:
    """Write a value out for a message of one line: 120 printable characters at most."""
    text = ", ".join(map(shorten, value[:20])) if isinstance(value, tuple) else str(value)[:80]
    return "".join(c if c.isprintable() else "?" for c in text)[:120]
