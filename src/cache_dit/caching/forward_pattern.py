"""The public vocabulary of data flow: which output of a block feeds which argument of the next one."""

from __future__ import annotations

from enum import Enum

HIDDEN = "hidden_states"
ENCODER = "encoder_hidden_states"


class ForwardPattern(Enum):
    """What a block takes and returns, in order; H: hidden states, E: encoder hidden states.

    Patterns 2 and 3 differ in what the block *takes* (H and E, or H alone); what it returns is the same. A
    side output continues nothing: it is kept from the last computed step and returned again.

    Attributes:
        slots: The argument that each output slot continues; None for a side output.
        bare: The block returns one tensor and no tuple.
    """

    Pattern_0 = ("(H, E) -> (H, E)", (HIDDEN, ENCODER))
    Pattern_1 = ("(H, E) -> (E, H)", (ENCODER, HIDDEN))
    Pattern_2 = ("(H, E) -> H", (HIDDEN,))
    Pattern_3 = ("H -> H", (HIDDEN,))
    Pattern_4 = ("H -> (H, side)", (HIDDEN, None))
    Pattern_5 = ("H -> (side, H)", (None, HIDDEN))

    def __init__(self, text: str, slots: tuple[str | None, ...]) -> None:
        self.text = text
        self.slots = slots
        self.bare = len(slots) == 1


def matching(slots: tuple[str | None, ...]) -> str:
    """The names of the patterns with these slots, for messages; "" where there is none."""
    return " or ".join(pattern.name for pattern in ForwardPattern if pattern.slots == slots)
