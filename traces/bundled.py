"""The demo's trace: a two-hour market of 64 models, made by the recipe below.

`python -m traces.bundled` writes the file again; its content hash does not change.
"""

from importlib.resources import as_file, files
from pathlib import Path

from traces.errors import TraceError, nearest
from traces.market import MarketSpec, generate
from traces.read import read
from traces.trace import Trace
from traces.write import write

RECIPES = {
    "market_demo": MarketSpec(
        name="market_demo", models=64, duration_s=7200.0, rate_rps=6.4, zipf=0.9, seed=20251013
    )
}


def load_bundled(name: str = "market_demo") -> Trace:
    """Raises TraceError for an unknown name."""
    if name not in RECIPES:
        raise TraceError(f"bundled trace {name!r}; {nearest(name, RECIPES)}")
    with as_file(files("traces") / "data" / f"{name}.parquet") as path:
        return read(path)


def main() -> None:
    folder = Path(__file__).parent / "data"
    for name, spec in RECIPES.items():
        write(generate(spec), folder / f"{name}.parquet")


if __name__ == "__main__":
    main()
