"""Named parts of a scenario: the YAML of `conf`, without the command line's machinery."""

import re
from importlib.resources import files
from typing import Any

import yaml

from runtime.errors import UserError, nearest


class Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML 1.2's numbers: 5.0e10 is one."""


FLOAT = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+|\d+)[eE][-+]?\d+$")
Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


def names(group: str) -> list[str]:
    """The files of conf/GROUP, by name."""
    folder = files("conf") / group
    found = [file.name.removesuffix(".yaml") for file in folder.iterdir()]
    return sorted(name for name in found if name.isidentifier() and not name.startswith("_"))


def named(group: str, name: str, where: str) -> dict[str, Any]:
    """conf/GROUP/NAME.yaml over the files of the group that its `defaults` name.

    Raises UserError that calls the name `where`.
    """
    if name not in names(group):
        raise UserError(f"{where}={name}: {nearest(name, names(group))}")
    return _composed(group, name)


def _composed(group: str, name: str) -> dict[str, Any]:
    text = (files("conf") / group / f"{name}.yaml").read_text(encoding="utf-8")
    own: dict[str, Any] = yaml.load(text, Loader)
    under: dict[str, Any] = {}
    for base in own.pop("defaults", []):
        under |= _composed(group, base)
    return under | own
