"""`serve`: models behind an OpenAI-compatible API, on a pool of instances, until SIGTERM."""

import asyncio
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from aegaeon_rl.evaluation.record import summary, write_summary
from aegaeon_rl.policies.registry import POLICIES
from aegaeon_rl.verbs.common import RunSection, chosen_folder, console, run_folder
from runtime.errors import UserError
from runtime.plain import from_plain
from runtime.service.service import Service, Up
from runtime.service.spec import ModelSource, ServiceSpec
from runtime.service.structured import log_as_json

TINY = {
    "tiny-llama": ModelSource(path="tiny:llama:0"),
    "tiny-qwen": ModelSource(path="tiny:qwen2:1"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(ServiceSpec):
    """`file` and `models` together; without either the tiny models."""

    models: dict[str, ModelSource] | None = None  # type: ignore[assignment]
    file: str | None = None
    run: RunSection = field(default_factory=RunSection)

    def __post_init__(self) -> None:
        named = {**(read_models(self.file) if self.file else {}), **(self.models or {})}
        object.__setattr__(self, "models", named or TINY)
        ServiceSpec.__post_init__(self)


def read_models(file: str) -> dict[str, ModelSource]:
    """NAME: PATH, or NAME: {path: PATH, ...}. Raises UserError that names file and key."""
    try:
        data = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"file={file}: {error.strerror}: expected a YAML of models") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"file={file}: {' '.join(str(error).split())}") from None
    if not isinstance(data, Mapping) or not data:
        raise UserError(f"file={file}: expected NAME: PATH of each model")
    models = {}
    for name, value in data.items():
        entry: Any = {"path": value} if isinstance(value, str) else value
        models[str(name)] = from_plain(ModelSource, entry, f"{file}: {name}")
    return models


def main(config: Config) -> None:
    folder = chosen_folder("serve", config.run)
    logs = config.logs
    if logs.folder is None:
        logs = replace(logs, folder=str(folder / "logs"))
    service = Service(service_spec(config, logs=logs), tuple(POLICIES))
    log_as_json()
    with console.status("starting: models, instances, policy"):
        asyncio.run(serve(service, folder, config))


def service_spec(config: Config, **changes: Any) -> ServiceSpec:
    values = {f.name: getattr(config, f.name) for f in fields(ServiceSpec)}
    return ServiceSpec(**{**values, **changes})


async def serve(service: Service, folder: Path, config: Config) -> None:
    """Prints where it listens and how to ask it, then, when it is up, the folder."""

    def is_up(up: Up) -> None:
        message = {"role": "user", "content": "Hello"}
        body = json.dumps({"model": up.models[0], "messages": [message]})
        lines = [
            f"serving {', '.join(up.models)} at {up.url}",
            f"curl {up.url}/v1/chat/completions -H 'content-type: application/json'"
            f" -d {shlex.quote(body)}",
            f"logs: {up.logs}",
            str(folder),
        ]
        run_folder(folder, config)
        print("\n".join(lines), flush=True)
        content = summary("serve", service.spec.seed, None, None, service.spec.slo, [])
        content["url"], content["models"] = up.url, list(up.models)
        write_summary(folder / "summary.json", content)

    await service.run(is_up)
