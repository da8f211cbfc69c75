"""Rough predictions of a prune job's memory, output and time, from sizes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optipfair_engine.architectures.registry import known_architecture

if TYPE_CHECKING:
    from optipfair_engine.headers.folder import ModelFacts

_PROCESS_BYTES = 600_000_000
#: What a streamed prune takes of its own beside what depends on sizes: its libraries are mapped files.
_STREAMED_BYTES = 250_000_000
_BYTES_PER_SECOND = 4e8
_FLOPS = 2e10
#: Of each parameter that healing trains: in float32, its gradient and Adam's two moments.
_TRAINED_BYTES = 16
#: Of each parameter in the file that is exported, f16.
_GGUF_BYTES = 2
#: How long a search takes unless it is told, and the probabilities that it compares with, three times.
_SEARCH_SECONDS = 300.0
_SEARCH_BYTES = 3 * 4 * 2**25
#: What a token costs that the model writes, in tokens that it reads: products of few rows, and the cache.
_WRITING = 2.5
_BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Estimate:
    """A rough prediction of one prune job; seconds assume two ordinary cores."""

    peak_memory_bytes: int
    output_bytes: int
    seconds: float


def estimate_prune(facts: ModelFacts, spec: Mapping[str, Any]) -> Estimate:
    """Memory, output size and time of a prune job, from sizes alone; good to a factor of about two.

    ``spec`` is the job's spec as plain JSON (or the command's options under the same names).
    """
    weights = loaded_bytes(facts, spec.get("dtype"))
    output = _output_bytes(facts, spec, weights)
    tokens = _tokens_of(spec, "calibration")
    layers, wide = facts.num_layers or 1, facts.intermediate_size or 1
    refit = _refits(spec)
    flops = 2.0 * tokens * _passed_parameters(facts)
    if spec.get("pruning_type") == "EXPERTS":
        flops *= 2  # what each expert of a token adds is computed apart
    flops += 2.0 * _WRITING * _written_tokens(spec) * _passed_parameters(facts)
    memory: float = _PROCESS_BYTES + weights + output
    if refit and tokens:
        flops += 2.0 * tokens * layers * wide**2
        memory += layers * wide**2 * 4 * 2  # a Gram matrix of what is fitted, and one of what is held out
    memory += _activation_bytes(facts, spec)
    flops += 2.0 * _read_tokens(spec) * _passed_parameters(facts)
    flops += _attention_flops(facts, spec)
    if tokens:
        # a layer's weights cast to float32, where the processor is faster in it
        memory += facts.parameters / (layers + 1) * 4
    memory += _fitting_bytes(facts, spec) + _ranks_bytes(facts, spec, layers)
    healed = _seconds_of(spec, "healing")
    extra = healed + _seconds_of(spec, "reconstruction") + _searching(spec)
    if _searching(spec):
        memory += _SEARCH_BYTES
    if healed:
        memory += facts.parameters * _TRAINED_BYTES * output / max(weights, 1)
    seconds = 3.0 + (2 * weights + 2 * output) / _BYTES_PER_SECOND + flops / _FLOPS + extra
    exported = output * _GGUF_BYTES / _weight_bytes(facts, weights) if spec.get("export") == "gguf" else 0.0
    seconds += 2 * exported / _BYTES_PER_SECOND
    return Estimate(int(memory), int(output + exported), round(seconds, 1))


def estimate_streamed(facts: ModelFacts, spec: Mapping[str, Any]) -> Estimate:
    """The same of a prune that never has the model in memory: a layer at a time, or less."""
    whole = estimate_prune(facts, spec)
    layers, hidden, wide = facts.num_layers or 1, facts.hidden_size or 1, facts.intermediate_size or 1
    tokens, (window, count) = _tokens_of(spec, "calibration"), _window(spec)
    windows = window * count
    # the logits of one window in float32, and what cross-entropy makes of them
    memory = _STREAMED_BYTES + 2.0 * 4 * window * (facts.vocab_size or 0)
    if tokens or windows:
        memory += 4 * hidden * (tokens + windows)  # hidden states
        memory += facts.parameters / (layers + 1) * 4  # a layer's weights cast to float32
        memory += facts.bytes / (layers + 1) if facts.expert_parameters else 0  # its experts side by side
    if tokens and _refits(spec):
        memory += wide**2 * 4 * 4  # two Gram matrices, and what solving makes of them
    memory += _fitting_bytes(facts, spec) + _ranks_bytes(facts, spec, 1)
    return Estimate(int(memory), whole.output_bytes, whole.seconds)


def check_memory(facts: ModelFacts, spec: Mapping[str, Any]) -> int:
    """Bytes that comparing the logits of a streamed result takes: of the process that loads it whole."""
    return _PROCESS_BYTES + _output_bytes(facts, spec, loaded_bytes(facts, spec.get("dtype")))


def _passed_parameters(facts: ModelFacts) -> float:
    """Parameters that a token meets: of experts those that it is sent to alone."""
    if not (facts.expert_parameters and facts.num_experts and facts.num_experts_per_tok):
        return facts.parameters
    share = min(1.0, facts.num_experts_per_tok / facts.num_experts)
    return facts.parameters - facts.expert_parameters * (1 - share)


def state_bytes(facts: ModelFacts, spec: Mapping[str, Any]) -> int:
    """Bytes of disk that the state of a calibrated streamed prune takes at most."""
    tokens = _tokens_of(spec, "calibration")
    if not tokens:
        return 0
    layers, hidden, wide = facts.num_layers or 1, facts.hidden_size or 1, facts.intermediate_size or 1
    window, count = _window(spec)
    gathered = 2 * wide * 4 * (wide if _refits(spec) else 2)
    # hidden states are replaced by the next layer's only once those are written; refitted weights
    return layers * (gathered + 4 * hidden * wide) + 2 * 4 * hidden * (tokens + window * count)


def _ranks_bytes(facts: ModelFacts, spec: Mapping[str, Any], at_once: int) -> float:
    """What further processes take that share out the calibration, each with ``at_once`` layers' statistics.

    Beside them there is their launcher. A model in safetensors is in memory once for all of them (mapped).
    """
    count = int(spec.get("processes") or 1)
    if count == 1:
        return 0.0
    layers, wide = facts.num_layers or 1, facts.intermediate_size or 1
    each = _STREAMED_BYTES + _activation_bytes(facts, spec) + facts.parameters / (layers + 1) * 4
    each += facts.bytes / (layers + 1) if facts.expert_parameters else 0
    if _refits(spec):
        each += at_once * wide**2 * 4 * 2
    if facts.format == "gguf" or spec.get("dtype", "auto") != "auto":
        each += loaded_bytes(facts, spec.get("dtype"))
    return _STREAMED_BYTES + count * each


def _seconds_of(spec: Mapping[str, Any], name: str) -> float:
    """How long a stage that has a limit of its own may take."""
    asked = spec.get(name) or {}
    return float(asked.get("max_seconds", 0)) if isinstance(asked, Mapping) else 0.0


def _searching(spec: Mapping[str, Any]) -> float:
    """How long widths are searched for, in seconds."""
    if spec.get("allocation") != "searched":
        return 0.0
    return _seconds_of(spec, "search") or _SEARCH_SECONDS


def _fitting_bytes(facts: ModelFacts, spec: Mapping[str, Any]) -> float:
    """What reconstruction holds: all tokens' states, input and output of an MLP, and that MLP in training."""
    if not _seconds_of(spec, "reconstruction"):
        return 0.0
    hidden, wide = facts.hidden_size or 1, facts.intermediate_size or 1
    trained = matrices_of_mlp(facts.model_type) * hidden * wide * _TRAINED_BYTES
    return 3.0 * 4 * hidden * _tokens_of(spec, "calibration") + trained


