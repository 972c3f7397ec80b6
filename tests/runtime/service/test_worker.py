"""A real worker behind a scripted controller."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from service_clients import generated
from service_rig import Puppet, puppets, spec_of

from runtime.core import EventKind, Stage
from runtime.errors import UserError
from runtime.service.agent import NodeAgent
from runtime.service.cluster import LocalCluster
from runtime.service.messages import Close, End, Forget, Load, MoveOut, Return, Sampled
from runtime.service.spec import ModelSource
from runtime.service.tiny import ByteTokenizer

PATHS = ("tiny:llama:0", "tiny:llama:1", "tiny:qwen3:2")
PROMPT = ByteTokenizer().encode("what is a pool?")


@pytest.fixture(scope="module")
def pair() -> Iterator[list[Puppet]]:
    with puppets(spec_of(*PATHS), 2) as made:
        yield made


@pytest.fixture(scope="module")
def truth() -> dict[str, list[int]]:
    return {f"m{i}": generated(path, PROMPT, 12) for i, path in enumerate(PATHS)}


def test_two_models_that_alternate_after_every_token_say_what_generate_says(pair, truth) -> None:
    puppet = pair[0]
    for number, model in ((1, "m0"), (2, "m1")):
        puppet.submit(number, model, PROMPT, max_tokens=12)
        puppet.switch(model, "m0")
        puppet.prefill(model, number)
    for _ in range(11):
        for number, model in ((1, "m0"), (2, "m1")):
            puppet.order(Stage.COMMANDED, model)
            puppet.report(EventKind.SWITCHED)
            (last,) = puppet.decode(model, number)
            assert not last.goes_on
    assert puppet.outputs[1] == truth["m0"]
    assert puppet.outputs[2] == truth["m1"]
    assert last.ended == {2: End.LENGTH}


def test_models_of_other_shapes_take_turns_in_one_slot_and_prompts_come_in_chunks(
    pair, truth
) -> None:
    puppet = pair[0]
    puppet.submit(5, "m2", PROMPT)
    puppet.submit(6, "m0", PROMPT)
    puppet.switch("m2")
    chunks = [puppet.prefill("m2", 5, chunk_tokens=6) for _ in range(3)]
    assert [chunk.ids for chunk in chunks] == [(), (), (5,)]
    puppet.switch("m0")
    puppet.prefill("m0", 6)
    puppet.switch("m2")
    puppet.decode("m2", 5, steps=7)
    assert puppet.outputs[5] == truth["m2"][:8]
    assert puppet.outputs[6] == truth["m0"][:1]
    puppet.say(Forget(ids=(6,)))


def test_decode_runs_ahead_until_its_steps_a_return_or_an_end(pair, truth) -> None:
    puppet = pair[0]
    puppet.submit(10, "m0", PROMPT, max_tokens=200)
    puppet.submit(11, "m0", PROMPT, max_tokens=12)
    puppet.switch("m0")
    puppet.prefill("m0", 10, 11)
    reports = puppet.decode("m0", 10, 11, steps=3)
    assert [report.goes_on for report in reports] == [True, True, False]
    reports = puppet.decode("m0", 10, 11, steps=1000)
    assert reports[-1].ended == {11: End.LENGTH}
    assert puppet.outputs[11] == truth["m0"]
    serial = puppet.order(Stage.DECODE, "m0", 10, steps=1000)
    puppet.step()
    puppet.say(Return(serial=serial))
    while puppet.step().goes_on:
        pass
    assert len(puppet.outputs[10]) < 200
    few = puppet.decode("m0", 10, steps=1000, quota_s=1e-6)
    assert len(few) == 1
    puppet.say(Forget(ids=(10,)))


@pytest.mark.parametrize("with_record", [True, False], ids=["record", "tokens"])
def test_request_goes_on_elsewhere_with_no_token_missing(pair, truth, with_record: bool) -> None:
    first, second = pair
    number = 20 + with_record
    first.submit(number, "m1", PROMPT, max_tokens=12)
    first.switch("m1")
    first.prefill("m1", number)
    first.decode("m1", number, steps=4)
    record = first.move_out(number)
    assert record is not None
    assert record.tokens == len(PROMPT) + 4
    if not with_record:
        first.agent.give_back(record.block_bytes, record.offsets)
    first.say(Forget(ids=(number,)))
    second.adopt(first, number, with_record=with_record)
    second.switch("m1")
    if with_record:
        second.move_in("m1", number)
    second.decode("m1", number, steps=7)
    assert second.outputs[number] == truth["m1"]
    assert first.agent.host_kv.taken() == 0


def test_sampled_tokens_depend_on_seed_and_index_alone(pair) -> None:
    sampling = Sampled(temperature=1.0, top_p=0.9, seed=7, logprobs=2)
    for number, puppet in enumerate(pair, 30):
        puppet.submit(number, "m0", PROMPT, max_tokens=8, sampling=sampling)
        puppet.switch("m0")
        report = puppet.prefill("m0", number)
        assert report.logprobs[0] is not None
        assert len(report.logprobs[0].top) == 2
    pair[0].decode("m0", 30, steps=7)
    pair[1].decode("m0", 31, steps=3)
    pair[0].outputs[31], pair[0].asks[31] = pair[1].outputs[31], pair[1].asks[31]
    pair[1].say(Forget(ids=(31,)))
    pair[0].adopt(pair[1], 31, with_record=False)
    pair[0].decode("m0", 31, steps=4)
    assert pair[0].outputs[30] == pair[0].outputs[31]


def test_kv_without_a_lease_is_dropped_and_prefilled_anew(pair, truth) -> None:
    puppet = pair[0]
    puppet.submit(40, "m0", PROMPT, max_tokens=12)
    puppet.switch("m0")
    puppet.prefill("m0", 40)
    puppet.decode("m0", 40, steps=3)
    assert puppet.move_out(40, blocks=0) is None
    report = puppet.prefill("m0", 40)
    assert report.first == (4,)
    puppet.decode("m0", 40, steps=7)
    assert puppet.outputs[40] == truth["m0"]


def test_stop_strings_end_a_request(pair, truth) -> None:
    puppet = pair[0]
    text = ByteTokenizer().decode(truth["m0"][2:4])
    puppet.submit(50, "m0", PROMPT, stop_strings=(text,))
    puppet.switch("m0")
    puppet.prefill("m0", 50)
    reports = puppet.decode("m0", 50, steps=7)
    assert reports[-1].ended == {50: End.STOP}
    assert puppet.outputs[50] == truth["m0"][: len(puppet.outputs[50])]


def test_reports_carry_the_epoch_of_their_worker(pair) -> None:
    for epoch, puppet in enumerate(pair, 1):
        puppet.say(Load(model="m0", kept=()))
        assert puppet.report(EventKind.WEIGHTS_READY).epoch == epoch


@pytest.mark.parametrize("message", ["lost", "stage", "slots"])
def test_impossible_orders_break_the_worker_with_one_line(message: str) -> None:
    with puppets(spec_of("tiny:llama:0", "tiny:llama:1", weight_slots=1)) as (puppet,):
        if message == "lost":
            puppet.order(Stage.DECODE, "m0", 99, steps=1)
        elif message == "stage":
            puppet.order(Stage.IDLE, "m0")
        else:
            puppet.load("m0")
            puppet.say(Load(model="m1", kept=("m0",)))
        reason = puppet.broken()
        assert "\n" not in reason
        assert "Error" in reason
        assert puppet.worker.wait(10)


def read(pid: int | str, name: str) -> str:
    """A file of a process; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""


