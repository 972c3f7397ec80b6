"""Sets of named arrays that kernels reach through one pointer.

A NamedTuple of arrays is flattened into some eighty machine words at every call that is not
inlined, and every array taken out of it is reference counted; both cost more than the work itself
(measured: 170 ns a call). A `Tables` object is one word: the address of a header that lists, per
field, the data address and the shape. Kernels read `state.requests[r].phase` as before; Python
reads the same attribute as the NumPy array. The object owns its arrays and must outlive the call.

Kernels never count rows from the end: an index below 0 is an error that nothing checks.
"""

import operator
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import (
    NativeValue,
    intrinsic,
    lower_builtin,
    lower_getattr_generic,
    models,
    register_model,
    typeof_impl,
    unbox,
)
from numba.np import arrayobj, numpy_support

HEADER_WORDS = 3  # data address, shape[0], shape[1]
LINE_BYTES = 64  # of a processor's cache


class Field(NamedTuple):
    """An array field: element dtype and number of axes (1 or 2)."""

    dtype: npt.DTypeLike
    ndim: int = 1


class Tables:
    """Base of table sets; a subclass lists its fields, in order, in `layout`.

    A field is a `Field`, or another Tables subclass to hold one by reference.
    """

    layout: ClassVar[dict[str, "Field | type[Tables]"]]
    row_of: ClassVar[dict[str, int]]  # in the header

    def __init_subclass__(cls) -> None:
        cls.row_of = {name: row for row, name in enumerate(cls.layout)}

    def __init__(self, **fields: Any) -> None:
        self.header = np.zeros((len(self.layout), HEADER_WORDS), np.int64)
        if set(fields) != set(self.layout):
            raise TypeError(f"{type(self).__name__} needs {list(self.layout)}, got {list(fields)}")
        for name, value in fields.items():
            self.put(name, value)

    @property
    def address(self) -> int:
        return self.header.ctypes.data

    def put(self, name: str, value: Any) -> None:
        """Set field `name`; kernels see the new array at their next read."""
        field, row = self.layout[name], self.header[self.row_of[name]]
        if isinstance(value, Tables):
            row[0] = value.address
        else:
            assert isinstance(field, Field)
            matches = value.dtype == field.dtype and value.ndim == field.ndim
            if not matches or not value.flags.c_contiguous:
                raise TypeError(f"{type(self).__name__}.{name}: {value.dtype} {value.shape}")
            row[0] = value.ctypes.data
            row[1 : 1 + value.ndim] = value.shape
        object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.layout:
            raise AttributeError(f"{type(self).__name__}.{name}: use put()")
        object.__setattr__(self, name, value)

    def copy(self) -> Self:
        """Tables of their own with the same content."""
        return type(self)(**{name: getattr(self, name).copy() for name in self.layout})

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles hold the arrays; their addresses are those of the new ones."""
        return _made, (type(self), {name: getattr(self, name) for name in self.layout})

    @property
    def packed_bytes(self) -> int:
        """What `pack` needs."""
        values = [getattr(self, name) for name in self.layout]
        return _whole_lines(self.header.nbytes) + sum(
            v.packed_bytes if isinstance(v, Tables) else _whole_lines(v.nbytes) for v in values
        )

    def pack(self, memory: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Move all arrays, those of tables held by reference too, side by side to the start of
        `memory` (aligned to LINE_BYTES); returns the rest of it. Raises ValueError if it is short.
        """
        if len(memory) < self.packed_bytes:
            raise ValueError(f"{len(memory)} bytes: expected {self.packed_bytes}")
        self.header, memory = _moved(self.header, memory)
        for name in self.layout:
            value = getattr(self, name)
            if isinstance(value, Tables):
                memory = value.pack(memory)
            else:
                value, memory = _moved(value, memory)
            self.put(name, value)
        return memory


def _made(cls: type[Tables], fields: dict[str, Any]) -> Tables:
    return cls(**fields)


