"""A pool as a picture: the Gantt of the last seconds, and the queues beside it."""

from collections.abc import Sequence
from colorsys import hls_to_rgb
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from envs.rendering.scene import Queue, View
from runtime.core import NONE
from runtime.timeline.bars import Bar

WIDTH, HEIGHT = 960, 540
SHOWN_S = 20.0  # of the Gantt
LEFT, TOP, RIGHT, BOTTOM = 52, 78, 640, 474  # of the Gantt
QUEUES, LINE = 672, 25  # left edge of the queues, height of one
TALLEST = 44  # of an instance's row
GOLDEN = 0.6180339887498949  # of the hue's circle, between two models
INK, GREY, RULE, PAPER = (32, 36, 42), (110, 116, 124), (222, 226, 230), (255, 255, 255)
MARK, LATE, SOON = (255, 244, 204), (200, 30, 30), (190, 110, 0)
DOWN, KV = (200, 30, 30), (60, 60, 66)
Color = tuple[int, int, int]


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


@cache
def color(model: int) -> Color:
    """Neighbours differ most; darker and lighter in turn."""
    lightness = (0.44, 0.55, 0.36)[model % 3]
    return _rgb(hls_to_rgb(model * GOLDEN % 1.0, lightness, 0.58))


def pale(model: int) -> Color:
    return _rgb(tuple(0.3 * c / 255 + 0.7 for c in color(model)))


def _rgb(parts: Sequence[float]) -> Color:
    r, g, b = (round(255 * part) for part in parts)
    return r, g, b


def picture_of(view: View, bars: Sequence[Bar], beside: Sequence[Bar]) -> npt.NDArray[np.uint8]:
    """RGB [HEIGHT, WIDTH, 3], whatever the size of the pool."""
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)
    _head(draw, view)
    _grid(draw, view)
    for bar in bars:
        _bar(draw, view, bar)
    for bar in beside:
        _beside(draw, view, bar)
    _legend(draw)
    _queues(draw, view)
    return np.asarray(image).copy()


def row_height(view: View) -> float:
    return min(TALLEST, (BOTTOM - TOP) / len(view.instances))


def x_of(view: View, at_s: float) -> float:
    return RIGHT - (view.now_s - at_s) * (RIGHT - LEFT) / SHOWN_S


def _head(draw: ImageDraw.ImageDraw, view: View) -> None:
    due = view.on_time + view.missed
    share = f"{100 * view.on_time / due:.1f} %" if due else "-"
    draw.text((16, 10), view.title, INK, font(17))
    facts = (
        f"{view.now_s:.2f} of {view.end_s:.1f} s     in flight {view.in_flight}"
        f"     open {view.open}     tokens on time {share}     deadlines missed {view.missed:,}"
    )
    draw.text((16, 34), facts, GREY, font(13))


def _grid(draw: ImageDraw.ImageDraw, view: View) -> None:
    """Rows, their names, the instance that is asked, ticks every five seconds."""
    height, count = row_height(view), len(view.instances)
    bottom = TOP + height * count
    every = max(1, round(14 / height))
    for one in view.instances:
        top = TOP + height * one.number
        if one.number == view.asked_of:
            draw.rectangle((LEFT, top, RIGHT, top + height), MARK)
            middle = top + height / 2
            draw.polygon(
                ((RIGHT + 3, middle), (RIGHT + 10, middle - 5), (RIGHT + 10, middle + 5)), INK
            )
        if one.number % every == 0:
            name = f"{one.number}"
            draw.text((LEFT - 8, top + height / 2), name, GREY, font(12), anchor="rm")
    first = int(np.ceil((view.now_s - SHOWN_S) / 5)) * 5
    for at_s in range(first, int(view.now_s) + 1, 5):
        x = x_of(view, at_s)
        draw.line((x, TOP, x, bottom + 4), RULE)
        if at_s >= 0:
            draw.text((x, bottom + 6), f"{at_s} s", GREY, font(12), anchor="mt")
    draw.line((LEFT, bottom, RIGHT, bottom), RULE)
    draw.text((16, TOP - 12), "instance", GREY, font(12), anchor="lm")
    if view.asked_of != NONE:
        draw.text((RIGHT, TOP - 12), f"asked: {view.asked}", INK, font(12), anchor="rm")


