"""The flat metrics that a job of each kind may report, and on which a gate may be set."""

from __future__ import annotations

_SIZES = {"parameters", "bytes", "output_bytes", "seconds"}
_PRUNE = {
    *("original_parameters", "pruned_parameters", "reduction", "percentage_reduction", "expansion_rate"),
    *("total_layers", "pruned_layers", "output_bytes", "seconds"),
    *("perplexity_dense", "perplexity_pruned", "perplexity_static_same_size", "perplexity_ratio"),
    *("bias_change", "tokens_per_second_ratio", "reload_check"),
}
_BIAS = {
    *("mean_difference", "max_difference", "mean_difference_low", "mean_difference_high"),
    *("mean_difference_from_first_difference", "noise_floor", "bias_change", "bias_change_low"),
    *("bias_change_high", "stereotype_score", "ss", "lms", "icat", "seconds"),
}
_EVALUATE = {
    *("perplexity", "perplexity_baseline", "perplexity_ratio", "tokens_per_second"),
    *("tokens_per_second_baseline", "tokens_per_second_ratio", "speedup", "avg_time", "seconds"),
}
_KNOWN = {
    "analyze": _SIZES,
    "importance": {"min_importance", "max_importance", "mean_importance", "tokens", "seconds"},
    "prune": _PRUNE,
    "bias": _BIAS,
    "evaluate": _EVALUATE,
    "pipeline": set[str](),
}


def known_metrics(kind: str) -> frozenset[str]:
    """The metrics of a kind of job (a pipeline has those of its steps, also as `step.metric`)."""
    return frozenset(_KNOWN[kind])
