"""Lists of config strings by name: the settings behind the reference system's published tables."""

from __future__ import annotations

from enum import Enum

# First blocks, warm-up, most skipped steps in a row (0: no limit) and threshold of FLUX.1-dev at 50 steps.
_LOW = tuple(
    (first, warmup, most, 0.12 if most else 0.08)
    for first, warmup in ((8, 8), (8, 4), (4, 4), (1, 4))
    for most in (0, 2, 3, 4)
)
_DISTILLED = tuple(
    f"F{first}B{last}_W2M0MC1_T0O1_R0.8" for first, last in ((24, 24), (16, 16), (12, 12), (8, 8), (1, 0))
)


class ConfigSet(Enum):
    """A set of settings; the value is its name on the command line."""

    LOW = "low"
    HIGH = "high"
    DISTILLED_8 = "distilled-8"
    DISTILLED_4 = "distilled-4"

    @property
    def configs(self) -> tuple[str, ...]:
        """Its config strings, in the order of the tables.

        `LOW`: up to 2.7 times less FLOPs, each with and without TaylorSeer. `HIGH`: 2.7 to 7.4 times, the
        sizes of `cache_dit.presets.dbcache`. `DISTILLED_4`: for models of 4 steps with 60 blocks, such as
        Qwen-Image-Lightning. No strings were published for 8 steps, so `DISTILLED_8` is the same list.
        """
        return _SETS[self]


_SETS = {
    ConfigSet.LOW: tuple(
        f"F{first}B0_W{warmup}M0MC{most}_T{taylor}O1_R{threshold:g}"
        for taylor in (0, 1)
        for first, warmup, most, threshold in _LOW
    ),
    ConfigSet.HIGH: (
        "F4B0_W4M0MC4_T0O1_R0.12",
        "F1B0_W4M0MC6_T0O1_R0.24",
        "F1B0_W8I2M0MC8_T0O1_R0.8",
        "F1B0_W4M0MC4_T1O1_R0.2",
        "F1B0_W4M0MC6_T1O1_R0.24",
        "F1B0_W8I2M0MC8_T1O1_R0.8",
        "F1B0_W8I4M0MC10_T1O1_R0.8",
    ),
    ConfigSet.DISTILLED_8: _DISTILLED,
    ConfigSet.DISTILLED_4: _DISTILLED,
}