def parent(pid: int | str) -> str:
    status = read(pid, "status").partition("PPid:")[2].split()
    return status[0] if status else ""


def is_worker(pid: int | str) -> bool:
    return read(pid, "cmdline").startswith("aegaeon-rl worker")


def children() -> set[str]:
    """Workers of this process: the server that forked them is its child."""
    us = str(os.getpid())
    pids = filter(str.isdecimal, os.listdir("/proc"))
    return {pid for pid in pids if is_worker(pid) and parent(parent(pid)) == us}


def memfds() -> int:
    """Memory files this process holds."""
    names = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
    return sum("memfd:" in name for name in names)


def stuck(puppet: Puppet, moment: str) -> None:
    """Bring a worker to a moment of its work."""
    puppet.submit(1, "m0", PROMPT, max_tokens=1000)
    puppet.switch("m0")
    if moment == "switch":
        puppet.say(Load(model="m1", kept=("m0",)))
        puppet.order(Stage.COMMANDED, "m1")
        return
    if moment == "prefill":
        puppet.order(Stage.PREFILL, "m0", 1)
        return
    puppet.prefill("m0", 1)
    if moment == "decode":
        puppet.order(Stage.DECODE, "m0", 1, steps=1000)
        puppet.step()
    elif moment == "move":
        puppet.decode("m0", 1, steps=100)
        facts = puppet.agent.facts["m0"]
        puppet.records[1] = None
        puppet.lease = puppet.agent.lease(facts.block_bytes, 40)
        puppet.say(MoveOut(ids=(1,), block_bytes=facts.block_bytes, leases=(puppet.lease,)))


