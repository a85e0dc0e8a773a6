"""How near two pictures are."""

from cache_dit.metrics.image import psnr, ssim

__all__ = ["psnr", "ssim"]
