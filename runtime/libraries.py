"""How kernels are put together: a function that only kernels call is compiled as a part of them.

Numba optimises and assembles every function on its own before it links it into its callers, and
once more for every constant it is called with. Of the many small functions of the core that was
half of the compile time, for machine code that never runs.
"""

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import compiler
from numba.core.codegen import CPUCodeLibrary, JITCodeLibrary, RuntimeLinker
from numba.core.registry import CPUDispatcher


class Part(JITCodeLibrary):  # type: ignore[misc]
    """A function as it was lowered, for kernels to link; it has no address of its own."""

    def __init__(self, codegen: Any, name: str) -> None:
        super().__init__(codegen, name)
        self.environments: dict[str, Any] = {}  # where its code looks for Python objects

    def finalize(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        return 0  # Numba's "not defined here": it refuses the part where it needs an address

    @property
    def codegen(self) -> "Part":
        return self  # asked for `set_env` only

    def set_env(self, name: str, env: Any) -> None:
        """Kept for the kernels: nothing runs here."""
        self.environments[name] = env


class Whole(JITCodeLibrary):  # type: ignore[misc]
    """A kernel with all the parts that it reaches, each once."""

    def finalize(self) -> None:
        reached = self._linking_libraries
        for library in reached:  # grows as it is walked
            if isinstance(library, Part):
                _refuse_circle(library)
                reached += [other for other in library._linking_libraries if other not in reached]
        super().finalize()
        for part in reached:
            for name, env in getattr(part, "environments", {}).items():
                self.codegen.set_env(name, env)


def _refuse_circle(part: Part) -> None:
    """Numba resolves calls in a circle by address, and parts have none. Raises TypeError."""
    for variable in part._final_module.global_variables:
        if variable.name.startswith(RuntimeLinker.PREFIX):
            raise TypeError(f"{part.name}: inner functions cannot call each other in a circle")


def pipeline(library: type[CPUCodeLibrary]) -> type[compiler.Compiler]:
    """Numba's own compiler, but for the library that it fills."""

    class Pipeline(compiler.Compiler):  # type: ignore[misc]
        def define_pipelines(self) -> Any:
            codegen = self.state.targetctx.codegen()
            self.state.library = library(codegen, self.state.func_id.func_qualname)
            self.state.library.enable_object_caching()
            return super().define_pipelines()

    return Pipeline


class Kernel(CPUDispatcher):  # type: ignore[misc]
    """A function for callers in Python and in kernels; constants are plain numbers to it."""

    def get_call_template(self, args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        plain = {name: types.unliteral(kind) for name, kind in kws.items()}
        return super().get_call_template(tuple(map(types.unliteral, args)), plain)


class Inner(Kernel):
    """A function for callers in kernels."""

    def __call__(self, *args: Any, **kws: Any) -> Any:
        raise TypeError(f"{self.__name__}: only kernels can call it")


WHOLE, PART = pipeline(Whole), pipeline(Part)
OPTIONS = {"nopython": True, "nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}


def whole(function: Callable[..., Any]) -> Kernel:
    return Kernel(function, targetoptions=dict(OPTIONS), pipeline_class=WHOLE)


def part(function: Callable[..., Any]) -> Inner:
    options = {**OPTIONS, "no_cpython_wrapper": True}
    return Inner(function, targetoptions=options, pipeline_class=PART)
