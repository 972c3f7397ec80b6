"""The cache folder's key follows every source that ends up in machine code."""

from pathlib import Path

import numba
import pytest

import runtime.tables
from runtime.compiled import MARKS, inner, kernel, source_hash
from runtime.libraries import whole

SOURCES = {
    "runtime/core.py": "NS = 1\n",
    "runtime/pool/state.py": "BINS = 2\n",
    "runtime/pool/caller.py": "from runtime.pool.callee import g\n@kernel\ndef f(): return g()\n",
    "runtime/pool/callee.py": "@inner\ndef g(): return 1\n",
    "runtime/layout.py": "class Memory(Tables):\n    pass\n",
    "runtime/plain.py": "def h(): return 1\n",
    "envs/plain.py": "def h(): return 1\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in SOURCES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", [name for name in SOURCES if "plain" not in name])
def test_source_hash_changes_with_kernels_callees_layouts_and_constants(
    root: Path, name: str
) -> None:
    before = source_hash(root)
    (root / name).write_text(SOURCES[name] + "# changed\n")
    assert source_hash(root) != before


@pytest.mark.parametrize("name", ["runtime/plain.py", "envs/plain.py"])
def test_source_hash_ignores_files_without_kernels(root: Path, name: str) -> None:
    before = source_hash(root)
    (root / name).write_text("def h(): return 2\n")
    (root / "runtime" / "notes.txt").write_text("@kernel")
    assert source_hash(root) == before


def test_source_hash_sees_a_moved_kernel(root: Path) -> None:
    before = source_hash(root)
    (root / "runtime/pool/callee.py").rename(root / "runtime/pool/moved.py")
    assert source_hash(root) != before


def test_source_hash_covers_the_layout_compiler_itself() -> None:
    text = Path(runtime.tables.__file__).read_bytes()
    assert any(mark in text for mark in MARKS)


def test_cache_folder_is_named_by_the_hash_of_this_tree() -> None:
    folder = Path(numba.config.CACHE_DIR)
    assert folder.name == source_hash(Path(__file__).parents[2])
    assert folder.is_dir()


@inner
def _halve(a: float, b: float) -> float:
    return a / b


def test_an_inner_function_called_from_python_is_refused() -> None:
    with pytest.raises(TypeError, match="_halve: only kernels"):
        _halve(1.0, 2.0)


@inner
def _quarter(a: float) -> float:
    return _halve(_halve(a, 2.0), 2.0)


def test_a_kernel_holds_the_functions_it_reaches_once_whatever_constants_they_get() -> None:
    @whole  # a kernel that no cache keeps
    def sixteenth(a: float) -> float:
        return _halve(_quarter(a), 3.0) + _halve(a, 4.0) * _quarter(a)

    assert sixteenth(12.0) == 10.0
    assert _halve.signatures == [(numba.float64, numba.float64)]  # type: ignore[attr-defined]


def test_kernels_divide_as_numpy_does() -> None:
    @kernel
    def ratio(a: float, b: float) -> float:
        return _halve(a, b)

    assert ratio(1.0, 4.0) == 0.25
    assert ratio(1.0, 0.0) == float("inf")


@inner
def _shown(n: int) -> int:
    print("n is", n)
    if n > 3:
        raise ValueError("over 3")
    return n


@inner
def _is_even(n: int) -> bool:
    return n == 0 or _is_odd(n - 1)


@inner
def _is_odd(n: int) -> bool:
    return n != 0 and _is_even(n - 1)


@inner
def _factorial(n: int) -> int:
    return 1 if n < 2 else n * _factorial(n - 1)


def test_an_inner_function_prints_and_raises_as_python_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @kernel
    def shown(n: int) -> int:
        return _shown(n)

    assert shown(3) == 3
    assert capsys.readouterr().out == "n is 3\n"
    with pytest.raises(ValueError, match="over 3"):
        shown(4)


def test_an_inner_function_may_call_itself() -> None:
    @kernel
    def factorial(n: int) -> int:
        return _factorial(n)

    assert factorial(5) == 120


def test_inner_functions_that_call_each_other_in_a_circle_are_refused() -> None:
    @kernel
    def is_even(n: int) -> bool:
        return _is_even(n)

    with pytest.raises(TypeError, match="_is_odd: inner functions cannot call each other"):
        is_even(4)
