"""The shipped profiles are what the generator makes of the published fits."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from aegaeon_rl.calibration.derive import PROFILES, main
from aegaeon_rl.calibration.fits import BATCHES, SOSP25, read_aic
from aegaeon_rl.calibration.rules import mixture

FITS = (Path(__file__).parents[3] / "../shared/data/profiles/aic_fits.csv").resolve()
MOE = "Qwen3-30B-A3B"
DOCS = Path(__file__).parents[3] / "docs/profiles.md"


@pytest.mark.skipif(not FITS.exists(), reason="needs the published fits (../shared/data)")
def test_generator_reproduces_the_shipped_profiles_and_their_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(FITS), str(tmp_path)])
    made = sorted(tmp_path.glob("*.json"))
    assert [path.stem for path in made] == sorted([*PROFILES, "h100_sosp25"])
    for path in made:
        shipped = files("runtime.profiles") / path.name
        assert path.read_text() == shipped.read_text(), path.stem
    assert capsys.readouterr().out.strip() in DOCS.read_text()


@pytest.mark.skipif(not FITS.exists(), reason="needs the published fits (../shared/data)")
@pytest.mark.parametrize("gpu", ["A100-SXM-80GB", "H100-SXM-80GB", "H200-SXM-141GB"])
def test_experts_tables_explain_the_error_that_the_linear_fit_states(gpu: str) -> None:
    """The published linear decode is as far from our table as from the one it was fitted to."""
    published = read_aic(FITS)
    linear, table = published[gpu, MOE, 1], mixture(published, gpu, MOE, 1)
    grid = [(b, b * c) for b in BATCHES for c in (512, 2048, 8192) if b * c <= 131_072]
    off = [100 * abs(linear.step(*at) / table.step(*at) - 1) for at in grid]
    stated = linear.checks[0]
    assert np.mean(off) == pytest.approx(stated.decode_pct, abs=3)
    most = float(stated.text.rpartition(" and ")[2].rstrip(")"))
    assert max(off) == pytest.approx(most, abs=2)


def test_the_artifacts_cost_model_is_kept_as_its_simulator_asks_it() -> None:
    """The 7B's prefill of 1,000 tokens as stated, and a step: at batch -1 whatever the batch."""
    fit = SOSP25["sosp25/Qwen2.5-7B"]
    assert fit.prefill(1000) == pytest.approx(0.0191604 + 0.0128994 - 0.000770194)
    for batch in (1, 10):
        assert fit.step(batch, 5000) == pytest.approx(0.00831136 + 0.00326667 - 0.0000674570)
