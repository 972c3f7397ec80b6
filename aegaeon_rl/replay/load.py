"""The load itself: each request leaves at its arrival, whatever became of those before it."""

import asyncio
import resource
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from time import perf_counter

import numpy as np

from aegaeon_rl.replay.answer import Answer, error_text
from aegaeon_rl.replay.dialect import Dialect, WordCount, made_prompt
from aegaeon_rl.replay.spec import ReplaySpec
from aegaeon_rl.replay.wire import Connection, Door, GoneError, Response
from traces import Trace

LEAD_S = 0.3  # before its arrival a request is made ready and has its connection
SPIN_S = 0.0015  # timers are this coarse


class Status(StrEnum):
    """As in the service's request log, but for `late`, `refused` and `unsent`."""

    DONE = "done"
    SHED = "shed"  # 429 or 503
    LATE = "late"  # it took longer than timeout_s
    REFUSED = "refused"  # another 4xx
    FAILED = "failed"  # 5xx, a broken connection, an error within the stream
    CANCELLED = "cancelled"  # the replay was interrupted
    UNSENT = "unsent"  # the endpoint had gone


@dataclass(slots=True)
class Outcome:
    """Of one request; times are seconds since the replay's start."""

    request: int  # row of the trace
    status: Status = Status.UNSENT
    reason: str = ""
    http_status: int = 0
    sent_s: float | None = None
    end_s: float = 0.0
    answer: Answer = field(default_factory=Answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A trace, as one endpoint is asked for it. `targets`: the endpoint's name of each model."""

    trace: Trace
    spec: ReplaySpec
    dialect: Dialect
    targets: Sequence[str]
    counts: Mapping[str, WordCount]  # by the endpoint's names
    seed: int = 0

    def body(self, request: int) -> bytes:
        trace = self.trace
        target = self.targets[trace.model[request]]
        rng = np.random.default_rng((self.seed, request))
        prompt = made_prompt(self.dialect, self.prompt_tokens(request), self.counts[target], rng)
        priority = 0 if trace.priority is None else int(trace.priority[request])
        return self.dialect.body(target, prompt, self.output_tokens(request), priority)

    def prompt_tokens(self, request: int) -> int:
        tokens = int(self.trace.prompt_tokens[request])
        return min(tokens, self.spec.prompt_tokens or tokens)

    def output_tokens(self, request: int) -> int:
        tokens = int(self.trace.output_tokens[request])
        return min(tokens, self.spec.output_tokens or tokens)


Watch = Callable[[Outcome], None]


class Load:
    """One run of a job; `outcomes` are in the trace's order."""

    def __init__(self, job: Job, door: Door, watch: Watch) -> None:
        self.job, self.door, self.watch = job, door, watch
        self.outcomes = [Outcome(request) for request in range(job.trace.requests)]
        self.in_flight: set[asyncio.Task[None]] = set()
        self.start_s = 0.0
        self.gone_since_s: float | None = None  # no connection could be made since
        self.is_interrupted = False
        self.has_given_up = False

    async def run(self) -> None:
        """Send all, and wait for what is under way. SIGINT ends it early."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self.interrupt)
        self.start_s = perf_counter() + LEAD_S
        self.pacer = asyncio.current_task()
        try:
            await self._send_all()
            while self.in_flight:
                await asyncio.wait(self.in_flight)
        except asyncio.CancelledError:
            if not self.is_interrupted:
                raise
            await asyncio.gather(*self.in_flight, return_exceptions=True)
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            self.door.close()

    def interrupt(self) -> None:
        """Send nothing more, wait for nothing more."""
        self.is_interrupted = True
        for task in self.in_flight:
            task.cancel()
        if self.pacer is not None:
            self.pacer.cancel()

    async def _send_all(self) -> None:
        arrivals = self.job.trace.arrival_s.tolist()
        for outcome, arrival_s in zip(self.outcomes, arrivals, strict=True):
            wait_s = arrival_s - LEAD_S - self.now_s()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            elif outcome.request % 16 == 0:
                await asyncio.sleep(0)  # a burst: others have their turn
            gone_s = self.gone_since_s
            if gone_s is not None and self.now_s() - gone_s > self.job.spec.give_up_s:
                self.has_given_up = True
                return
            task = asyncio.create_task(self._serve(outcome, arrival_s))
            self.in_flight.add(task)
            task.add_done_callback(self.in_flight.discard)

    async def _serve(self, outcome: Outcome, arrival_s: float) -> None:
        request = self.door.request(self.job.dialect.path, self.job.body(outcome.request))
        patience_s = self.job.spec.timeout_s + max(0.0, arrival_s - self.now_s())
        try:
            async with asyncio.timeout(patience_s):
                await self._ask(outcome, request, arrival_s)
        except asyncio.CancelledError:
            outcome.status, outcome.reason = Status.CANCELLED, "the replay was interrupted"
        except TimeoutError:
            outcome.status = Status.LATE
            outcome.reason = f"not done within {self.job.spec.timeout_s:g} s"
        except GoneError as error:
            outcome.status, outcome.reason = Status.FAILED, str(error)
        except OSError as error:
            outcome.status = Status.FAILED
            outcome.reason = error.strerror or str(error) or "no connection"
        outcome.end_s = self.now_s()
        self.watch(outcome)

    async def _ask(self, outcome: Outcome, request: bytes, arrival_s: float) -> None:
        connection = await self._connect()
        try:
            await self._until(arrival_s)
            outcome.sent_s = self.now_s()
            try:
                if not connection.is_open:
                    raise GoneError("closed while idle", False)
                response = await connection.ask(request, outcome.answer.feed)
            except GoneError as error:
                if error.had_answer or connection.asked == 1:
                    raise
                connection = await self._connect(fresh=True)  # a kept one that the server closed
                response = await connection.ask(request, outcome.answer.feed)
            judge(outcome, response)
            self.door.give(connection)
        except BaseException:
            connection.close()
            raise

    async def _connect(self, *, fresh: bool = False) -> Connection:
        try:
            connection = await self.door.take(fresh=fresh)
        except OSError:
            if self.gone_since_s is None:
                self.gone_since_s = self.now_s()
            raise
        self.gone_since_s = None
        return connection

    async def _until(self, time_s: float) -> None:
        while (left_s := time_s - self.now_s()) > 0:
            await asyncio.sleep(left_s - SPIN_S if left_s > 2 * SPIN_S else 0)

    def now_s(self) -> float:
        return perf_counter() - self.start_s


def judge(outcome: Outcome, response: Response) -> None:
    """What a whole answer means."""
    outcome.http_status = response.status
    answer = outcome.answer
    if response.status == 200 and answer.error is None and (answer.finish or answer.is_done):
        outcome.status = Status.DONE
        return
    if response.status == 200:
        outcome.status = Status.FAILED
        outcome.reason = answer.error or "the stream ended without an end"
        return
    outcome.reason = error_text(response.body)
    if response.status in (429, 503):
        outcome.status = Status.SHED
    elif response.status < 500:
        outcome.status = Status.REFUSED
    else:
        outcome.status = Status.FAILED


def allow_connections(many: int) -> None:
    """Raise this process's limit of open files, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = many + 256
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
