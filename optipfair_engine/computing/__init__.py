"""How forward passes are computed where that is a choice; everything here is only there for speed."""
