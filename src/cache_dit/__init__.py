"""Training-free caching for diffusion transformers.

>>> import cache_dit
>>> cache_dit.enable_cache(pipe)
>>> image = pipe("a red house").images[0]
>>> cache_dit.summary(pipe)
"""

import lazy_loader

# At once, for a reason that is told there.
from cache_dit.quantize import quantize as quantize

# The public names stand in __init__.pyi, for type checkers and for this. What they need, torch first of all,
# is imported when a name is used, so that the command line answers at once.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
