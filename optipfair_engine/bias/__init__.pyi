from .activations import (
    get_activation_pairs as get_activation_pairs,
    get_layer_names as get_layer_names,
    get_prompt_activations as get_prompt_activations,
    select_layers as select_layers,
)
from .cause.patching import patch_pairs as patch_pairs
from .defaults import (
    ATTRIBUTES as ATTRIBUTES,
    DEFAULT_CONTROL_PAIRS as DEFAULT_CONTROL_PAIRS,
    DEFAULT_PROMPT_PAIRS as DEFAULT_PROMPT_PAIRS,
    generate_prompt_pairs as generate_prompt_pairs,
)
from .generation.parity import compare_generations as compare_generations
from .guide import (
    visualize_bias as visualize_bias,
    visualize_heatmap as visualize_heatmap,
    visualize_mean_differences as visualize_mean_differences,
    visualize_pca as visualize_pca,
)
from .statistics.metrics import (
    calculate_activation_differences as calculate_activation_differences,
    calculate_bias_metrics as calculate_bias_metrics,
)
