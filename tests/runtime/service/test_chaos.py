"""Workers killed and stopped at random moments under load; ten minutes of load."""

import asyncio
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from service_clients import PATHS, ask, generated, prompts, running, service

from runtime.service import controller as controller_module
from runtime.service.controller import Controller
from runtime.service.messages import Drop, End

KIB = 1 << 10
LONGEST = 48
IN_FLIGHT = 24
PROMPTS = prompts(16)


@pytest.fixture(scope="module")
def truth() -> list[list[int]]:
    return [generated(PATHS[int(model[1:])], prompt, LONGEST) for model, prompt in PROMPTS]


class Load:
    """Clients that ask again as soon as they are answered; a few go away instead of waiting."""

    def __init__(self, client: Any, seed: int) -> None:
        self.client, self.random = client, random.Random(seed)
        self.asked: dict[int, tuple[int, int]] = {}  # id -> prompt, tokens
        self.dropped: set[int] = set()
        self.checked = 0

    async def keep_up(self) -> None:
        """As many in flight as there should be."""
        flying = [i for i in self.asked if i not in self.client.ends and i not in self.dropped]
        for number in flying:
            if self.random.random() < 0.002:
                self.dropped.add(number)
                await self.client.say(Drop(id=number))
        for _ in range(IN_FLIGHT - len(flying)):
            number = len(self.asked) + self.checked + 1
            which, count = self.random.randrange(len(PROMPTS)), self.random.randint(1, LONGEST)
            self.asked[number] = which, count
            await self.client.say(ask(number, *PROMPTS[which], count))

    def check(self, truth: list[list[int]]) -> None:
        """Every answer is the undisturbed one, each token once; forget those that are over."""
        for number in [*self.asked]:
            which, count = self.asked[number]
            said = self.client.outputs.get(number, [])
            if number in self.dropped:
                assert said == truth[which][: len(said)], f"request {number}"
            elif number in self.client.ends:
                assert self.client.ends[number].end is End.LENGTH, self.client.ends[number]
                assert said == truth[which][:count], f"request {number}"
            else:
                continue
            self.checked += 1
            del self.asked[number]
            if number not in self.dropped:  # of those more may be under way
                del self.client.outputs[number], self.client.ends[number]

    async def settle(self) -> None:
        until_s = time.monotonic() + 60
        while any(i not in self.client.ends and i not in self.dropped for i in self.asked):
            assert time.monotonic() < until_s, f"unanswered: {[*self.asked]}"
            await asyncio.sleep(0.02)


async def hit(controller: Controller, chance: random.Random) -> bool:
    """One worker dies, or stops and is found to hang."""
    seat = chance.choice(controller.seats)
    is_up = seat.handle is not None and seat.hello is not None and seat.hello.done()
    if seat.is_failing or not is_up or not seat.handle.is_alive():
        return False
    os.kill(seat.handle.pid, signal.SIGKILL if chance.random() < 0.9 else signal.SIGSTOP)
    return True


async def chaos(kills: int, seed: int, truth: list[list[int]]) -> int:
    chance = random.Random(seed)
    spec = service(kv_bytes=128 * KIB, host_kv_bytes=512 * KIB, hang_s=1.0)
    async with running(spec) as (controller, client):
        load, done = Load(client, seed), 0
        while done < kills:
            await load.keep_up()
            await asyncio.sleep(chance.random() * 0.3)
            done += await hit(controller, chance)
            controller.check_integrity()
            load.check(truth)
        await load.settle()
        load.check(truth)
        return load.checked


@pytest.mark.parametrize("kills", [8, pytest.param(200, marks=pytest.mark.long)])
def test_requests_survive_kills_with_every_token_once(
    kills: int, truth: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_module, "BACK_OFF_S", (0.01, 0.05))
    before = memory_files()
    assert asyncio.run(chaos(kills, kills, truth)) > kills
    assert memory_files() == before


def memory_files() -> list[str]:
    return sorted(path.name for path in Path("/dev/shm").iterdir())


def resident_kib(pid: int) -> int:
    """Of its own: what it shares with others of the node does not grow."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1])
    raise AssertionError(pid)


@pytest.mark.long
def test_ten_minutes_of_load_leave_memory_flat(truth: list[list[int]]) -> None:
    """The second half uses no more than the first, beyond what allocators round."""

    async def main() -> None:
        async with running(service(kv_bytes=128 * KIB)) as (controller, client):
            load, began_s, marks = Load(client, 0), time.monotonic(), list[list[int]]()
            pids = [os.getpid(), *(seat.handle.pid for seat in controller.seats)]
            while time.monotonic() - began_s < 600:
                await load.keep_up()
                await asyncio.sleep(0.05)
                load.check(truth)
                if time.monotonic() - began_s > 60 * (1 + len(marks)):
                    marks.append([resident_kib(pid) for pid in pids])
            await load.settle()
            load.check(truth)
            for early, late in zip(marks[2], marks[-1], strict=True):
                assert late < 1.05 * early + 4096, marks

    asyncio.run(main())
