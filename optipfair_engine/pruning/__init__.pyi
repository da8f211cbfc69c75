from .api import prune_model as prune_model
from .apply import apply_plan as apply_plan
from .layer_importance import analyze_layer_importance as analyze_layer_importance
from .options import PruneOptions as PruneOptions
from .plan import HeadPlan as HeadPlan, PruningPlan as PruningPlan
from .planner import make_plan as make_plan
from .statistics import count_parameters as count_parameters, pruning_statistics as pruning_statistics
