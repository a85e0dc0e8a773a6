"""Pictures and videos of known models, with all that this package can put on them: `cache-dit generate`."""

from cache_dit.generate.families import FAMILIES, Family, family_of
from cache_dit.generate.output import as_data, path_of, save, suffix_of, tag
from cache_dit.generate.pipeline import load, ready
from cache_dit.generate.run import Outcome, generate
from cache_dit.generate.settings import Drawing, Offload, Stack, rank, stack_of

__all__ = [
    "FAMILIES",
    "Drawing",
    "Family",
    "Offload",
    "Outcome",
    "Stack",
    "as_data",
    "family_of",
    "generate",
    "load",
    "path_of",
    "rank",
    "ready",
    "save",
    "stack_of",
    "suffix_of",
    "tag",
]
