"""Saving: everything that belongs to a model, the same bytes each time, and a check that can fail."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from optipfair_engine.architectures import locate
from optipfair_engine.checkpoints import MANIFEST_NAME, SourceInfo, save_pruned, verify, verify_reload
from optipfair_engine.checkpoints.reload import model_logits
from optipfair_engine.checkpoints.verify import run_fresh
from optipfair_engine.errors import InvalidOptionError, ReloadCheckError
from optipfair_engine.plans import Provenance, PruningPlan
from tests.optipfair_engine.checkpoints.conftest import make_model
from tests.tiny import word_tokenizer

TOKENS = [[1, 5, 9, 2, 80]]


def flip_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def tokenizer() -> PreTrainedTokenizerFast:
    wrapped = word_tokenizer(["<s>", "hello"], unk_token="<s>")
    wrapped.chat_template = "{{ messages[0].content }}"
    return wrapped


def test_everything_that_belongs_to_a_model_is_there(tmp_path: Path, model: PreTrainedModel) -> None:
    locate(model).mlp(0).keep(torch.arange(32))
    for index in (1, 2):
        locate(model).mlp(index).keep(torch.arange(32))
    locate(model).write_sizes_to_config()
    plan = PruningPlan("llama", 3, 32, Provenance(neuron_selection_method="MAW"), {0: tuple(range(32))})
    out = tmp_path / "out"
    manifest = save_pruned(
        model,
        out,
        tokenizer=tokenizer(),
        plan=plan,
        source=SourceInfo("tiny", "abc"),
        verify="logits",
        measured={"perplexity_dense": 20.5, "perplexity_static_same_size": 300.0},
    )
    names = {path.name for path in out.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "generation_config.json",
        "tokenizer.json",
        "plan.json",
    } <= names
    assert {"chat_template.jinja", "README.md", MANIFEST_NAME} <= names
    assert set(manifest.files) == names - {MANIFEST_NAME}
    for name, entry in manifest.files.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == entry.sha256
    written = json.loads((out / MANIFEST_NAME).read_text())
    assert written["source"] == {"name": "tiny", "revision": "abc"}
    assert written["reload_check"] == "logits"
    assert written["plan"]["kept_neurons"] == {"0": 32}
    assert written["measured"] == {"perplexity_dense": 20.5, "perplexity_static_same_size": 300.0}
    card = (out / "README.md").read_text()
    assert "MAW" in card
    assert "| static same size | 300 |" in card
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer().chat_template
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(model_logits(loaded, TOKENS), model_logits(model, TOKENS))


def test_several_chat_templates_are_kept_without_a_sub_folder(tmp_path: Path, model: PreTrainedModel) -> None:
    several = tokenizer()
    several.chat_template = {"default": "{{ messages[0].content }}", "tool_use": "{{ tools }}"}
    save_pruned(model, tmp_path, tokenizer=several, verify="none")
    assert all(path.is_file() for path in tmp_path.iterdir())
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == several.chat_template


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_pruned(make_model(), tmp_path / name, verify="structure")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_saving_again_replaces_only_its_own_result(tmp_path: Path, model: PreTrainedModel) -> None:
    out = tmp_path / "out"
    save_pruned(model, out, verify="none", max_shard_size="20KB")
    (out / "notes.txt").write_text("mine")
    save_pruned(model, out, verify="structure")
    assert [path.name for path in out.glob("*.safetensors*")] == ["model.safetensors"]
    assert (out / "notes.txt").read_text() == "mine"


def test_another_model_is_not_overwritten(folder: Path, model: PreTrainedModel) -> None:
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(InvalidOptionError, match="already holds a model"):
        save_pruned(model, folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_contradictory_generation_settings_are_kept_as_they_came(
    tmp_path: Path, model: PreTrainedModel
) -> None:
    model.generation_config.temperature = 0.5  # without do_sample: transformers refuses to write it
    save_pruned(model, tmp_path / "out", verify="structure")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 0.5
    assert model.generation_config.temperature == 0.5


def test_unknown_levels_are_refused(folder: Path) -> None:
    with pytest.raises(InvalidOptionError, match="none, structure or logits"):
        verify_reload(folder, level="perhaps")  # type: ignore[arg-type]
    with pytest.raises(InvalidOptionError, match="reference"):
        verify_reload(folder, level="logits")


@pytest.mark.parametrize("with_manifest", [True, False])
def test_one_flipped_byte_fails(tmp_path: Path, model: PreTrainedModel, with_manifest: bool) -> None:
    save_pruned(model, tmp_path / "out", verify="none")
    reference = model_logits(model, TOKENS)
    options = {"level": "logits", "reference_logits": reference, "token_ids": TOKENS}
    assert verify_reload(tmp_path / "out", **options).max_difference == 0.0  # type: ignore[arg-type]
    weights = tmp_path / "out" / "model.safetensors"
    flip_byte(weights, weights.stat().st_size - 2)
    if not with_manifest:  # then only the logits can tell
        (tmp_path / "out" / MANIFEST_NAME).unlink()
    with pytest.raises(ReloadCheckError, match="manifest" if with_manifest else "differ"):
        verify_reload(tmp_path / "out", **options)  # type: ignore[arg-type]


def test_structure_notices_a_config_that_says_something_else(tmp_path: Path, model: PreTrainedModel) -> None:
    save_pruned(model, tmp_path / "out", verify="none")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps({**config, "intermediate_size": 63}))
    with pytest.raises(ReloadCheckError, match="has shape"):
        verify_reload(tmp_path / "out", level="structure")


def test_structure_notices_a_missing_tensor(tmp_path: Path, model: PreTrainedModel) -> None:
    save_pruned(model, tmp_path / "out", verify="none")
    (tmp_path / "out" / MANIFEST_NAME).unlink()
    weights = tmp_path / "out" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ReloadCheckError, match=r"missing: \['model\.layers\.1\.mlp\.up_proj\.weight'\]"):
        verify_reload(tmp_path / "out", level="structure")


def test_a_result_that_does_not_reload_is_an_error(tmp_path: Path, model: PreTrainedModel) -> None:
    def wrong(*asked: object) -> torch.Tensor:
        return verify.run_fresh(*asked) * 1.01  # type: ignore[arg-type]

    with pytest.raises(ReloadCheckError, match="differ"):
        save_pruned(model, tmp_path / "out", verify="logits", runner=wrong)
    assert json.loads((tmp_path / "out" / MANIFEST_NAME).read_text())["reload_check"] == "none"


@pytest.mark.slow
def test_a_new_process_gives_the_same_logits(tmp_path: Path) -> None:
    model = make_model()
    for parameter in model.parameters():  # model.to() would round the rotary frequencies too
        parameter.data = parameter.data.to(torch.bfloat16)
    # the name was imported before the fixture of these tests put another in its place
    assert save_pruned(model, tmp_path / "out", runner=run_fresh).reload_check == "logits"
