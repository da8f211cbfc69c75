"""Width pruning: intermediate neurons of gated (``MLP_GLU``) and plain (``MLP``) blocks."""
