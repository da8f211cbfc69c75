from .apply import apply_plan as apply_plan
from .plan import HeadPlan as HeadPlan, PruningPlan as PruningPlan, new_plan as new_plan
from .provenance import FairnessFacts as FairnessFacts, Provenance as Provenance
from .reduction import count_parameters as count_parameters, pruning_statistics as pruning_statistics