def _refits(spec: Mapping[str, Any]) -> bool:
    if spec.get("pruning_type") == "EXPERTS":
        return False
    return spec.get("compensation") == "least_squares" or spec.get("preset", "guide") != "guide"


def _tokens_of(spec: Mapping[str, Any], name: str) -> int:
    texts = spec.get(name) or {}
    return _calibration_tokens(texts) if isinstance(texts, Mapping) else 0


def _written_tokens(spec: Mapping[str, Any]) -> float:
    """Tokens of calibration that the model writes itself."""
    texts, tokens = spec.get("calibration") or {}, _tokens_of(spec, "calibration")
    return tokens if texts.get("source") == "model" else tokens * float(texts.get("mix_self") or 0)


def _window(spec: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of a window of the evaluation's text, and at most how many windows; zeros without a text."""
    text = spec.get("evaluation")
    if not isinstance(text, Mapping):
        return 0, 0
    return int(text.get("max_length") or 512), int(text.get("num_windows") or 40)


def loaded_bytes(facts: ModelFacts, dtype: str | None = None) -> int:
    """Bytes of a model's weights once they are loaded as ``dtype``: by default as stored, a GGUF in bfloat16.

    A pruned checkpoint is never larger.
    """
    size = _BYTES_OF.get(dtype or "auto", 2 if facts.format == "gguf" else None)
    return facts.bytes if size is None else facts.parameters * size


def _weight_bytes(facts: ModelFacts, weights: float) -> float:
    """Bytes of one parameter."""
    return max(weights / max(facts.parameters, 1), 1)


def _calibration_tokens(calibration: Mapping[str, Any]) -> int:
    texts = calibration.get("texts")
    if not texts and not calibration.get("source"):
        return 0
    samples = min(int(calibration.get("num_samples", 128)), len(texts) if texts else 2**31)
    # what the model writes comes on top of what is given
    whole = round(samples / (1 - float(calibration.get("mix_self") or 0)))
    return whole * int(calibration.get("max_length", 512))


def _windows(spec: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """What is read: (tokens of a window, windows at once, windows), of calibration and of perplexity."""
    found = []
    calibration = spec.get("calibration")
    if isinstance(calibration, Mapping) and _calibration_tokens(calibration):
        length = int(calibration.get("max_length", 512))
        found.append(
            (length, int(calibration.get("batch_size", 8)), _calibration_tokens(calibration) // length)
        )
    for name in ("evaluation", "text"):
        text = spec.get(name)
        if isinstance(text, Mapping):
            length = int(text.get("max_length") or spec.get("max_length") or 512)
            # dense, pruned, and beside calibration the static one of the same size
            passes = 1 if name == "text" else 3 if found else 2
            found.append((length, 1, passes * int(text.get("num_windows") or 40)))
    return found


def _activation_bytes(facts: ModelFacts, spec: Mapping[str, Any]) -> float:
    """What one pass holds beside the weights: a layer's states, and the logits twice in float32."""
    hidden, wide = facts.hidden_size or 1, facts.intermediate_size or 1
    logits = 2 * (facts.vocab_size or 0)
    each = [
        4.0 * length * at_once * (8 * hidden + 3 * wide + logits) for length, at_once, _ in _windows(spec)
    ]
    return max(each, default=0.0)


def _read_tokens(spec: Mapping[str, Any]) -> float:
    """Tokens that perplexity is measured on; those of calibration are counted with what is made of them."""
    read = {name: value for name, value in spec.items() if name != "calibration"}
    return float(sum(length * count for length, _, count in _windows(read)))


def _attention_flops(facts: ModelFacts, spec: Mapping[str, Any]) -> float:
    """Products of queries and keys, and of weights and values: they grow with the square of the length."""
    layers, hidden = facts.num_layers or 1, facts.hidden_size or 1
    return sum(4.0 * layers * hidden * length**2 * count for length, _, count in _windows(spec))


def _output_bytes(facts: ModelFacts, spec: Mapping[str, Any], weights: int) -> int:
    if spec.get("target_bytes"):
        return min(weights, int(spec["target_bytes"]))
    if spec.get("target_parameters"):
        return int(weights * min(1.0, int(spec["target_parameters"]) / max(facts.parameters, 1)))
    return int(weights * (1 - _removed_share(facts, spec)))


def _removed_share(facts: ModelFacts, spec: Mapping[str, Any]) -> float:
    """The share of all parameters that goes."""
    layers, hidden, wide = facts.num_layers or 1, facts.hidden_size or 1, facts.intermediate_size or 1
    in_layers = max(0, facts.parameters - hidden * (facts.vocab_size or 0)) / max(facts.parameters, 1)
    if spec.get("pruning_type") == "DEPTH":
        by_count = (spec.get("num_layers_to_remove") or len(spec.get("layer_indices") or ())) / layers
        return in_layers * min(1.0, by_count or (spec.get("depth_pruning_percentage") or 0) / 100)
    if spec.get("pruning_type") == "EXPERTS":
        experts = (facts.expert_parameters or 0) / max(facts.parameters, 1)
        return experts * (spec.get("pruning_percentage") or 0) / 100
    chosen = spec.get("layer_indices")
    share = len(chosen) / layers if chosen else 1.0
    rate = spec.get("expansion_rate")
    removed = (
        1 - min(1.0, rate / 100 * hidden / wide) if rate else (spec.get("pruning_percentage") or 0) / 100
    )
    mlp = min(
        in_layers, layers * matrices_of_mlp(facts.model_type) * hidden * wide / max(facts.parameters, 1)
    )
    return mlp * share * removed


def matrices_of_mlp(model_type: str) -> int:
    """Weight matrices that a neuron has a row or column of: up and down, and a gate in most families."""
    family = known_architecture(model_type)
    return 2 if family is not None and family.mlp is not None and family.mlp.gate is None else 3
