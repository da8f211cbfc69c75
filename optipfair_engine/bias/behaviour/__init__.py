"""What a model prefers or says: likelihoods of whole sentences."""
