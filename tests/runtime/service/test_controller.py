"""The controller over real workers: 8 tiny models on 2 CPU instances."""

import asyncio
import os
import signal
import time
from typing import Any

import pytest
from service_clients import PATHS, ask, generated, prompts, running, service

from runtime.errors import UserError
from runtime.service import controller as controllers
from runtime.service.agent import NodeAgent
from runtime.service.cluster import LocalCluster, LocalWorker
from runtime.service.controller import Controller, Here
from runtime.service.messages import Drop, End
from runtime.service.spec import Limits, ServerSpec
from runtime.service.tiny import ByteTokenizer


@pytest.fixture(scope="module")
def truth() -> dict[tuple[str, tuple[int, ...]], list[int]]:
    return {
        (model, tuple(prompt)): generated(PATHS[int(model[1:])], prompt, 12)
        for model, prompt in prompts(24)
    }


def test_eight_models_on_two_instances_say_what_generate_says(truth: Any) -> None:
    async def main() -> None:
        async with running(service()) as (controller, client):
            wanted = prompts(24)
            await client.say(*(ask(i, *pair) for i, pair in enumerate(wanted, 1)))
            await client.ended(24)
            for i, (model, prompt) in enumerate(wanted, 1):
                assert client.outputs[i] == truth[model, tuple(prompt)], f"request {i}"
                assert client.ends[i].end is End.LENGTH
            assert controller.latencies_s

    asyncio.run(main())


def test_killed_and_stopped_workers_cost_no_token(truth: Any) -> None:
    async def main() -> None:
        async with running(service()) as (controller, client):
            wanted = prompts(24)
            await client.say(*(ask(i, *pair) for i, pair in enumerate(wanted, 1)))
            for kill in range(4):
                await asyncio.sleep(0.05)
                handle = controller.seats[kill % 2].handle
                if handle is not None:
                    handle.kill()
                controller.book.check_integrity(controller.state)
            await client.ended(24)
            for i, (model, prompt) in enumerate(wanted, 1):
                assert client.outputs[i] == truth[model, tuple(prompt)], f"request {i}"

    asyncio.run(main())


def test_requests_that_cannot_be_served_end_at_once_and_say_why() -> None:
    spec = service(server=ServerSpec(limits=Limits(queue=4, first_token_s=0.2)))
    encode = ByteTokenizer().encode

    async def main() -> None:
        async with running(spec) as (_, client):
            await client.say(
                ask(1, "m9", encode("x")), ask(2, "m0", []), ask(3, "m0", [1 << 20]),
                ask(4, "m0", encode("x" * 3000)), ask(5, "m0", encode("x"), 0),
            )  # fmt: skip
            await client.ended(5)
            assert {e.end for e in client.ends.values()} == {End.REFUSED}
            assert all(e.reason for e in client.ends.values())
            await client.say(*(ask(i, f"m{i % 8}", encode("x"), 500) for i in range(6, 14)))
            await client.ended(9)
            shed = [e for e in client.ends.values() if e.end is End.SHED]
            assert len(shed) == 4
            assert all(e.retry_after_s is not None and e.retry_after_s > 0 for e in shed)
            await client.say(*(Drop(id=i) for i in range(6, 14)))
            await asyncio.sleep(0.5)

    asyncio.run(main())


def test_hung_worker_is_replaced_and_no_token_is_lost(truth: Any) -> None:
    async def main() -> None:
        async with running(service(hang_s=1.0)) as (controller, client):
            wanted = prompts(24)
            pid = controller.seats[0].handle.pid
            os.kill(pid, signal.SIGSTOP)
            await client.say(*(ask(i, *pair) for i, pair in enumerate(wanted, 1)))
            await client.ended(24)
            for i, (model, prompt) in enumerate(wanted, 1):
                assert client.outputs[i] == truth[model, tuple(prompt)], f"request {i}"
            assert controller.seats[0].handle is None or controller.seats[0].handle.pid != pid

    asyncio.run(main())


def test_requests_without_a_first_token_in_time_end_with_a_timeout() -> None:
    spec = service(server=ServerSpec(limits=Limits(first_token_s=0.1)), hang_s=60.0)

    async def main() -> None:
        async with running(spec) as (controller, client):
            for seat in controller.seats:
                os.kill(seat.handle.pid, signal.SIGSTOP)
            await client.say(*(ask(i, f"m{i % 8}", [65, 66], 4) for i in range(16)))
            await client.ended(8)
            assert {e.end for e in client.ends.values()} == {End.TIMEOUT}
            for seat in controller.seats:
                os.kill(seat.handle.pid, signal.SIGCONT)
            await client.ended(16)

    asyncio.run(main())


def test_draining_ends_what_is_in_flight_and_refuses_the_rest() -> None:
    async def main() -> None:
        async with running(service()) as (controller, client):
            await client.say(*(ask(i, f"m{i}", [65, 66], 400) for i in range(4)))
            await asyncio.sleep(0.2)
            drained = asyncio.create_task(controller.drain(0.1))
            await asyncio.sleep(0)
            await client.say(ask(9, "m0", [65]))
            await client.ended(5)
            await drained
            assert {e.end for e in client.ends.values()} <= {End.DRAINING, End.LENGTH}
            assert client.ends[9].end is End.DRAINING

    asyncio.run(main())


def test_instance_comes_back_though_starts_fail_and_ended_requests_leave_no_limits(
    truth: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controllers, "SPARE_LIMITS", 4)

    async def main() -> None:
        async with running(service(instances=1)) as (controller, client):
            start, failures = (
                controller.cluster.start,
                [EOFError("its server ended"), OSError("no")],
            )

            def fails(*args: Any, **keys: Any) -> Any:
                if failures:
                    raise failures.pop()
                return start(*args, **keys)

            monkeypatch.setattr(controller.cluster, "start", fails)
            controller.seats[0].handle.kill()
            wanted = prompts(8)
            await client.say(*(ask(i, *pair) for i, pair in enumerate(wanted, 1)))
            await client.ended(8)
            assert failures == []
            for i, (model, prompt) in enumerate(wanted, 1):
                assert client.outputs[i] == truth[model, tuple(prompt)], f"request {i}"
            await asyncio.sleep(4 * controllers.TICK_S)
            assert len(controller._limits) <= 4

    asyncio.run(main())


def test_worker_that_ends_while_others_start_is_told() -> None:
    spec = service()
    agent = NodeAgent(spec)

    class Unlucky(LocalCluster):
        def start(self, instance: int, epoch: int, *, measures: bool = False) -> LocalWorker:
            if instance == 1:
                assert controller.seats[0].hello is not None
                while not controller.seats[0].hello.done():
                    time.sleep(0.01)
                controller.seats[0].handle.kill()
            return super().start(instance, epoch, measures=measures)

    cluster = Unlucky(agent)
    controller = Controller(spec, agent, cluster, make_decider=Here)

    async def main() -> None:
        with pytest.raises(UserError, match="instance 0"):
            await controller.start()
        await controller.close()

    asyncio.run(main())
    cluster.close()
    agent.close()
