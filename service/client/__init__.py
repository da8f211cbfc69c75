"""The client: `OptipfairClient` for programs and notebooks, and the verbs of the command.

It needs httpx, rich and typer (the extra `client`), never what the service itself needs.
"""

import lazy_loader

# the command starts in a fraction of the time that httpx takes to be imported
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
