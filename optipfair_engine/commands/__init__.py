"""The sub-commands of ``optipfair``."""
