"""Who may come in without a key of their own, and the record of who did what."""
