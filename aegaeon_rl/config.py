"""The door for configuration: Hydra's tree becomes typed, checked dataclasses, once.

Only this module and the command line know Hydra and OmegaConf; `runtime.plain` makes the
dataclasses. A wrong key or value is one line with the nearest choice.
"""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

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
from runtime.plain import from_plain, plain

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
    return from_plain(cls, {k: v for k, v in data.items() if k in known})


def as_yaml(config: Any) -> str:
    """A configuration dataclass as YAML that the same verb reads again."""
    return OmegaConf.to_yaml(OmegaConf.create(plain(config)))


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
    now = OmegaConf.create(plain(config))
    old, new = dict(_leaves(before)), dict(_leaves(now))
    keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    return [key for key in keys if key.partition(".")[0] not in ignored]


def _leaves(config: DictConfig) -> Iterator[tuple[str, Any]]:
    for key in _keys(config):
        value = OmegaConf.select(config, key)
        if not OmegaConf.is_dict(value):
            yield key, value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


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
