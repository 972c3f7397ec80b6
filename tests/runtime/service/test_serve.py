"""`aegaeon-rl serve` as a process: it answers, logs, drains at SIGTERM, leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from runtime.service.logs import read_journal
from traces.source import TraceSource, open_trace

ROOT = Path(__file__).parents[3]
START_S, END_S = 240.0, 60.0  # a first start compiles
GONE_S = 5.0  # after the controller is killed


class Served:
    """The command, once it has said where it serves."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.temporary = folder / "run", folder / "tmp"
        self.temporary.mkdir()
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        code = "import sys; from aegaeon_rl.cli import main; sys.argv[0] = 'aegaeon-rl'; main()"
        self.errors = (folder / "errors.txt").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", "server.port=0", "run.dir=run", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(self.temporary)},
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        if not first:
            pytest.fail(Path(self.errors.name).read_text())
        self.url = first.split()[-1]
        self.lines = [self.process.stdout.readline().strip() for _ in range(3)]

    def post(self, path: str, body: Any) -> Any:
        data = json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data, {"content-type": "application/json"})
        with urllib.request.urlopen(asked, timeout=END_S) as answer:
            return json.load(answer)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=END_S) as answer:
            return str(answer.read().decode())

    def complete(self, model: str, tokens: int = 4) -> Any:
        body = {"model": model, "prompt": "Hello", "max_tokens": tokens, "ignore_eos": True}
        return self.post("/v1/completions", body)

    @property
    def logs(self) -> Path:
        (logs,) = (self.folder / "logs").iterdir()
        return logs

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        self.errors.close()


Start = Callable[..., Served]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    running: list[Served] = []

    def begin(*arguments: str) -> Served:
        running.append(Served(tmp_path_factory.mktemp("serve"), *arguments))
        return running[-1]

    yield begin
    for served in running:
        served.end()


def children(pid: int) -> list[int]:
    """All processes below `pid`."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *children(child)]
    return found


def is_there(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def title_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def until_gone(pids: list[int], limit_s: float) -> list[int]:
    end = time.monotonic() + limit_s
    while (left := [pid for pid in pids if is_there(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def test_serve_answers_logs_and_drains(start: Start) -> None:
    served = start()
    below = children(served.process.pid)
    assert len(below) >= 4
    assert served.lines[0].startswith(f"curl {served.url}/v1/chat/completions")
    assert served.lines[-1] == "run"
    for model in ("tiny-llama", "tiny-qwen", "tiny-llama"):
        assert served.complete(model)["usage"]["completion_tokens"] == 4
    assert json.loads(served.get("/health"))["status"] == "ok"
    shown = json.loads(served.get("/pool/state"))
    assert [model["name"] for model in shown["models"]] == ["tiny-llama", "tiny-qwen"]
    assert "<html" in served.get("/")
    assert 'aegaeon_tokens_due_total{model="tiny-llama"} 8.0' in served.get("/metrics")
    long = subprocess.Popen(
        [sys.executable, "-c", ASK, served.url], stdout=subprocess.PIPE, text=True
    )
    while json.loads(served.get("/admin/state"))["requests_in_flight"] == 0:
        time.sleep(0.01)
    served.process.send_signal(signal.SIGTERM)
    out, _ = long.communicate(timeout=END_S)
    assert out == "200\n"
    assert served.process.wait(END_S) == 0
    assert until_gone(below, GONE_S) == []
    assert not list(served.temporary.glob("pymp-*"))
    assert_logs(served)


ASK = """
import json, sys, urllib.request
body = {"model": "tiny-qwen", "prompt": "Hi", "max_tokens": 200, "ignore_eos": True}
url, kind = sys.argv[1] + "/v1/completions", {"content-type": "application/json"}
with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), kind)) as a:
    assert json.load(a)["usage"]["completion_tokens"] == 200
    print(a.status)
"""


def assert_logs(served: Served) -> None:
    """The request log is the trace of what was asked; journal and run make a whole."""
    trace = open_trace(TraceSource(path=str(served.logs / "requests-000001.parquet")))
    assert trace.output_tokens.tolist() == [4, 4, 4, 200]
    assert trace.models == ("tiny-llama", "tiny-qwen")
    journal = read_journal(served.logs)
    decisions = pq.read_table(served.logs / "decisions-000001.parquet")
    assert 0 < len(decisions) < len(journal)
    assert json.loads((served.logs / "run.json").read_text())["policy"] == "index"
    names = sorted(p.name for p in served.folder.iterdir())
    assert names == ["config.yaml", "logs", "summary.json"]
    assert not list(served.logs.glob(".*"))


def test_nothing_outlives_a_killed_controller_and_bad_policies_stop_nothing(start: Start) -> None:
    served = start("policy.name=raises", "policy.factory=policy_fakes:make", "logs.rotate_s=0.1")
    assert served.complete("tiny-llama")["usage"]["completion_tokens"] == 4
    policy = json.loads(served.get("/admin/policies"))
    assert policy["answers"]["raised"] >= 1
    assert "RuntimeError: no idea" in policy["last_error"]
    while not json.loads(served.get("/admin/policies"))["is_up"]:
        time.sleep(0.1)  # it starts again
    below = children(served.process.pid)
    ours = [pid for pid in below if title_of(pid).startswith("aegaeon-rl ")]
    assert {title_of(pid).split()[1] for pid in ours} == {"http", "policy", "worker"}
    served.process.kill()
    served.process.wait()
    assert until_gone(ours, GONE_S) == []
    assert until_gone(below, END_S) == []  # Python's fork server takes its time to end


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("models={a:{path:nowhere}}",), "models.a: nowhere/config.json: No such file"),
        (("server.host=0.0.0.0",), "server.host=0.0.0.0: others could reach it"),
        (("policy.name=idnex",), "policies='idnex': did you mean 'index'?"),
        (("policy.name=serverlessllm_plus",), "it knows output lengths in advance"),
        (("instances=0",), "instances=0: expected at least 1"),
        (("kv_bytes=400000000000000",), "expected at most"),
        (("file=missing.yaml",), "file=missing.yaml: No such file"),
        (("slo.models={x:{ttft_s:1}}",), "slo.models.x: no such model; known: tiny-llama"),
        (("server.port=taken",), "server.port='taken': expected a whole number"),
    ],
)
def test_what_cannot_start_is_told_in_a_line(
    cli: Callable[..., Any], arguments: tuple[str, ...], line: str
) -> None:
    ended = cli("serve", "server.port=0", *arguments)
    assert ended.code == 2
    assert line in ended.err
    assert ended.err.count("\n") == 1
    assert not Path("runs").exists()


def test_port_in_use_is_told(cli: Callable[..., Any]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = cli("serve", f"server.port={port}")
    assert ended.code == 2
    assert f"server.port={port}: cannot be bound: Address already in use" in ended.err


def test_models_of_a_file_are_paths_or_maps(cli: Callable[..., Any]) -> None:
    Path("models.yaml").write_text("a: tiny:llama:1\nb: {path: nowhere, dtype: float32}\n")
    ended = cli("serve", "server.port=0", "file=models.yaml")
    assert "models.b: nowhere" in ended.err
    Path("models.yaml").write_text("a: {pth: x}\n")
    ended = cli("serve", "server.port=0", "file=models.yaml")
    assert "models.yaml: a.pth: unknown key; did you mean 'path'" in ended.err
