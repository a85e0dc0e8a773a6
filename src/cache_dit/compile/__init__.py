"""`torch.compile` beside the cache: sane limits, and the repeated blocks of every known class."""

from cache_dit.compile.configs import set_compile_configs
from cache_dit.compile.regional import compile_repeated_blocks

__all__ = ["compile_repeated_blocks", "set_compile_configs"]
