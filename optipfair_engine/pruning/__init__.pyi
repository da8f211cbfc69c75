from .api import prune_model as prune_model
from .depth.layer_importance import analyze_layer_importance as analyze_layer_importance
from .dynamic import dynamic_pruning as dynamic_pruning
from .planner import make_plan as make_plan
