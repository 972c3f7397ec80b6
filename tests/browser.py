"""Headless Chromium over the DevTools protocol, through a pair of pipes."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
    *("--disable-dev-shm-usage", "--no-first-run", "--disable-extensions", "--mute-audio"),
    *("--disable-background-networking", "--force-color-profile=srgb", "--hide-scrollbars"),
)
KEYS = {"Tab": 9, "Enter": 13, " ": 32}


class Browser:
    """One page; `problems` are what its console and its errors said."""

    def __init__(self, send: int, receive: int) -> None:
        self.to, self.of, self.rest = send, receive, b""
        self.asked = 0
        self.session: str | None = None
        self.problems: list[str] = []

    def open(self, url: str, width: int = 1400, height: int = 900, *, dark: bool = False) -> None:
        if self.session is None:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
            self.session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                self.call(f"{domain}.enable")
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.problems.clear()
        self.call("Page.navigate", url=url)
        self.call("Page.bringToFront")  # else a key may find no focus

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def value(self, script: str) -> Any:
        """Of a JavaScript expression, awaited."""
        asked = {"expression": script, "returnByValue": True, "awaitPromise": True}
        answer = self.call("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str, within_s: float = 20.0) -> Any:
        """The first true value of the expression."""
        end_s = time.monotonic() + within_s
        while time.monotonic() < end_s:
            value = self.value(f"(() => {{ try {{ return {script} }} catch {{ return null }} }})()")
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"not within {within_s} s: {script}; problems: {self.problems}")

    def press(self, key: str) -> None:
        code = KEYS.get(key, ord(key[0].upper()))
        typed = {"text": "\r" if key == "Enter" else key} if key != "Tab" else {}
        facts = {"key": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **facts, **typed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **facts)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def shot(self, path: Path, *, whole: bool = False) -> None:
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def call(self, method: str, **params: Any) -> Any:
        self.asked += 1
        message: dict[str, Any] = {"id": self.asked, "method": method, "params": params}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.asked:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            assert select.select([self.of], [], [], 60)[0], "Chromium does not answer"
            data = os.read(self.of, 1 << 20)
            assert data, "Chromium has gone"
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\0")
        return json.loads(line)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"] + " " + params["entry"].get("url", ""))
        elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.problems.append(json.dumps(params["args"]))


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser of its own, gone with the block."""
    assert CHROMIUM is not None
    read, to = os.pipe()
    of, write = os.pipe()

    def place() -> None:  # where Chromium looks for them; by way of numbers nobody has
        for i, fd in enumerate((read, write)):
            os.dup2(fd, 1000 + i)
        for i in range(2):
            os.dup2(1000 + i, 3 + i)

    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
        preexec_fn=place,
        pass_fds=(3, 4),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read)
    os.close(write)
    try:
        yield Browser(to, of)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(to)
        os.close(of)
