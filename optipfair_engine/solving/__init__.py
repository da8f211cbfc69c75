"""Mathematics on Gram matrices: the least-squares refit and Optimal Brain Surgeon. No model is seen here."""
