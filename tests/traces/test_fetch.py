"""`fetch` against a server on the loopback: whole, right and resumed, or one line."""

import hashlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from traces import TraceError, TraceKind
from traces.fetch import cache_folder, cached, fetch
from traces.public import PUBLIC, PublicSet
from traces.source import TraceSource, open_trace

ROWS = "".join(f"{i},GPT-4,{i + 1},2,{i + 3},API log\n" for i in range(20_000))
DATA = f"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n{ROWS}".encode()
SHA256 = hashlib.sha256(DATA).hexdigest()


@dataclass
class Server:
    """Serves DATA in ranges; `cut` bytes into a reply it hangs up."""

    url: str = ""
    data: bytes = DATA
    cut: int | None = None
    status: int = 200
    tag: str = '"v1"'
    asked: list[str | None] = field(default_factory=list)  # the Range of each request

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        wanted = to.headers.get("Range")
        self.asked.append(wanted)
        if self.status != 200:
            return to.send_error(self.status)
        same = wanted is not None and to.headers.get("If-Range") == self.tag
        start = int(wanted[6:-1]) if wanted is not None and same else 0
        if start >= len(self.data):
            return to.send_error(416)
        body = self.data[start:]
        to.send_response(206 if same else 200)
        to.send_header("Content-Length", str(len(body)))
        if self.tag:
            to.send_header("ETag", self.tag)
        to.end_headers()
        to.wfile.write(body if self.cut is None else body[: self.cut])
        return None


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_port}/tiny.csv"
    monkeypatch.setenv("AEGAEON_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    offer(monkeypatch, state.url, SHA256)
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


def offer(monkeypatch: pytest.MonkeyPatch, url: str, sha256: str | None) -> None:
    """Make `tiny` a public set."""
    tiny = PublicSet(
        url=url, licence="CC0", citation="Nobody", kind=TraceKind.SYNTHETIC, sha256=sha256
    )
    monkeypatch.setitem(PUBLIC, "tiny", tiny)


def got(name: str = "tiny") -> tuple[Path, list[str]]:
    said: list[str] = []
    return fetch(name, said.append), said


def refusal(name: str = "tiny") -> str:
    with pytest.raises(TraceError) as caught:
        fetch(name, lambda text: None)
    assert str(caught.value).isprintable()
    return str(caught.value)


def kept() -> set[str]:
    return {p.name for p in cache_folder().iterdir()} if cache_folder().exists() else set()


def test_fetch_says_licence_and_citation_and_gives_the_file_once(server: Server) -> None:
    path, said = got()
    assert path.read_bytes() == DATA
    assert said == ["tiny: licence CC0; cite: Nobody"]
    assert got()[0] == path == cached("tiny")
    assert server.asked == [None]
    assert kept() == {"tiny.csv"}


def test_fetched_set_is_a_trace_by_its_name(server: Server) -> None:
    got()
    trace = open_trace(TraceSource(name="tiny", duration_s=100.0))
    assert (trace.requests, trace.licence, trace.kind) == (100, "CC0", TraceKind.SYNTHETIC)
    assert trace.lineage[0] == "read tiny.csv as burstgpt"


def test_wrong_hash_keeps_nothing(server: Server) -> None:
    server.data = DATA.replace(b"GPT-4", b"GPT-5")
    other = hashlib.sha256(server.data).hexdigest()
    assert refusal() == (
        f"trace.name=tiny: SHA-256 is {other}: expected {SHA256}, as its publisher states;"
        " the file was not kept"
    )
    assert kept() == set()


def test_damaged_file_in_the_cache_is_fetched_again(server: Server) -> None:
    path, _ = got()
    path.write_bytes(DATA[:-1])
    assert got()[0].read_bytes() == DATA


def test_unknown_hash_is_trusted_once_and_then_checked(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, server.url, None)
    path, said = got()
    assert said[1] == (
        f"tiny: no SHA-256 is published; trusted on first use and recorded: {SHA256}"
    )
    assert json.loads((cache_folder() / "first_use.json").read_text())["tiny"]["sha256"] == SHA256
    assert got()[1] == said[:1]
    path.unlink()
    server.data = DATA + b"\n"
    assert f"expected {SHA256}, as was recorded on first use" in refusal()
    assert kept() == {"first_use.json"}


def test_damaged_record_of_hashes_is_not_forgotten(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, server.url, None)
    cache_folder().mkdir(parents=True)
    for text in ("{", "[]", '{"tiny": {"sha256": "abc"}}', '{"tiny": 1}'):
        (cache_folder() / "first_use.json").write_text(text)
        assert "first_use.json: expected a SHA-256 by name; remove it" in refusal()
    assert server.asked == []


def test_interrupted_download_goes_on_where_it_stopped(server: Server) -> None:
    server.cut = 100_000
    first = refusal()
    assert first == (
        "trace.name=tiny: interrupted after 65536 bytes, which are kept; run it again to go on"
    )
    assert not (cache_folder() / "tiny.csv").exists()
    server.cut = None
    assert got()[0].read_bytes() == DATA
    assert server.asked == [None, "bytes=65536-"]
    assert kept() == {"tiny.csv"}


@pytest.mark.parametrize("tag", ['"v2"', 'W/"v1"', ""])
def test_interrupted_download_of_a_changed_file_starts_over(server: Server, tag: str) -> None:
    server.cut = 100_000
    if tag != '"v2"':
        server.tag = tag  # no version that a range may rely on
    refusal()
    server.cut, server.tag = None, tag
    assert got()[0].read_bytes() == DATA
    assert server.asked[1] == ("bytes=65536-" if tag == '"v2"' else None)
    assert kept() == {"tiny.csv"}


def test_download_that_only_missed_its_name_starts_over(server: Server) -> None:
    cache_folder().mkdir(parents=True)
    (cache_folder() / "tiny.csv.part").write_bytes(DATA)
    (cache_folder() / "tiny.csv.part.tag").write_text('"v1"')
    assert got()[0].read_bytes() == DATA
    assert server.asked == [f"bytes={len(DATA)}-", None]


@pytest.mark.parametrize(
    ("status", "reason"), [(404, "404 Client Error: Not F"), (503, "503 Server Error: S")]
)
def test_refusal_of_the_server_is_named(server: Server, status: int, reason: str) -> None:
    server.status = status
    assert refusal().startswith(f"trace.name=tiny: {server.url}: the server says {reason}")
    assert kept() == set()


def test_no_network_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    offer(monkeypatch, f"http://127.0.0.1:{port}/tiny.csv", SHA256)
    assert refusal() == (
        f"trace.name=tiny: cannot connect to 127.0.0.1:{port}; is there a network?"
    )


def test_unknown_name_gives_the_nearest(server: Server) -> None:
    assert refusal("burstgpt").startswith(
        "trace.name=burstgpt: no public set; did you mean 'burstgpt_"
    )
    with pytest.raises(TraceError, match=r"^trace.name=tiny: not fetched yet; run aegaeon-rl"):
        cached("tiny")


def test_plain_http_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "http://example.org/tiny.csv", SHA256)
    assert refusal() == "http://example.org/tiny.csv: expected an https address"


def test_cache_that_cannot_be_written_is_named(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AEGAEON_RL_CACHE", str(tmp_path / "file"))
    assert refusal().startswith(f"trace.name=tiny: {tmp_path / 'file' / 'traces'}: ")


@pytest.mark.parametrize("name", PUBLIC)
def test_public_sets_are_secure_pinned_and_citable(name: str) -> None:
    public = PUBLIC[name]
    assert public.url.startswith("https://")
    assert "/main/" not in public.url
    assert "/master/" not in public.url
    assert public.file.endswith((".csv", ".jsonl"))
    assert public.licence in ("CC BY 4.0", "Apache-2.0")
    assert len(public.citation) > 40
    assert public.sha256 is None or len(bytes.fromhex(public.sha256)) == 32


def test_public_files_have_names_of_their_own() -> None:
    assert len({public.file for public in PUBLIC.values()}) == len(PUBLIC)
