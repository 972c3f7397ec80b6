"""Checked dataclasses from plain data (what JSON and YAML hold), and back.

A field's type and its owner's `__post_init__` decide what is valid; a wrong key or value is one
line with its place and the nearest choice. Enum members go by their names in lower case.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from runtime.errors import UserError, nearest


def plain(value: Any) -> Any:
    """Dataclasses as mappings, tuples as lists, enum members by name."""
    if isinstance(value, Enum):
        return value.name.lower()
    if is_dataclass(value):
        return {spec.name: plain(getattr(value, spec.name)) for spec in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def from_plain(cls: Any, data: Any, where: str = "") -> Any:
    """`cls` from a mapping; `where` is what messages call it. Raises UserError."""
    if not isinstance(data, Mapping):
        raise UserError(f"{where}={data!r}: expected keys of {cls.__name__}")
    hints, values = get_type_hints(cls), {}
    for key, value in data.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in hints:
            raise UserError(f"{name}: unknown key; {nearest(str(key), hints)}")
        values[key] = _value(hints[key], value, name)
    for field in fields(cls):
        is_optional = field.default is not MISSING or field.default_factory is not MISSING
        if field.name not in values and not is_optional:
            name = f"{where}.{field.name}" if where else field.name
            raise UserError(f"{name}: missing: expected a value")
    return cls(**values)


def _value(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`: dataclass, enum, tuple, optional or scalar."""
    if get_origin(kind) in (Union, UnionType):
        options = get_args(kind)
        if value is None and type(None) in options:
            return None
        return _value(next(o for o in options if o is not type(None)), value, where)
    if is_dataclass(kind):
        return from_plain(kind, value, where)
    if get_origin(kind) is tuple:
        return _tuple(kind, value, where)
    if get_origin(kind) is dict:
        return _mapping(get_args(kind)[1], value, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _member(kind, value, where)
    return _scalar(kind, value, where)


def _tuple(kind: Any, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}={value!r}: expected a list like [a,b]")
    inner, *rest = get_args(kind)
    kinds = [inner] * len(value) if rest == [Ellipsis] else [inner, *rest]
    if len(kinds) != len(value):
        raise UserError(f"{where}={value!r}: expected {len(kinds)} entries")
    pairs = zip(kinds, value, strict=True)
    return tuple(_value(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(pairs))


def _mapping(kind: Any, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}={value!r}: expected entries like {{name:...}}")
    return {str(key): _value(kind, entry, f"{where}.{key}") for key, entry in value.items()}


def _member(kind: type[Enum], value: Any, where: str) -> Enum:
    names = {member.name.lower(): member for member in kind}
    name = str(value).lower().replace("-", "_")
    if name not in names:
        raise UserError(f"{where}={value!r}: {nearest(name, names)}")
    return names[name]


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if kind is int and isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)  # 80e9, as YAML reads it
    if type(value) is not kind or value != value:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        raise UserError(f"{where}={value!r}: expected {names[kind]}")
    return value
