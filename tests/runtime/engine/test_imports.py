"""A GPU machine has little installed: what the engine imports."""

import subprocess
import sys

ABSENT = (
    "pyarrow",
    "numba",
    "hydra",
    "omegaconf",
    "gymnasium",
    "stable_baselines3",
    "gguf",
    "triton",
)


def test_engine_imports_only_what_a_gpu_machine_has() -> None:
    check = f"""
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys({ABSENT!r}))  # an import of these now fails
import runtime.engine
names = [found.name for found in pkgutil.iter_modules(runtime.engine.__path__)]
assert "engine" in names
for name in names:
    if name != "attention_triton":  # imported where CUDA is
        importlib.import_module("runtime.engine." + name)
"""
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
