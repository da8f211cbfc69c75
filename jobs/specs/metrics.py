"""The flat metrics that a job of each kind may report, and on which a gate may be set."""

from __future__ import annotations

_ANALYZE = {
    *("parameters", "bytes", "num_layers", "hidden_size", "expansion_rate", "vocab_size", "seconds"),
    "compatible_with_glu_pruning",
}
_IMPORTANCE = {"min_importance", "max_importance", "mean_importance", "tokens", "seconds"}
_PRUNE = {
    *("original_parameters", "pruned_parameters", "reduction", "percentage_reduction", "expansion_rate"),
    *("total_layers", "pruned_layers", "original_layer_count", "final_layer_count", "layers_removed"),
    *("original_expert_count", "final_expert_count"),
    *("layer_reduction_percentage", "output_bytes", "seconds", "calibration_tokens"),
    *(
        "calibration_own_samples",
        "calibration_tokens_per_feature",
        "perplexity_before_healing",
        "healing_steps",
        "healing_seconds",
    ),
    *("healing_first_loss", "healing_last_loss", "bias_against_random"),
    *("perplexity_dense", "perplexity_pruned", "perplexity_static_same_size", "perplexity_ratio"),
    *("evaluation_max_length", "evaluation_windows", "evaluation_tokens"),
    *("predicted_error_uniform", "predicted_error_allocated"),
    *("reconstruction_layers", "reconstruction_error_before", "reconstruction_error_after"),
    *("next_token_change", "next_token_against_random"),
    *("bias_change", "tokens_per_second_ratio", "reload_check", "loads_with_transformers"),
}
#: What changed, from a baseline, in what a model says to the two prompts of a pair.
GENERATION_CHANGES = (
    *("generation_divergence_change", "generation_divergence_baseline"),
    *("generation_length_change", "generation_length_difference_baseline"),
    *("generation_sentiment_change", "generation_sentiment_difference_baseline"),
)
_BIAS = {
    *("pairs", "templates", "control_pairs", "share_aligned", "mean_difference", "minimum_detectable"),
    *("noise_floor", "effect_over_noise", "neurons_tested", "neurons_significant", "items", "perplexity"),
    *("crows_pairs_score", "stereoset_ss", "stereoset_lms", "stereoset_icat", "bias_change"),
    *("preference_change", "mcnemar_p", "patched_units", "largest_effect", "next_token_distance"),
    "reaction_effect_correlation",
    *("generation_divergence", "generation_length_difference", "generation_overlap"),
    *("generation_overlap_within", "generation_sentiment_difference"),
    *("crows_pairs_score_baseline", "perplexity_baseline", "stereoset_ss_baseline"),
    *("stereoset_lms_baseline", "stereoset_icat_baseline", "seconds"),
    *("next_token_change", "next_token_distance_baseline", *GENERATION_CHANGES),
}
_EVALUATE = {
    *("perplexity", "perplexity_baseline", "perplexity_ratio", "evaluation_max_length"),
    *("evaluation_windows", "evaluation_tokens", "evaluation_windows_baseline"),
    "evaluation_tokens_baseline",
    *("tokens_per_second", "tokens_per_second_baseline", "tokens_per_second_ratio", "speedup"),
    *("dynamic_active_parameters", "dynamic_parameters_baseline", "dynamic_windows"),
    *("dynamic_perplexity", "dynamic_perplexity_dense", "dynamic_perplexity_ratio"),
    *("dynamic_perplexity_baseline", "dynamic_tokens_per_second", "dynamic_tokens_per_second_dense"),
    *("dynamic_tokens_per_second_ratio", "dynamic_tokens_per_second_baseline"),
    *("avg_time", "seconds"),
}
_KNOWN = {
    "analyze": _ANALYZE,
    "importance": _IMPORTANCE,
    "prune": _PRUNE,
    "bias": _BIAS,
    "evaluate": _EVALUATE,
    "pipeline": set[str](),
}


def known_metrics(kind: str) -> frozenset[str]:
    """The metrics of a kind of job (a pipeline has those of its steps, also as `step.metric`)."""
    return frozenset(_KNOWN[kind])
