"""What a pipeline has around its transformer, spread over the same ranks: text encoders, VAE, ControlNets."""

from cache_dit.parallelism.modules.layers import shard_layers
from cache_dit.parallelism.modules.spread import spread
from cache_dit.parallelism.modules.tiles import TILED_VAES, share_tiles

__all__ = ["TILED_VAES", "shard_layers", "share_tiles", "spread"]
