"""How near pictures and videos are to others, and to their prompts.

`compute_...` take files and folders and return the mean and the number of items; `psnr` and `ssim` take
pictures in memory.
"""

from cache_dit.metrics.fid import compute_fid, frechet_distance
from cache_dit.metrics.image import psnr, ssim
from cache_dit.metrics.lpips import compute_lpips
from cache_dit.metrics.measured import Measured, interval_of_mean, write_scores
from cache_dit.metrics.options import NotGivenError, Options
from cache_dit.metrics.pairs import compute_mse, compute_psnr, compute_ssim
from cache_dit.metrics.prompts import compute_clip_score, compute_image_reward, named_score
from cache_dit.metrics.video import compute_video_psnr, compute_video_ssim, holds_videos

__all__ = [
    "compute_psnr",
    "compute_ssim",
    "compute_mse",
    "compute_lpips",
    "compute_fid",
    "compute_clip_score",
    "compute_image_reward",
    "compute_video_psnr",
    "compute_video_ssim",
    "psnr",
    "ssim",
    "frechet_distance",
    "interval_of_mean",
    "write_scores",
    "holds_videos",
    "named_score",
    "Measured",
    "Options",
    "NotGivenError",
]
