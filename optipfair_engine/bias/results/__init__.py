"""What a bias analysis found, as frozen types; ``as_dict`` of each is its part of ``bias_summary.json``."""
