"""A pool as text for a terminal: its clock, its instances, its queues."""

from envs.rendering.scene import Instance, Queue, View
from runtime.core import NONE

MOST_QUEUES = 16


def text_of(view: View) -> str:
    return "\n".join([*_head(view), "", *_instances(view), "", *_queues(view)])


def _head(view: View) -> list[str]:
    due = view.on_time + view.missed
    share = f"{100 * view.on_time / due:.2f} %" if due else "-"
    whom = "" if view.asked_of == NONE else f" of instance {view.asked_of}"
    asked = "nothing: the episode is over" if view.asked == "none" else view.asked + whom
    return [
        f"t={view.now_s:.3f} of {view.end_s:.1f} s  {view.title}",
        f"in flight {view.in_flight}  open {view.open}  on time {share}  missed {view.missed}"
        f"  asked: {asked}",
    ]


def _instances(view: View) -> list[str]:
    width = max(5, *(len(name) for name in view.models))
    lines = [f"  instance  stage    {'model':{width}}  batch    KV  turn            next"]
    lines += [_instance(view, one, width) for one in view.instances]
    return lines


def _instance(view: View, one: Instance, width: int) -> str:
    mark = ">" if one.number == view.asked_of else " "
    turn = "-" if one.turn_s is None else f"{one.turn_s:.2f} s of {one.quota_s:.2f}"
    following = _name(view, one.next_model)
    if one.load_left_s > 0 and one.next_model != NONE:
        following += f" in {one.load_left_s:.2f} s"
    return (
        f"{mark} {one.number:>8}  {one.stage:7}  {_name(view, one.model):{width}}"
        f"  {one.requests:>5}  {100 * one.kv_share:>3.0f}%  {turn:14}  {following}"
    ).rstrip()


def _queues(view: View) -> list[str]:
    if not view.queues:
        return ["  no open requests"]
    width = max(5, *(len(name) for name in view.models))
    lines = [f"  {'queue':{width}}  waiting  ready  on  oldest    slack"]
    lines += [_queue(view, one, width) for one in view.queues[:MOST_QUEUES]]
    if len(view.queues) > MOST_QUEUES:
        lines.append(f"  and {len(view.queues) - MOST_QUEUES} more models")
    return lines


def _queue(view: View, one: Queue, width: int) -> str:
    slack = f"{one.slack_s:+.2f} s" if one.slack_s >= 0 else f"late {-one.slack_s:.1f} s"
    return (
        f"  {_name(view, one.model):{width}}  {one.waiting:>7}  {one.ready:>5}"
        f"  {one.running_on:>2}  {one.oldest_s:>4.1f} s  {slack:>11}"
    )


def _name(view: View, model: int) -> str:
    return "-" if model == NONE else view.models[model]
