"""A small trained Flux that ships with the package, and what caching does to its pictures."""

from cache_dit.demo.comparison import Comparison, FewerSteps, Sample, Spread, compare
from cache_dit.demo.figures import draw_pictures, draw_steps
from cache_dit.demo.model import PROMPTS, generate, load_pipeline, weights_path

__all__ = [
    "PROMPTS",
    "Comparison",
    "FewerSteps",
    "Sample",
    "Spread",
    "compare",
    "draw_pictures",
    "draw_steps",
    "generate",
    "load_pipeline",
    "weights_path",
]
