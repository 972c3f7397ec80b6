"""A GPU machine has little installed: what the engine imports."""

import subprocess
import sys

ABSENT = ("pyarrow", "numba", "hydra", "gymnasium", "stable_baselines3", "gguf")


def test_engine_imports_only_what_a_gpu_machine_has() -> None:
    check = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT!r}))  # an import of these now fails
import runtime.engine.engine, runtime.engine.bench, runtime.engine.bench_switch
"""
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