@pytest.mark.parametrize("moment", ["prefill", "decode", "switch", "move", "hang"])
def test_worker_killed_at_any_moment_leaves_nothing_and_its_work_goes_on(moment, truth) -> None:
    before, files = children(), memfds()
    with puppets(spec_of(*PATHS), 2) as (victim, heir):
        if moment == "hang":
            os.kill(victim.worker.pid, signal.SIGSTOP)
            victim.submit(1, "m0", PROMPT, max_tokens=1000)
        else:
            stuck(victim, moment)
        assert victim.worker.is_alive()
        victim.worker.kill()
        assert victim.worker.wait(10)
        with pytest.raises((EOFError, ConnectionError)):
            victim.hear(lambda _: False)
        if moment == "move":
            size = victim.agent.facts["m0"].block_bytes
            victim.agent.give_back(size, victim.lease)
        for message in victim.heard:  # what was said before the end counts
            if message.kind in (EventKind.PREFILLED, EventKind.STEPS):
                victim.account(message)
        heir.adopt(victim, 1, with_record=False)
        heir.switch("m0")
        heir.prefill("m0", 1)
        heir.decode("m0", 1, steps=max(1, 11 - len(heir.outputs[1])))
        assert heir.outputs[1][:12] == truth["m0"][: len(heir.outputs[1])]
        assert heir.agent.host_kv.taken() == 0
    assert children() == before
    assert memfds() == files


def test_worker_ends_when_its_controller_closes_the_connection_or_says_so() -> None:
    with puppets(spec_of("tiny:llama:0"), 2) as (first, second):
        first.worker.connection.shutdown(socket.SHUT_RDWR)
        second.say(Close())
        assert first.worker.wait(5)
        assert second.worker.wait(5)


CONTROLLER = """
import sys, time
from service_clients import generated
from service_rig import puppets, spec_of
if __name__ == "__main__":
    with puppets(spec_of("tiny:llama:0"), 2) as made:
        print(*(puppet.worker.pid for puppet in made), flush=True)
        time.sleep(600)
"""


def test_workers_end_within_five_seconds_of_a_controller_that_is_killed() -> None:
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    controller = subprocess.Popen(
        [sys.executable, "-c", CONTROLLER],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert controller.stdout is not None
    pids = [int(word) for word in controller.stdout.readline().split()]
    controller.stdout.close()
    assert len(pids) == 2
    hung, working = pids
    os.kill(hung, signal.SIGSTOP)
    controller.kill()
    controller.wait()
    assert is_gone(working, 5)
    assert is_gone(hung, 60)  # with the server that forked it, however busy the machine is


def is_gone(pid: int, within_s: float) -> bool:
    until_s = time.monotonic() + within_s
    while is_worker(pid) and time.monotonic() < until_s:
        time.sleep(0.02)
    return not is_worker(pid)


def test_start_up_costs_are_positive_and_shared_by_models_of_one_shape() -> None:
    agent = NodeAgent(spec_of("tiny:llama:0", "tiny:llama:1"))
    cluster = LocalCluster(agent)
    try:
        hello = Puppet(cluster.start(0, 1, measures=True), agent).hello()
    finally:
        cluster.close()
        agent.close()
    assert hello.costs["m0"] == hello.costs["m1"]
    assert hello.costs["m0"].prefill_token_s > 0 < hello.costs["m0"].decode_s


@pytest.mark.parametrize("key", ["host_kv_bytes", "kv_bytes"])
def test_memory_the_machine_lacks_is_one_line_before_anything_starts(key: str) -> None:
    before = memfds()
    with pytest.raises(UserError, match=key) as error:
        NodeAgent(spec_of("tiny:llama:0", **{key: 1 << 46}))
    assert "\n" not in str(error.value)
    assert memfds() == before


def test_unreadable_model_is_named_before_anything_starts() -> None:
    models = {"good": ModelSource(path="tiny:llama:0"), "bad": ModelSource(path="/nowhere")}
    before = memfds()
    with pytest.raises(UserError, match=r"models\.bad"):
        NodeAgent(spec_of(models=models))
    assert memfds() == before
