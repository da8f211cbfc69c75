"""What may be asked of the engine, and every rule of what goes together.

One of the two doors through which the service may reach into the engine: nothing here loads torch, NumPy or
transformers.
"""
