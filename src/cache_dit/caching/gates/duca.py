"""DuCa: steps that repeat everything take turns with steps that compute some of the tokens."""

from __future__ import annotations

from typing import ClassVar

from cache_dit.caching.gates.toca import ToCaConfig
from cache_dit.caching.maths.tokens import Tokens
from cache_dit.caching.options import option, options, real


@options
class DuCaConfig(ToCaConfig):
    """`ToCaConfig` on every other skipped step; on the others all outputs of modules are repeated.

    Dual feature caching (DuCa, arXiv 2412.18911). Behind a computed step, the first skipped one repeats all.
    The second version of the paper chooses the tokens at random and finds that no worse than any score; the
    first one by the norm of their value vectors, which are out of reach inside of attention: `norm` takes
    the module's kept output, and that a large one counts for more is unsure. The authors' steps that repeat
    all also leave out what is cheap between the modules.

    Attributes:
        share: As in `ToCaConfig`. Default 0.1.
        random: Weight of chance in a token's score. Default 1.
        age: As in `ToCaConfig`. Default 0.
        norm: As in `ToCaConfig`. Default 0.
        spatial: As in `ToCaConfig`. Default 0.
    """

    method: ClassVar[str] = "DuCa"

    random: float = option(real(0.0), default=1.0)
    age: float = option(real(0.0), default=0.0)
    norm: float = option(real(0.0), default=0.0)
    spatial: float = option(real(0.0), default=0.0)

    def tokens(self) -> Tokens:
        """How tokens are chosen that are computed on skipped steps."""
        return Tokens(self.share, self.age, self.norm, self.random, self.spatial, alternate=True)
