"""The door for configuration: Hydra's tree becomes typed, checked dataclasses, once.

Only this module and the command line know Hydra and OmegaConf. A field's type and its owner's
`__post_init__` decide what is valid; a wrong key or value is one line with the nearest choice.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from runtime.errors import UserError, nearest

T = TypeVar("T")
MODULE = "conf"
MODEL_SLOS = "'slo.models={NAME:{ttft_s:5.0,tbt_s:0.05}}'"


def build(cls: type[T], config: DictConfig) -> T:
    """`cls` from the keys of `config` that are its fields; nested dataclasses take all keys."""
    try:
        data = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(_one_line(error)) from None
    assert isinstance(data, dict)
    known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    return _dataclass(cls, {k: v for k, v in data.items() if k in known}, "")


def as_yaml(config: Any) -> str:
    """A configuration dataclass as YAML that the same verb reads again."""
    return OmegaConf.to_yaml(OmegaConf.create(_plain(asdict(config))))


def differing_keys(path: Path, config: Any, ignored: tuple[str, ...]) -> list[str]:
    """Keys in which `config` differs from the YAML that `as_yaml` once wrote to `path`.

    Raises UserError when the file is absent or no YAML.
    """
    try:
        before = OmegaConf.load(path)
    except (OSError, YAMLError) as error:
        raise UserError(f"{path}: {_one_line(error)}") from None
    if not isinstance(before, DictConfig):
        raise UserError(f"{path}: expected the keys of a run")
    now = OmegaConf.create(_plain(asdict(config)))
    old, new = dict(_leaves(before)), dict(_leaves(now))
    keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    return [key for key in keys if key.partition(".")[0] not in ignored]


def _leaves(config: DictConfig) -> Iterator[tuple[str, Any]]:
    for key in _keys(config):
        value = OmegaConf.select(config, key)
        if not OmegaConf.is_dict(value):
            yield key, value


def _plain(value: Any) -> Any:
    """Contents as YAML has them: lists, and enum members by name."""
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _dataclass(cls: Any, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise UserError(f"{where}={data!r}: expected keys of {cls.__name__}")
    hints, values = get_type_hints(cls), {}
    for key, value in data.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in hints:
            raise UserError(f"{name}: unknown key; {nearest(str(key), hints)}")
        values[key] = _value(hints[key], value, name)
    try:
        return cls(**values)
    except TypeError as error:
        raise UserError(f"{where or cls.__name__}: {_one_line(error)}") from None


def _value(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`: dataclass, enum, tuple, optional or scalar."""
    if get_origin(kind) in (Union, UnionType):
        options = [option for option in get_args(kind) if option is not type(None)]
        return None if value is None else _value(options[0], value, where)
    if is_dataclass(kind):
        return _dataclass(kind, value, where)
    if get_origin(kind) is tuple:
        return _tuple(kind, value, where)
    if get_origin(kind) is dict:
        return _mapping(get_args(kind)[1], value, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _member(kind, value, where)
    return _scalar(kind, value, where)


def _tuple(kind: Any, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
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


FLAGS_WITH_VALUE = (  # of Hydra's command line
    *("--cfg", "-c", "--package", "-p", "--info", "-i", "--config-name", "-cn"),
    *("--config-path", "-cp", "--config-dir", "-cd", "--experimental-rerun"),
)


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags, with their values, and the overrides, quoted where need be."""
    flags: list[str] = []
    overrides = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if argument.startswith("-") or before in FLAGS_WITH_VALUE:
            flags.append(argument)
        else:
            overrides.append(quoted(argument))
    return flags, overrides


def quoted(argument: str) -> str:
    """A value that Hydra's grammar does not take (a=b, brackets in a path) as a quoted text."""
    key, equals, value = argument.partition("=")
    is_plain = "=" not in value or value[0] in "'\"[{"
    if not equals or (is_plain and _parsed(argument)):
        return argument
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def _parsed(argument: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def check_overrides(verb: str, arguments: list[str], *, is_multirun: bool) -> None:
    """Raises UserError for an override that Hydra would reject with more than a line."""
    with initialize_config_module(config_module=MODULE, version_base="1.3"):
        defaults, plain = compose(config_name=verb), []
        for argument in arguments:
            override = _parsed(argument)
            if override is None:
                raise UserError(f"{argument!r}: expected key=value")
            _check_override(override, defaults)
            if not override.is_sweep_override():
                plain.append(argument)
            elif not is_multirun:
                raise UserError(
                    f"{argument}: several values; add --multirun to run each, or write a list as"
                    f" '{override.get_key_element()}=[a,b]'"
                )
        try:
            compose(config_name=verb, overrides=plain)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_one_line(error)) from None


def _check_override(override: Override, defaults: DictConfig) -> None:
    key = override.key_or_group
    if key.startswith("hydra") or override.is_delete():
        return
    loader = GlobalHydra.instance().config_loader()
    groups = [group for group in loader.list_groups("") if group != "hydra"]
    known = {*_keys(defaults), *groups}
    if key not in known:
        if key.startswith("slo.models."):
            raise UserError(f"{key}: write the models of slo.models as a map, {MODEL_SLOS}")
        section = key.rpartition(".")[0]
        beside = [name for name in known if name.rpartition(".")[0] == section]
        raise UserError(f"{key}: unknown key; {nearest(key, beside or known)}")
    if key in groups and override.value_type is not ValueType.GLOB_CHOICE_SWEEP:
        found = loader.get_group_options(key, results_filter=ObjectType.CONFIG)
        choices = [name for name in found if not name.startswith("_")]
        is_sweep = override.is_sweep_override()
        for name in override.sweep_string_iterator() if is_sweep else [str(override.value())]:
            if name not in choices:
                raise UserError(f"{key}={name}: {nearest(name, choices)}")


def _keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, config):
        name = f"{prefix}{key}"
        yield name
        if OmegaConf.is_dict(config._get_node(key)) and not OmegaConf.is_missing(config, key):
            yield from _keys(config[key], f"{name}.")
