from .analyze import analyze_checkpoint as analyze_checkpoint
from .bias import BiasOptions as BiasOptions, bias_checkpoint as bias_checkpoint
from .evaluate import evaluate_checkpoint as evaluate_checkpoint
from .importance import importance_checkpoint as importance_checkpoint
from .prune.checkpoint import prune_checkpoint as prune_checkpoint
