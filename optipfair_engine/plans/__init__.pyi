from .apply import apply_plan as apply_plan
from .plan import HeadPlan as HeadPlan, PruningPlan as PruningPlan
from .reduction import count_parameters as count_parameters, pruning_statistics as pruning_statistics
