"""What causes a model's different continuation of two prompts: activations exchanged between them."""
