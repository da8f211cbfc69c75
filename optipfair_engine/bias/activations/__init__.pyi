from .pairs import (
    get_activation_pairs as get_activation_pairs,
    get_layer_names as get_layer_names,
    get_prompt_activations as get_prompt_activations,
    select_layers as select_layers,
)
