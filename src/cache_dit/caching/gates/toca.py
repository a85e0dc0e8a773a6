"""ToCa: on skipped steps the feed-forward modules compute some of the tokens, and repeat the others."""

from __future__ import annotations

from typing import ClassVar

from cache_dit.caching.config import CacheConfig, Place
from cache_dit.caching.gates.interval import IntervalGate
from cache_dit.caching.maths.tokens import Tokens
from cache_dit.caching.options import instance_of, option, options, real, whole
from cache_dit.errors import ConfigError


@options
class ToCaConfig(CacheConfig):
    """Compute every n-th step, and in between some tokens of feed-forward and cross-attention modules.

    Token-wise caching (ToCa, arXiv 2410.05317). Which tokens, is chosen once a step for all modules with as
    many of them: by age, by the norm of what the first of these modules keeps (or of what enters it, where
    that is not kept), and with a bonus for the best of every 2 x 2 tokens. What is missing, and why:

    - The published scores are, first of all, how much a token is attended to and the entropy of its attention
      to the text. Both need attention maps, which flash attention does not make; the norm stands for them.
    - Self-attention is repeated whole: diffusers' modules make queries, keys and values of one argument, so
      they cannot be asked for some queries over all keys. That takes an attention processor with two
      arguments, and keys and values that are kept and updated in part.
    - Shares that differ from layer to layer and over the run.

    A module is first tried on some tokens; one that then gives something else than for all (a convolution, an
    argument for each token) is repeated whole. With a forecaster that does not repeat, what was computed for
    some tokens counts for that step only.

    Attributes:
        place: `Place.SUBMODULES` (default), `Place.MLP`, or `Place.ATTENTION` for cross-attention.
        interval: Every how many steps all is computed; 1 skips nothing. Default 5.
        share: Of the tokens that are computed in between, from 0 (none) to 1. Default 0.1.
        age: Weight of the steps since a token was computed, over the most of them. Default 1.
        norm: Weight of the norm of its kept value, over the largest of them. Default 1.
        spatial: The bonus. Default 0.5.
    """

    method: ClassVar[str] = "ToCa"

    place: Place = option(instance_of(Place), default=Place.SUBMODULES)
    interval: int = option(whole(1), default=5)
    share: float = option(real(0.0, 1.0), default=0.1)
    age: float = option(real(0.0), default=1.0)
    norm: float = option(real(0.0), default=1.0)
    spatial: float = option(real(0.0), default=0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.place not in (Place.SUBMODULES, Place.MLP, Place.ATTENTION):
            raise ConfigError(
                f"place is {self.place}, but {self.method} computes tokens inside of modules; give "
                "Place.SUBMODULES, Place.MLP or Place.ATTENTION."
            )

    def gate(self) -> IntervalGate:
        """The rule of this method, for steps that no limit decides."""
        return IntervalGate(self.interval)

    def tokens(self) -> Tokens:
        """How tokens are chosen that are computed on skipped steps."""
        return Tokens(self.share, age=self.age, norm=self.norm, spatial=self.spatial)

    def label(self) -> str:
        """`N` and the interval, `R` and the share."""
        return f"N{self.interval}R{self.share:g}"
