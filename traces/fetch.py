"""`fetch`: a public set over HTTPS into the cache, whole and with its SHA-256, or not at all."""

import datetime as dt
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from traces.errors import TraceError
from traces.public import PublicSet, public_set

Say = Callable[[str], None]
Progress = Callable[[int, int | None], None]  # bytes so far, and of the whole where known
LOOPBACK = ("127.0.0.1", "localhost", "::1")
CHUNK_BYTES = 1 << 16  # what an interruption loses at most
TIMEOUT_S = 30
FIRST_USE = "first_use.json"


def cache_folder() -> Path:
    """Where fetched files are: AEGAEON_RL_CACHE/traces, or the user's cache folder."""
    import pooch

    return Path(os.environ.get("AEGAEON_RL_CACHE") or pooch.os_cache("aegaeon-rl")) / "traces"


def cached(name: str) -> Path:
    """The file of a public set. Raises TraceError when it has not been fetched."""
    path = cache_folder() / public_set(name).file
    if not path.is_file():
        raise TraceError(
            f"trace.name={name}: not fetched yet; run aegaeon-rl trace action=fetch"
            f" trace.name={name}"
        )
    return path


def fetch(name: str, say: Say, progress: Progress | None = None) -> Path:
    """The cached file, downloaded if need be; an interrupted download goes on where it stopped.

    Says licence and citation first. Raises TraceError for an unknown name, no network, a refusal
    of the server, an interruption, and a wrong SHA-256: the file is then not kept.
    """
    import pooch
    import requests

    public, folder = public_set(name), cache_folder()
    say(f"{name}: licence {public.licence}; cite: {public.citation}")
    _check_secure(public.url)
    known = public.sha256 or recorded(folder).get(name)
    download = Download(folder / f"{public.file}.part", progress)
    pooch.get_logger().setLevel("WARNING")
    try:
        path = pooch.retrieve(
            public.url, f"sha256:{known}" if known else None, public.file, folder, None, download
        )
    except requests.HTTPError as error:
        reason = str(error).partition(" for url")[0]  # as: 404 Client Error: Not Found
        raise TraceError(f"trace.name={name}: {public.url}: the server says {reason}") from None
    except (requests.RequestException, CutShortError) as error:
        raise TraceError(f"trace.name={name}: {_reason(public, error, download)}") from None
    except ValueError as error:
        raise TraceError(f"trace.name={name}: {_mismatch(public, str(error), known)}") from None
    except OSError as error:
        raise TraceError(f"trace.name={name}: {folder}: {error.strerror or error}") from None
    if known is None:
        _trust(name, Path(path), say)
    return Path(path)


class CutShortError(Exception):
    """The server stopped before the end."""


class Download:
    """What pooch calls to get a file. Bytes go to `part`, which outlives an interruption.

    It goes on only with a file that the server says is the same (a strong ETag, or its date).
    """

    def __init__(self, part: Path, progress: Progress | None) -> None:
        self.part, self.progress = part, progress
        self.tag = part.with_name(part.name + ".tag")

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        import requests

        done = self.done()
        headers = {"Accept-Encoding": "identity"}
        if done:
            headers |= {"Range": f"bytes={done}-", "If-Range": self.tag.read_text()}
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
            _check_secure(response.url)
            if response.status_code != 416:
                response.raise_for_status()
                self._receive(response, done if response.status_code == 206 else 0)
                self.part.replace(output_file)
        self.drop()
        if response.status_code == 416:  # nothing is left to send: the last step was missed
            self(url, output_file, pooch)

    def _receive(self, response: Any, done: int) -> None:
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdigit() else None
        self._note_version(response.headers)
        with self.part.open("ab" if done else "wb") as file:
            for data in response.iter_content(CHUNK_BYTES):
                file.write(data)
                done += len(data)
                if self.progress is not None:
                    self.progress(done, total)
        if total is not None and done != total:
            raise CutShortError

    def _note_version(self, headers: Any) -> None:
        tag = headers.get("ETag", "")
        version = tag if tag.startswith('"') else headers.get("Last-Modified")
        if version:
            self.tag.write_text(version)
        else:
            self.tag.unlink(missing_ok=True)

    def done(self) -> int:
        """Bytes that need not be sent again."""
        return self.part.stat().st_size if self.part.is_file() and self.tag.is_file() else 0

    def drop(self) -> None:
        self.part.unlink(missing_ok=True)
        self.tag.unlink(missing_ok=True)


def _check_secure(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in LOOPBACK:
        raise TraceError(f"{url}: expected an https address")


def _reason(public: PublicSet, error: Exception, download: Download) -> str:
    """Why nothing came, or not all."""
    import requests

    host, done = urlsplit(public.url).netloc, download.done()
    if done:
        return f"interrupted after {done} bytes, which are kept; run it again to go on"
    if isinstance(error, requests.Timeout):
        return f"{host} does not answer within {TIMEOUT_S} s"
    if isinstance(error, requests.ConnectionError):
        return f"cannot connect to {host}; is there a network?"
    return f"interrupted by {host}; run it again"


def _mismatch(public: PublicSet, message: str, known: str | None) -> str:
    found = re.findall(r"\b[0-9a-f]{64}\b", message)
    who = "its publisher states" if public.sha256 else "was recorded on first use"
    return (
        f"SHA-256 is {found[-1] if found else 'not right'}: expected {known}, as {who};"
        " the file was not kept"
    )


def recorded(folder: Path) -> dict[str, str]:
    """SHA-256 by name, of sets whose publisher states none; as first downloaded."""
    return {name: entry["sha256"] for name, entry in _entries(folder).items()}


def _entries(folder: Path) -> dict[str, dict[str, str]]:
    """Raises TraceError for a file that someone damaged: it must not be forgotten."""
    file = folder / FIRST_USE
    if not file.exists():
        return {}
    try:
        entries = json.loads(file.read_text())
        is_whole = all(re.fullmatch("[0-9a-f]{64}", e["sha256"]) for e in entries.values())
    except (ValueError, AttributeError, TypeError, KeyError):
        is_whole = False
    if not is_whole:
        raise TraceError(f"{file}: expected a SHA-256 by name; remove it to trust downloads anew")
    return entries


def _trust(name: str, path: Path, say: Say) -> None:
    """Record the hash that every later download has to have."""
    with path.open("rb") as data:
        sha256 = hashlib.file_digest(data, "sha256").hexdigest()
    today = dt.datetime.now(dt.UTC).date().isoformat()
    entries = _entries(path.parent) | {name: {"sha256": sha256, "date": today}}
    aside = path.with_name(f".{FIRST_USE}.{os.getpid()}.part")
    aside.write_text(json.dumps(entries, indent=1))
    aside.replace(path.with_name(FIRST_USE))
    say(f"{name}: no SHA-256 is published; trusted on first use and recorded: {sha256}")