def _bar(draw: ImageDraw.ImageDraw, view: View, bar: Bar) -> None:
    height = row_height(view)
    pad = min(3.0, height / 6)
    top, low = TOP + height * bar.instance + pad, TOP + height * (bar.instance + 1) - 2 * pad
    left, right = x_of(view, bar.start_s), x_of(view, bar.end_s)
    if bar.look == "down":
        middle = (top + low) / 2
        half = min(2.0, height / 5)
        draw.rectangle((left, middle - half, right, middle + half), DOWN)
        return
    if bar.look == "KV":
        middle = (top + low) / 2
        draw.rectangle((left, middle - (low - top) / 4, right, middle + (low - top) / 4), KV)
        return
    fill = pale(bar.model) if bar.look == "weights" else color(bar.model)
    draw.rectangle((left, top, right, low), fill)
    label = short(view, bar.model)
    if bar.look == "work" and height >= 16 and right - left > draw.textlength(label, font(11)) + 6:
        draw.text(((left + right) / 2, (top + low) / 2), label, PAPER, font(11), anchor="mm")


def _beside(draw: ImageDraw.ImageDraw, view: View, bar: Bar) -> None:
    """A thin line under the row: a prefetch in its model's colour, KV that leaves in black."""
    height = row_height(view)
    thick = max(1.0, min(3.0, height / 8))
    low = TOP + height * (bar.instance + 1) - 1
    fill = KV if bar.look == "out" else color(bar.model)
    shift = thick if bar.look == "out" else 0.0
    at = x_of(view, bar.start_s), low - thick - shift, x_of(view, bar.end_s), low - shift
    draw.rectangle(at, fill)


def short(view: View, model: int) -> str:
    """A model's name where there is little room: its number in it, or its last letters."""
    name = view.models[model]
    return name.rpartition("-")[2][-6:] or name[-6:]


def _legend(draw: ImageDraw.ImageDraw) -> None:
    x, y = float(LEFT), HEIGHT - 22
    entries = (
        ("prefill and decode", color(0), 10),
        ("weights load", pale(0), 10),
        ("KV moves in, or must leave", KV, 5),
        ("prefetch", color(1), 3),
        ("KV leaves", KV, 3),
        ("down", DOWN, 4),
    )
    for label, fill, thick in entries:
        draw.rectangle((x, y - thick / 2, x + 16, y + thick / 2), fill)
        draw.text((x + 21, y), label, GREY, font(12), anchor="lm")
        x += 21 + draw.textlength(label, font(12)) + 18


def _queues(draw: ImageDraw.ImageDraw, view: View) -> None:
    """Open requests by model: dark with KV, pale without; least slack first, late ones last."""
    draw.text((QUEUES, TOP - 12), "open requests, most urgent first", INK, font(12), anchor="lm")
    draw.text((WIDTH - 16, TOP - 12), "slack", INK, font(12), anchor="rm")
    room = int((HEIGHT - 40 - TOP) // LINE)
    shown = view.queues[: room - 1] if len(view.queues) > room else view.queues
    most = max(8, *(q.waiting + q.ready for q in view.queues)) if view.queues else 8
    for i, queue in enumerate(shown):
        _queue(draw, view, queue, TOP + 2 + i * LINE, 76 / most)
    if len(shown) < len(view.queues):
        rest = view.queues[len(shown) :]
        count = sum(q.waiting + q.ready for q in rest)
        late = sum(1 for q in rest if q.slack_s < 0)
        note = f"{len(rest)} more models, {count} requests" + (f"; {late} late" if late else "")
        draw.text((QUEUES, TOP + 2 + len(shown) * LINE + 8), note, GREY, font(12), anchor="lm")


def _queue(
    draw: ImageDraw.ImageDraw, view: View, queue: Queue, top: float, per_request: float
) -> None:
    middle = top + 9
    name = view.models[queue.model]
    name = name if len(name) <= 15 else f"{name[:14]}…"
    draw.rectangle((QUEUES, middle - 5, QUEUES + 9, middle + 5), color(queue.model))
    draw.text((QUEUES + 16, middle), name, INK, font(12), anchor="lm")
    left = QUEUES + 120.0
    for amount, fill in ((queue.ready, color(queue.model)), (queue.waiting, pale(queue.model))):
        if amount:
            right = left + amount * per_request
            draw.rectangle((left, middle - 6, right - 1, middle + 6), fill)
            left = right
    draw.text((left + 4, middle), f"{queue.waiting + queue.ready}", GREY, font(11), anchor="lm")
    is_late = queue.slack_s < 0
    slack = f"late {-queue.slack_s:.1f} s" if is_late else f"{queue.slack_s:.1f} s"
    tint = LATE if is_late else SOON if queue.slack_s < 1 else GREY
    draw.text((WIDTH - 16, middle), slack, tint, font(12), anchor="rm")
