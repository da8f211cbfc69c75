from .read import (
    find_gguf as find_gguf,
    load_gguf_model as load_gguf_model,
    load_gguf_tokenizer as load_gguf_tokenizer,
    parsed_once as parsed_once,
)
