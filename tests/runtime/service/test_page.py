"""The page in a headless browser: what it shows, by keyboard, on a phone, when things go wrong."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Browser, chromium
from fake_openai import Fake, Manners, fake_openai
from pool_film import film, recorded

import runtime.service

PAGE = Path(runtime.service.__file__).parent / "page"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
READY = "document.querySelectorAll('#models tbody tr').length > 0"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def frames() -> list[dict[str, Any]]:
    return list(film(*recorded(3, 9, 4.0, 40.0), from_s=25.0))


@pytest.fixture
def served(frames: list[dict[str, Any]]) -> Iterator[Callable[..., Fake]]:
    """`served(**manners)`: the page's files, and a pool that moves at each question."""
    opened = []

    def start(shown: list[dict[str, Any]] = frames, **manners: Any) -> Fake:
        names = tuple(model["name"] for model in frames[0]["models"])
        context = fake_openai(Manners(**{"models": names, **manners}))
        fake = context.__enter__()
        opened.append(context)
        asked = iter([*shown, *[shown[-1]] * 10_000])
        for path in PAGE.iterdir():
            content = f"{KINDS[path.suffix]}; charset=utf-8", path.read_bytes()
            fake.pages[f"/{path.name}"] = lambda content=content: content
        fake.pages["/"] = fake.pages["/index.html"]
        fake.pages["/pool/state"] = lambda: ("application/json", json.dumps(next(asked)).encode())
        return fake

    yield start
    for context in opened:
        context.__exit__(None, None, None)


def texts(browser: Browser, selector: str) -> list[str]:
    return browser.value(f"[...document.querySelectorAll('{selector}')].map(e => e.innerText)")


def text(browser: Browser, selector: str) -> str:
    return browser.value(f"document.querySelector('{selector}').innerText")


def test_page_shows_what_the_pool_says(
    browser: Browser, served: Callable[..., Fake], frames: list[dict[str, Any]]
) -> None:
    last = frames[-1]
    browser.open(served(frames[-1:]).url)
    browser.until(READY)
    assert text(browser, "#status") == "running"
    assert "index" in text(browser, "#policy")
    assert "fallback index answered" in text(browser, "#policy")
    lanes = texts(browser, "#lanes li .name")
    expected = [
        "idle" if g["model"] is None else last["models"][g["model"]]["name"]
        for g in last["instances"]
    ]
    assert lanes == expected
    rows = texts(browser, "#models tbody tr td:first-child")
    assert sorted(rows) == sorted(model["name"] for model in last["models"])
    queued = [model["waiting"] + model["ready"] + model["running"] for model in last["models"]]
    first = browser.value("document.querySelector('#models tbody tr .queue').innerText")
    assert first.strip() == str(max(queued))
    figures = dict(zip(texts(browser, "dt"), texts(browser, "dd"), strict=True))
    assert figures["in flight"].split()[0] == str(last["totals"]["in_flight"])
    assert figures["switches"].split()[0] == str(last["totals"]["switches"])
    assert len(texts(browser, "figure")) == 4
    assert browser.value("document.querySelectorAll('#curves path').length") >= 5
    memory = texts(browser, "#memory b")
    assert memory == [*(f"instance {g}" for g in range(3)), "host weights", "host KV"]
    drawn = "document.getElementById('bars').getContext('2d').getImageData(0, 0, 900, 70).data"
    assert browser.until(f"new Set({drawn}).size > 40")  # coloured bars
    assert browser.problems == []


def test_page_moves(browser: Browser, served: Callable[..., Fake]) -> None:
    browser.open(served().url)
    browser.until(READY)
    served_before = browser.value("document.getElementById('figure-served').innerText")
    browser.until(f"document.getElementById('figure-served').innerText !== {served_before!r}")
    browser.value("document.activeElement.blur()")
    browser.press("p")
    assert text(browser, "#pause") == "Go on"
    assert browser.value("document.getElementById('pause').getAttribute('aria-pressed')") == "true"
    assert browser.problems == []


@pytest.mark.parametrize("width", [320, 375, 768])
def test_narrow_page_does_not_scroll_sideways(
    browser: Browser, served: Callable[..., Fake], width: int
) -> None:
    browser.open(served().url, width, 800)
    browser.until(READY)
    assert browser.value("document.documentElement.scrollWidth") <= width
    past = "[...document.querySelectorAll('section, header, dl, button')]"
    past += f".filter(e => e.getBoundingClientRect().right > {width} && !e.closest('.scroll'))"
    assert browser.value(f"{past}.map(e => e.id || e.tagName)") == []


