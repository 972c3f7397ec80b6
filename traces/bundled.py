"""Named markets: the demo's trace of two hours and 64 models, a file made by its recipe, and
markets too long for a file, generated as they are read.

`python -m traces.bundled` writes the file again; its content hash does not change.
"""

from importlib.resources import as_file, files
from pathlib import Path

from traces.arrivals import ArrivalProcess
from traces.errors import TraceError, nearest
from traces.market import MarketSpec, market_stream
from traces.reading import read
from traces.stream import TraceStream, of_trace
from traces.trace import Trace
from traces.warp import DAY_S
from traces.writing import write

RECIPES = {
    "market_demo": MarketSpec(
        name="market_demo", models=64, duration_s=7200.0, rate_rps=6.4, zipf=0.9, seed=20251013
    ),
    # SOSP'25: 94.1 % of 779 models made 1.35 % of 167.6 M requests; shapes and lengths are ours
    "paper": MarketSpec(
        name="paper",
        models=779,
        duration_s=90 * DAY_S,
        rate_rps=21.554,
        zipf=1.0,
        tail_models=733,
        tail_share=0.0135,
        processes=(
            (ArrivalProcess.GAMMA, 3.0),
            (ArrivalProcess.MMPP, 3.0),
            (ArrivalProcess.WEIBULL, 2.0),
            (ArrivalProcess.GAMMA, 6.0),
        ),
        tail_processes=(  # an hour of work now and then, as clients of a real market
            (ArrivalProcess.ON_OFF, 20.0),
            (ArrivalProcess.GAMMA, 6.0),
            (ArrivalProcess.ON_OFF, 60.0),
            (ArrivalProcess.ON_OFF, 8.0),
        ),
        burst_s=3600.0,
        diurnal_depth=0.4,
        diurnal_period_s=DAY_S,
        flash_per_day=0.1,
        seed=1,
    ),
}
FILES = ("market_demo",)


def load_bundled(name: str = "market_demo") -> Trace:
    """The trace of a file of ours. Raises TraceError for an unknown name."""
    if name not in FILES:
        raise TraceError(f"bundled trace {name!r}; {nearest(name, FILES)}")
    with as_file(files("traces") / "data" / f"{name}.parquet") as path:
        return read(path)


def stream_bundled(name: str) -> TraceStream:
    """A named market as a stream. Raises TraceError for an unknown name."""
    if name in FILES:
        return of_trace(load_bundled(name))
    if name not in RECIPES:
        raise TraceError(f"bundled trace {name!r}; {nearest(name, RECIPES)}")
    return market_stream(RECIPES[name])


def main() -> None:
    folder = Path(__file__).parent / "data"
    for name in FILES:
        write(market_stream(RECIPES[name]), folder / f"{name}.parquet")


if __name__ == "__main__":
    main()
