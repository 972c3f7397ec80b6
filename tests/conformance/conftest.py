"""The scripted second driver and its scenarios, as modules under any import mode."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def loaded(name: str) -> ModuleType:
    """A file of this folder."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"conformance_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def scripted() -> ModuleType:
    return loaded("scripted")


@pytest.fixture(scope="session")
def scenarios() -> ModuleType:
    """The second driver's scenarios, comparisons and erratic policy."""
    return loaded("test_second_driver")
