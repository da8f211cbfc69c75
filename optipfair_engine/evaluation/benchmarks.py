"""How fast a model generates: single-prompt timing, and two models side by side.

Greedy generation of exactly ``max_new_tokens`` tokens (an early end-of-sequence is not accepted), so that
every run does the same work. The device is synchronised before each reading of the clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from optipfair_engine.calibration.runner import check_tokens, eval_mode
from optipfair_engine.errors import InvalidOptionError, TokenizerError, UnsupportedModelError
from optipfair_engine.notebooks import Result
from optipfair_engine.progress import Reporter, null_reporter

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Way:
    """One way to generate: a model, and the block that each of its runs is in (entered before the clock)."""

    model: PreTrainedModel
    block: Callable[[], AbstractContextManager[Any]] = nullcontext


def time_inference(
    model: PreTrainedModel,
    tokenizer: Any,
    prompt: str,
    max_new_tokens: int = 100,
    num_runs: int = 5,
    warmup_runs: int = 2,
) -> dict[str, Any]:
    """Time the generation of ``max_new_tokens`` tokens after one prompt.

    Returns:
        ``avg_time``, ``min_time``, ``max_time``, ``median_time``, ``std_time`` in seconds a run,
        ``tokens_per_second`` (from the mean time), ``median_tokens_per_second``, ``num_runs``,
        ``generated_tokens``.

    Raises:
        InvalidOptionError: a number of runs or tokens that is too small.
        TokenizerError: the prompt has no token.
    """
    _check_runs(max_new_tokens, num_runs, warmup_runs)
    with eval_mode(model):
        times, tokens = _rounds([Way(model)], tokenizer, prompt, max_new_tokens, num_runs, warmup_runs)
    return _timing(times[0], tokens)


def compare_models_inference(
    original_model: PreTrainedModel,
    pruned_model: PreTrainedModel,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int = 100,
    num_runs: int = 5,
    warmup_runs: int = 2,
    *,
    report: Reporter = null_reporter,
) -> dict[str, Any]:
    """Time two models on the same prompts, run by run in turn, so that a busy machine slows both.

    Returns:
        ``avg_original_time``, ``avg_pruned_time`` (seconds a run), ``avg_original_tokens_per_second``,
        ``avg_pruned_tokens_per_second``, ``speedup``, ``tps_improvement_percent``, ``num_prompts``; beside
        them ``median_original_time``, ``median_pruned_time``, ``median_speedup`` and the spread over pairs
        of runs, ``speedup_low`` and ``speedup_high`` (10th and 90th percentile).

    Raises:
        InvalidOptionError: no prompt, or too few runs or tokens.
    """
    ways = [Way(original_model), Way(pruned_model)]
    (originals, pruned), tokens = _in_turn(
        ways, tokenizer, prompts, max_new_tokens, num_runs, warmup_runs, report
    )
    return Result(_comparison(originals, pruned, tokens), num_prompts=len(prompts))


def time_ways(
    ways: Sequence[Way],
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int = 100,
    num_runs: int = 5,
    warmup_runs: int = 2,
    *,
    report: Reporter = null_reporter,
) -> list[dict[str, Any]]:
    """Time ways to generate on the same prompts, run by run in turn; each with the keys of one timing.

    Raises:
        InvalidOptionError: no prompt, or too few runs or tokens.
    """
    times, tokens = _in_turn(ways, tokenizer, prompts, max_new_tokens, num_runs, warmup_runs, report)
    return [_timing(of_way, tokens) for of_way in times]


def _in_turn(
    ways: Sequence[Way],
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    num_runs: int,
    warmup_runs: int,
    report: Reporter,
) -> tuple[list[list[float]], int]:
    """Seconds of each run over all prompts, by way; and how many tokens a run makes."""
    _check_runs(max_new_tokens, num_runs, warmup_runs)
    if isinstance(prompts, str) or not prompts:
        raise InvalidOptionError("prompts must be a list of at least one prompt")
    found: list[list[float]] = [[] for _ in ways]
    with ExitStack() as stack:
        for way in ways:
            stack.enter_context(eval_mode(way.model))
        for number, prompt in enumerate(prompts, 1):
            times, tokens = _rounds(ways, tokenizer, prompt, max_new_tokens, num_runs, warmup_runs)
            for kept, new in zip(found, times, strict=True):
                kept.extend(new)
            report("evaluate", number, len(prompts), f"timed prompt {number} of {len(prompts)}")
    return found, tokens


def _comparison(originals: list[float], pruned: list[float], tokens: int) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(originals, pruned, strict=True)]
    low, high = _percentiles(ratios)
    original, new = _timing(originals, tokens), _timing(pruned, tokens)
    faster = new["tokens_per_second"] / original["tokens_per_second"]
    return {
        "avg_original_time": original["avg_time"],
        "avg_pruned_time": new["avg_time"],
        "avg_original_tokens_per_second": original["tokens_per_second"],
        "avg_pruned_tokens_per_second": new["tokens_per_second"],
        "speedup": original["avg_time"] / new["avg_time"],
        "tps_improvement_percent": 100 * (faster - 1),
        "median_original_time": original["median_time"],
        "median_pruned_time": new["median_time"],
        "median_speedup": statistics.median(ratios),
        "speedup_low": low,
        "speedup_high": high,
    }


def _percentiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return cuts[0], cuts[-1]


def _timing(times: list[float], tokens: int) -> dict[str, Any]:
    mean, median = statistics.fmean(times), statistics.median(times)
    return {
        "avg_time": mean,
        "min_time": min(times),
        "max_time": max(times),
        "median_time": median,
        "std_time": statistics.stdev(times) if len(times) > 1 else 0.0,
        "tokens_per_second": tokens / mean,
        "median_tokens_per_second": tokens / median,
        "num_runs": len(times),
        "generated_tokens": tokens,
    }


def _rounds(
    ways: Sequence[Way],
    tokenizer: Any,
    prompt: str,
    max_new_tokens: int,
    num_runs: int,
    warmup_runs: int,
) -> tuple[list[list[float]], int]:
    """Seconds of each run, by way, ways in turn; and how many tokens a run makes."""
    times: list[list[float]] = [[] for _ in ways]
    tokens = max_new_tokens
    for number in range(warmup_runs + num_runs):
        for way, kept in zip(ways, times, strict=True):
            with way.block():
                seconds, tokens = _timed_run(way.model, tokenizer, prompt, max_new_tokens)
            if number >= warmup_runs:
                kept.append(seconds)
    return times, tokens


def _timed_run(model: PreTrainedModel, tokenizer: Any, prompt: str, max_new_tokens: int) -> tuple[float, int]:
    inputs, device = _inputs(model, tokenizer, prompt, max_new_tokens)
    _synchronize(device)
    start = time.perf_counter()
    output = _generate(model, tokenizer, inputs, max_new_tokens, min_new_tokens=max_new_tokens)
    _synchronize(device)
    seconds = time.perf_counter() - start
    prompt_tokens = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    return seconds, int(output.shape[1] - prompt_tokens)


def generate_text(model: PreTrainedModel, tokenizer: Any, prompt: str, max_new_tokens: int = 50) -> str:
    """The greedy continuation of a prompt, without the prompt."""
    inputs, _ = _inputs(model, tokenizer, prompt, max_new_tokens)
    with eval_mode(model):
        output = _generate(model, tokenizer, inputs, max_new_tokens)
    start = 0 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    text: str = tokenizer.decode(output[0, start:], skip_special_tokens=True)
    return text


def _inputs(
    model: PreTrainedModel, tokenizer: Any, prompt: str, max_new_tokens: int
) -> tuple[dict[str, Tensor], torch.device]:
    if not model.can_generate():
        raise UnsupportedModelError(f"{model.config.model_type}: {type(model).__name__} can't generate text")
    if tokenizer is None:
        raise TokenizerError("Generating text needs a tokenizer, and the model has none.")
    device = next(model.get_input_embeddings().parameters()).device
    encoded = tokenizer(prompt, return_tensors="pt")
    if encoded["input_ids"].shape[1] == 0:
        raise TokenizerError("the prompt has no token")
    check_tokens(model, encoded["input_ids"], 0 if model.config.is_encoder_decoder else max_new_tokens)
    return {key: encoded[key].to(device) for key in ("input_ids", "attention_mask")}, device


def _generate(
    model: PreTrainedModel, tokenizer: Any, inputs: dict[str, Tensor], max_new_tokens: int, **extra: int
) -> Tensor:
    """Greedy generation, whatever sampling the model's generation config asks for."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with torch.no_grad():
        generate: Any = model.generate  # its own annotations don't cover the arguments below
        output: Tensor = generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=pad,
            **extra,
        )
    return output


def _synchronize(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given: its calls return before their work is done."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


def _check_runs(max_new_tokens: int, num_runs: int, warmup_runs: int) -> None:
    if max_new_tokens < 1 or num_runs < 1 or warmup_runs < 0:
        raise InvalidOptionError("max_new_tokens and num_runs must be at least 1, warmup_runs at least 0")
