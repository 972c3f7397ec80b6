"""The switch bench: measures what it says, on any device of the engine."""

from runtime.engine.bench_switch import SwitchCost, measure_switch
from runtime.engine.device import open_device


def test_switch_bench_measures_the_bytes_it_was_asked_for(device):
    cost = measure_switch(device, 1 << 20, repeats=3)
    assert cost.nbytes == 1 << 20
    assert 0 < cost.copy_s < 1
    assert 0 < cost.switch_s < 1


def test_switch_bench_sees_a_slow_bus():
    slow = open_device("cpu", bandwidth_gb_s=0.1)
    cost = measure_switch(slow, 1 << 20, repeats=3)
    slow.close()
    assert cost.switch_s >= (1 << 20) / 0.1e9


def test_switch_cost_is_the_ratio_of_medians():
    row = SwitchCost(10**9, 0.1, 0.125).row()
    assert row == {
        "nbytes": 10**9,
        "switch_over_copy": 1.25,
        "copy_gb_s": 10.0,
        "switch_gb_s": 8.0,
    }
