from .checkpoints import (
    load_model as load_model,
    load_pruned as load_pruned,
    load_tokenizer as load_tokenizer,
    save_pruned as save_pruned,
)
from .plans import PruningPlan as PruningPlan, apply_plan as apply_plan
from .pruning import (
    analyze_layer_importance as analyze_layer_importance,
    dynamic_pruning as dynamic_pruning,
    prune_model as prune_model,
)

__version__: str
