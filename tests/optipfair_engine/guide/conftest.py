"""Runs the guide's code as it stands, on tiny local models and texts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.tiny import byte_tokenizer, tiny_llama, write_checkpoint

TEXTS = [
    "The patient presented with acute myocardial infarction, and the doctor examined him at once.",
    "Paris is the capital of France, and the speed of light is approximately 300,000 km/s.",
    "Structured pruning removes whole neurons, so that the smaller model is faster on any machine.",
    "The student submitted the assignment on time. The professor thought it was a very good one.",
]


def snippets(section: str, language: str = "python") -> list[str]:
    """The guide's code blocks under a heading."""
    text = Path(__file__).with_name("snippets.md").read_text(encoding="utf-8")
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        if title.strip() == section:
            return re.findall(rf"```{language}\n(.*?)```", body, flags=re.DOTALL)
    raise KeyError(section)


def localised(code: str, model: Path) -> str:
    """The package's name, model ids and devices replaced by local ones; an ellipsis in data left out."""
    code = re.sub(r"\bfrom optipfair\b", "from optipfair_engine", code)
    code = re.sub(r"meta-llama/Llama-3\.2-1B|Qwen/Qwen3-0\.6B", str(model), code)
    return code.replace(", ...]", "]").replace("--device cuda", "--device cpu")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 32 layers (the guide names layers up to 31) with a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("guide") / "model"
    tokenizer = byte_tokenizer(TEXTS, model_max_length=512)
    model = tiny_llama(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=32,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return write_checkpoint(folder, model, tokenizer)


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(model_folder)


@pytest.fixture(scope="session")
def shared_model(model_folder: Path) -> LlamaForCausalLM:
    """One model for all examples: that is only right because nothing changes it."""
    return LlamaForCausalLM.from_pretrained(model_folder)


@pytest.fixture
def model(shared_model: LlamaForCausalLM) -> Any:
    before = {name: tensor.clone() for name, tensor in shared_model.state_dict().items()}
    config = shared_model.config.to_dict()
    yield shared_model
    assert config == shared_model.config.to_dict()
    after = shared_model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.fixture
def calibration_loader(tokenizer: PreTrainedTokenizerFast) -> DataLoader[Any]:
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True, truncation=True, max_length=512)
    return DataLoader(TensorDataset(inputs["input_ids"], inputs["attention_mask"]), batch_size=2)


@pytest.fixture
def local_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """``datasets.load_dataset`` gives local texts, whatever its name and split."""
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_args, **_kwargs: rows)


Runner = Callable[..., dict[str, Any]]


@pytest.fixture
def run(
    model: LlamaForCausalLM,
    model_folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    calibration_loader: DataLoader[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Runner:
    """Executes code in a scratch folder; gives the names that it leaves behind."""
    monkeypatch.chdir(tmp_path)

    def execute(code: str, **names: Any) -> dict[str, Any]:
        from optipfair_engine import analyze_layer_importance, prune_model

        namespace: dict[str, Any] = {
            "prune_model": prune_model,
            "analyze_layer_importance": analyze_layer_importance,
            "model": model,
            "tokenizer": tokenizer,
            "dataloader": calibration_loader,
            "calibration_loader": calibration_loader,
            "calibration_dataloader": calibration_loader,
            "load_calibration_data": lambda: TEXTS,
            **names,
        }
        exec(compile(localised(code, model_folder), "guide", "exec"), namespace)
        return namespace

    return execute


@pytest.fixture
def blocks() -> Callable[[str], list[str]]:
    """The Python blocks of a section."""
    return snippets


@pytest.fixture
def commands(model_folder: Path) -> Callable[[str], list[list[str]]]:
    """The arguments of each ``optipfair`` command of a section."""

    def of(section: str) -> list[list[str]]:
        found = []
        for block in snippets(section, "bash"):
            joined = localised(block, model_folder).replace("\\\n", " ")
            lines = [line for line in joined.splitlines() if line.startswith("optipfair ")]
            found += [shlex.split(line)[1:] for line in lines]
        return found

    return of