def test_everything_is_reached_by_keyboard(browser: Browser, served: Callable[..., Fake]) -> None:
    browser.open(served().url)
    browser.until(READY)
    seen = []
    for _ in range(22):
        browser.press("Tab")
        seen.append(
            browser.value(
                "(e => [e.id || e.dataset.sort || e.className || e.tagName,"
                " getComputedStyle(e).outlineStyle !== 'none'])(document.activeElement)"
            )
        )
    names = [name for name, _ in seen]
    assert names[:2] == ["skip", "pause"]
    for name in ("scroll", "queue", "attainment", "chat-model", "chat-tokens", "talk", "chat-text"):
        assert name in names
    assert "chat-send" in names
    assert all(is_marked for name, is_marked in seen if name != "BODY"), seen


def test_models_are_sorted_as_asked(
    browser: Browser, served: Callable[..., Fake], frames: list[dict[str, Any]]
) -> None:
    browser.open(served(frames[-1:]).url)
    browser.until(READY)
    browser.value("document.querySelector('[data-sort=name]').focus()")
    browser.press("Enter")
    rows = texts(browser, "#models tbody tr td:first-child")
    assert rows == sorted(model["name"] for model in frames[-1]["models"])
    assert browser.value("document.querySelector('[data-sort=name]').ariaPressed") == "true"


def test_chat_streams_and_keeps_the_conversation(
    browser: Browser, served: Callable[..., Fake]
) -> None:
    fake = served(step_s=0.01)
    browser.open(fake.url)
    browser.until(READY)
    chosen = browser.value("document.getElementById('chat-model').value")
    browser.value("document.getElementById('chat-tokens').value = 5")
    for said in ("Hello", "And <b>now</b>?"):
        browser.until("!document.getElementById('chat-send').disabled")
        browser.value("document.getElementById('chat-text').focus()")
        browser.type(said)
        browser.press("Enter")
        browser.until("document.getElementById('chat-note').innerText.includes('5 tokens')")
        browser.value("document.getElementById('chat-note').innerText = ''")
    said = texts(browser, "#talk p")
    assert [line.split("\n")[0] for line in said] == ["you", chosen, "you", chosen]
    assert said[1].split("\n")[1].split() == ["word"] * 5
    assert "And <b>now</b>?" in said[2]
    assert [m["role"] for m in fake.bodies[-1]["messages"]] == ["user", "assistant", "user"]
    browser.value("document.getElementById('chat-new').click()")
    assert texts(browser, "#talk p") == []
    assert browser.problems == []


def test_chat_tells_an_error(browser: Browser, served: Callable[..., Fake]) -> None:
    browser.open(served(sheds_from=1).url)
    browser.until(READY)
    browser.value("document.getElementById('chat-text').value = 'Hello'")
    browser.value("document.getElementById('chat').requestSubmit()")
    browser.until("document.querySelector('#talk .error') !== null")
    assert "the queue is full" in text(browser, "#talk .error")
    assert [line.split("\n")[0] for line in texts(browser, "#talk p")] == ["you", "error"]


def test_key_is_asked_for_and_used(browser: Browser, served: Callable[..., Fake]) -> None:
    browser.open(served(key="sk-right").url)
    browser.until("!document.getElementById('key-form').hidden")
    assert browser.value("document.activeElement.id") == "key"
    assert text(browser, "#status") == "key needed"
    browser.type("sk-right")
    browser.press("Enter")
    browser.until(READY)
    assert browser.value("document.getElementById('key-form').hidden")
    browser.value("sessionStorage.clear()")


def test_service_that_goes_is_told_and_comes_back(
    browser: Browser, served: Callable[..., Fake]
) -> None:
    fake = served()
    browser.open(fake.url)
    browser.until(READY)
    shown = fake.pages.pop("/pool/state")
    browser.until("!document.getElementById('lost').hidden")
    assert "No answer from the service (no /pool/state)" in text(browser, "#lost")
    fake.pages["/pool/state"] = shown
    browser.until("document.getElementById('lost').hidden")


def test_names_are_text_and_nothing_comes_from_elsewhere(
    browser: Browser, served: Callable[..., Fake], frames: list[dict[str, Any]]
) -> None:
    hostile = json.loads(json.dumps(frames[-1]))
    hostile["models"][0]["name"] = "<img src=x onerror=window.broken=1>"
    hostile["policy"]["last_error"] = '"><script>window.broken=1</script>'
    browser.open(served([hostile]).url)
    browser.until(READY)
    assert browser.value("window.broken === undefined")
    assert browser.value("document.images.length") == 0
    urls = "performance.getEntriesByType('resource').map(e => new URL(e.name).host)"
    assert set(browser.value(urls)) <= {browser.value("location.host")}
    for path in PAGE.iterdir():
        content = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in content, path
    assert "Content-Security-Policy" in (PAGE / "index.html").read_text()
