"""Models of a service from wherever they come."""

from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from runtime.errors import UserError
from runtime.service.models import open_source
from runtime.service.spec import ModelSource
from runtime.service.tiny import tiny_blob, tiny_config
from runtime.service.tokenizers import open_tokenizer


def test_a_blob_folder_and_a_checkpoint_are_sources(tmp_path: Path) -> None:
    blob = tiny_blob("tiny:llama:0", "float32")
    blob.save(tmp_path / "blob")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **tiny_config("llama")))
    model.load_state_dict(blob.tensors())
    model.save_pretrained(tmp_path / "checkpoint")
    for name in ("blob", "checkpoint"):
        found = open_source(name, ModelSource(path=str(tmp_path / name)), "cpu")
        assert found.index.sha256 == blob.index.sha256
        found.close()
    blob.close()


def test_a_blob_of_another_dtype_than_asked_for_is_refused(tmp_path: Path) -> None:
    blob = tiny_blob("tiny:llama:0", "float32")
    blob.save(tmp_path)
    blob.close()
    with pytest.raises(UserError, match=r"models\.m: .*float32: expected bfloat16"):
        open_source("m", ModelSource(path=str(tmp_path), dtype="bfloat16"), "cpu")


def test_an_unknown_dtype_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"models\.m\.dtype=float.*float32"):
        open_source("m", ModelSource(path="tiny:llama:0", dtype="float"), "cpu")


def test_a_folder_without_a_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer") as error:
        open_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)
