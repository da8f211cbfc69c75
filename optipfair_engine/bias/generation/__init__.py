"""What a model says to the two prompts of a pair: continuations, and how they compare."""
