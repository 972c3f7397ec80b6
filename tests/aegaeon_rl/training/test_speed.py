"""What is measured is a real run: every decision trained on, both clocks read."""

from collections.abc import Callable
from pathlib import Path

from aegaeon_rl.training.session import Job
from aegaeon_rl.training.speed import STEPS, measure_training


def test_speed_is_that_of_whole_rollouts(make_job: Callable[..., Job], tmp_path: Path) -> None:
    scenario = make_job(tmp_path).scenario()
    speed = measure_training(scenario, pools=2, decisions=3 * STEPS, seed=0, folder=tmp_path)
    assert speed.decisions % (2 * STEPS) == 0
    assert 2 * STEPS <= speed.decisions <= 4 * STEPS
    assert speed.wall_s > 0
    assert speed.cpu_s > 0
    assert speed.decisions_s == speed.decisions / speed.wall_s
    assert speed.decisions_cpu_s == speed.decisions / speed.cpu_s
    assert (tmp_path / "checkpoints" / "0001" / "weights.npz").exists()
