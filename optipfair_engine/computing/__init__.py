"""How forward passes are computed where that is a choice; everything here is only there for speed.

``products.fast_products`` is the block that every forward pass for a measurement or a choice enters.
``number_type`` decides in which number type they are computed, as far as ``asked`` leaves it the choice.
``onednn`` has the linear layers.
"""