def _whole_lines(size: int) -> int:
    return -(-size // LINE_BYTES) * LINE_BYTES


def _moved(
    array: npt.NDArray[Any], memory: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
    """A copy at the start of `memory`, and what follows it."""
    copy = memory[: array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy, memory[_whole_lines(array.nbytes) :]


class Rows(types.Array):  # type: ignore[misc]
    """An array field, in kernels: its indices are taken as they are."""

    def __init__(self, dtype: Any, ndim: int) -> None:
        super().__init__(dtype, ndim, "C", name=f"Rows({dtype}, {ndim})")


register_model(Rows)(models.ArrayModel)


def _unsigned(context: Any, builder: Any, kind: Any, value: Any) -> tuple[Any, Any]:
    """An index as Numba takes those that cannot lie below 0: without a look at the sign."""
    if isinstance(kind, types.Integer):
        return types.uintp, context.cast(builder, value, kind, types.uintp)
    if not isinstance(kind, types.BaseTuple):
        return kind, value
    parts = cgutils.unpack_tuple(builder, value, count=len(kind))
    pairs = [_unsigned(context, builder, *pair) for pair in zip(kind.types, parts, strict=True)]
    whole = types.Tuple([pair[0] for pair in pairs])
    return whole, context.make_tuple(builder, whole, [pair[1] for pair in pairs])


@lower_builtin(operator.getitem, Rows, types.Integer)
@lower_builtin(operator.getitem, Rows, types.BaseTuple)
def _lower_read(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    index, value = _unsigned(context, builder, sig.args[1], args[1])
    is_tuple = isinstance(index, types.BaseTuple)
    read = arrayobj.getitem_array_tuple if is_tuple else arrayobj.getitem_arraynd_intp
    return read(context, builder, sig.replace(args=(sig.args[0], index)), (args[0], value))


@lower_builtin(operator.setitem, Rows, types.Any, types.Any)
def _lower_write(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    index, value = _unsigned(context, builder, sig.args[1], args[1])
    kinds = (sig.args[0], index, sig.args[2])
    return arrayobj.setitem_array(
        context, builder, sig.replace(args=kinds), (args[0], value, args[2])
    )


class TablesType(types.Type):  # type: ignore[misc]
    """The Numba type of one Tables subclass: a pointer to its header."""

    def __init__(self, cls: type[Tables]) -> None:
        self.cls = cls
        super().__init__(name=f"Tables({cls.__module__}.{cls.__qualname__})")

    def field_type(self, name: str) -> types.Type:
        field = self.cls.layout[name]
        if isinstance(field, Field):
            return Rows(numpy_support.from_dtype(np.dtype(field.dtype)), field.ndim)
        return TablesType(field)


@typeof_impl.register(Tables)
def _typeof(value: Tables, context: object) -> TablesType:
    return TablesType(type(value))


@register_model(TablesType)
class _Model(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: TablesType) -> None:
        super().__init__(manager, fe_type, ir.IntType(64))


@unbox(TablesType)
def _unbox(typ: TablesType, obj: Any, c: Any) -> NativeValue:
    address = c.pyapi.object_getattr_string(obj, "address")
    value = c.pyapi.long_as_longlong(address)
    c.pyapi.decref(address)
    return NativeValue(value, is_error=cgutils.is_not_null(c.builder, c.pyapi.err_occurred()))


@infer_getattr
class _Attributes(AttributeTemplate):  # type: ignore[misc]
    key = TablesType

    def generic_resolve(self, typ: TablesType, attr: str) -> types.Type | None:
        return typ.field_type(attr) if attr in typ.cls.layout else None


@lower_getattr_generic(TablesType)
def _lower_attribute(context: Any, builder: Any, typ: TablesType, value: Any, attr: str) -> Any:
    """Load the header row; an array field becomes a view that owns no reference."""
    word = ir.IntType(64)
    header = builder.inttoptr(value, word.as_pointer())
    row = list(typ.cls.layout).index(attr) * HEADER_WORDS

    def load(offset: int) -> Any:
        loaded = builder.load(builder.gep(header, [ir.Constant(word, row + offset)]))
        loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
        return loaded

    result = typ.field_type(attr)
    if isinstance(result, TablesType):
        return load(0)
    data = builder.inttoptr(load(0), context.get_data_type(result.dtype).as_pointer())
    itemsize = ir.Constant(word, context.get_abi_sizeof(context.get_data_type(result.dtype)))
    shape = [load(1 + axis) for axis in range(result.ndim)]
    strides = [itemsize]
    for extent in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], extent))
    array = arrayobj.make_array(result)(context, builder)
    arrayobj.populate_array(array, data, shape, strides, itemsize, meminfo=None)
    return array._getvalue()


def at(cls: type[Tables]) -> Any:
    """A kernel function that takes the address of a `cls` for the object itself.

    A batch of pools is an array of addresses; whoever made it keeps the objects alive.
    """

    @intrinsic
    def view(context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return args[0]

        return TablesType(cls)(types.int64), codegen

    return view
