from .loading import check_finite as check_finite, load_model as load_model, load_pruned as load_pruned
from .manifest import (
    MANIFEST_NAME as MANIFEST_NAME,
    Manifest as Manifest,
    SourceInfo as SourceInfo,
    model_name as model_name,
)
from .tokenizer import load_tokenizer as load_tokenizer
from .verify import ReloadCheck as ReloadCheck, ReloadRunner as ReloadRunner, verify_reload as verify_reload
from .writer import save_pruned as save_pruned
