"""The pool as text: a line for every instance and queue, nothing wider than it need be."""

from collections.abc import Callable

from envs.rendering.scene import Instance, Queue, Scene, View
from envs.rendering.text import MOST_QUEUES, text_of
from runtime.core import NONE

VIEW = View(
    title="market at load 1.00 on pool",
    models=("alpha", "beta-long-name", "gamma"),
    now_s=12.3456,
    end_s=60.0,
    in_flight=9,
    open=6,
    on_time=197,
    missed=3,
    asked="turn",
    asked_of=1,
    instances=[
        Instance(0, "decode", 0, 0.25, 0.4, 5, 0.5, 1, 0.3),
        Instance(1, "free", 2, None, 0.4, 0, 0.125, NONE, 0.0),
        Instance(2, "weights", 1, 0.1, 1.0, 1, 0.0, NONE, 0.2),
    ],
    queues=[Queue(1, 4, 1, 0, 2.5, 0.75), Queue(2, 0, 1, 1, 30.0, -4.0)],
)
SHOWN = """\
t=12.346 of 60.0 s  market at load 1.00 on pool
in flight 9  open 6  on time 98.50 %  missed 3  asked: turn of instance 1

  instance  stage    model           batch    KV  turn            next
         0  decode   alpha               5   50%  0.25 s of 0.40  beta-long-name in 0.30 s
>        1  free     gamma               0   12%  -               -
         2  weights  beta-long-name      1    0%  0.10 s of 1.00  -

  queue           waiting  ready  on  oldest    slack
  beta-long-name        4      1   0   2.5 s      +0.75 s
  gamma                 0      1   1  30.0 s   late 4.0 s"""


def test_text_is_a_page_for_a_terminal() -> None:
    assert text_of(VIEW) == SHOWN


def test_text_of_a_quiet_pool_says_so() -> None:
    quiet = VIEW._replace(queues=[], on_time=0, missed=0, asked="none", asked_of=NONE)
    text = text_of(quiet)
    assert "no open requests" in text
    assert "on time -" in text
    assert "asked: nothing: the episode is over" in text
    assert ">" not in text


def test_text_ends_with_how_many_queues_are_left_out() -> None:
    many = [Queue(0, 1, 0, 0, 0.1, float(i)) for i in range(MOST_QUEUES + 3)]
    assert text_of(VIEW._replace(queues=many)).endswith("\n  and 3 more models")


def test_text_of_a_running_pool_has_all_its_instances(
    make_scene: Callable[..., Scene],
) -> None:
    view = make_scene(instances=8).view()
    lines = text_of(view).splitlines()
    assert [int(line[1:].split()[0]) for line in lines[4:12]] == list(range(8))
    assert sum(line.startswith(">") for line in lines) == 1
