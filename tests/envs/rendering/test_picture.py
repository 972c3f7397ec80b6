"""The picture: one shape for all pools, bars where and in the colour they belong."""

from collections.abc import Callable

import numpy as np
import pytest

from envs.rendering.picture import (
    DOWN,
    HEIGHT,
    KV,
    LEFT,
    RIGHT,
    SHOWN_S,
    TOP,
    WIDTH,
    color,
    pale,
    picture_of,
    row_height,
)
from envs.rendering.scene import Instance, Queue, Scene, View
from runtime.core import NONE
from runtime.timeline.bars import Bar

MakeScene = Callable[..., Scene]
NOW_S = 100.0


def view_of(instances: int, queues: int = 0) -> View:
    return View(
        title="t",
        models=tuple(f"model-{i:03d}" for i in range(100)),
        now_s=NOW_S,
        end_s=200.0,
        in_flight=1,
        open=queues,
        on_time=1,
        missed=1,
        asked="turn",
        asked_of=0,
        instances=[Instance(g, "free", 0, None, 0.1, 0, 0, NONE, 0) for g in range(instances)],
        queues=[Queue(m, 3, 2, 0, 1.0, m - 5.0) for m in range(queues)],
    )


def pixel(frame: np.ndarray, view: View, instance: int, at_s: float) -> tuple[int, ...]:
    """Near the upper edge of an instance's row, where no label is."""
    x = RIGHT - (NOW_S - at_s) * (RIGHT - LEFT) / SHOWN_S
    y = TOP + row_height(view) * (instance + 0.25)
    return tuple(frame[int(y), int(x)].tolist())


@pytest.mark.parametrize("instances", [1, 8, 64, 300])
@pytest.mark.parametrize("queues", [0, 3, 90])
def test_picture_has_one_shape_whatever_the_pool(instances: int, queues: int) -> None:
    frame = picture_of(view_of(instances, queues), [], [])
    assert frame.shape == (HEIGHT, WIDTH, 3)
    assert frame.dtype == np.uint8
    assert frame.flags.writeable


def test_bars_are_drawn_in_their_place_and_color() -> None:
    view = view_of(4)
    bars = [
        Bar(0, 7, "work", 85.0, 90.0),
        Bar(1, 7, "weights", 90.0, 91.0),
        Bar(1, 8, "work", 91.0, 95.0),
        Bar(2, 8, "KV", 82.0, 84.0),
        Bar(3, NONE, "down", 95.0, 100.0),
    ]
    frame = picture_of(view, bars, [Bar(0, 9, "ahead", 92.0, 93.0)])
    assert pixel(frame, view, 0, 87.5) == color(7)
    assert pixel(frame, view, 1, 90.5) == pale(7)
    assert pixel(frame, view, 1, 93.0) == color(8)
    assert pixel(frame, view, 2, 91.0) == (255, 255, 255)
    middle = row_height(view) / 2 - 0.25 * row_height(view)
    for instance, at_s, expected in ((2, 83.0, KV), (3, 97.0, DOWN)):
        x = int(RIGHT - (NOW_S - at_s) * (RIGHT - LEFT) / SHOWN_S)
        y = int(TOP + row_height(view) * (instance + 0.25) + middle) - 1
        assert tuple(frame[y, x].tolist()) == expected
    low = int(TOP + row_height(view)) - 2
    x = int(RIGHT - 7.5 * (RIGHT - LEFT) / SHOWN_S)
    assert tuple(frame[low, x].tolist()) == color(9)


def test_models_side_by_side_have_colors_far_apart() -> None:
    shades = np.array([color(m) for m in range(64)], int)
    steps = np.abs(np.diff(shades, axis=0)).sum(axis=1)
    assert steps.min() > 90
    assert len({color(m) for m in range(64)}) == 64


def test_picture_of_a_pool_is_the_same_twice_and_another_later(make_scene: MakeScene) -> None:
    def frame(until_s: float) -> np.ndarray:
        scene = make_scene(until_s=until_s)
        return picture_of(scene.view(), *scene.bars(SHOWN_S))

    assert np.array_equal(frame(20.0), frame(20.0))
    assert not np.array_equal(frame(20.0), frame(25.0))
