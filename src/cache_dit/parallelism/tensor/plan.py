"""The form of a tensor-parallel row: which layers of a transformer's blocks are divided, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from cache_dit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Joined:
    """A Linear whose divided side joins what belongs to heads with other channels.

    FLUX's single blocks project `cat([attention, mlp])`: a rank has some heads and some channels of the MLP,
    so its share of the weight comes from two places.

    Attributes:
        name: Path of the Linear from its part.
        attention: Path of the attention from the part; empty where it is the part itself.
        times: So many pieces as wide as all heads together come first.
        rest: So many equal pieces make up the remainder.
    """

    name: str
    attention: str
    times: int = 1
    rest: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A module where every rank computes its share from the columns to the rows.

    Names that a module lacks are passed over, so one part serves blocks with and without text stream. A
    column whose output is several times as wide as the input of the row is fused (query, key and value, or
    the two halves of a gated unit): each of its pieces is divided.

    Attributes:
        path: From the block; empty for the block itself. "*" stands for every member of a list.
        columns: Paths of the Linears whose output is divided.
        rows: Paths of the Linears whose input is divided; their outputs are added up over the ranks.
        norms: Pairs of a norm and the Linear before it: a norm as wide as that Linear goes across all heads,
            so its mean square is added up over the ranks.
        heads: Name of the attribute that counts the heads, where the part is an attention; None where
            channels are independent of each other.
        keys: Path of the Linear that makes keys: where it has fewer heads than the queries, its heads are
            divided, and the queries with them.
        counts: Attributes of the module that count heads or channels of all heads; those that it has are set
            to the share of this rank.
        channels: Attributes that count channels which belong to no head, likewise.
        rotary: Arguments of the module's forward with rotary embeddings that are not alike for all heads; a
            rank gets those of its heads.
    """

    path: str
    columns: tuple[str | Joined, ...]
    rows: tuple[str | Joined, ...]
    norms: tuple[tuple[str, str], ...] = ()
    heads: str | None = None
    keys: str = "to_k"
    counts: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    rotary: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Blocks:
    """What is divided in every block of a list.

    Attributes:
        path: The list, from the transformer.
        parts: What is divided in each of its blocks.
    """

    path: str
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError(f"Blocks({self.path!r}) has no parts; name at least one, such as attention().")


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """How a transformer class is divided over the ranks of a tensor-parallel group.

    Attributes:
        name: Class name; subclasses are found by it too.
        blocks: Its lists of blocks; those that a model lacks are passed over.
    """

    name: str
    blocks: tuple[Blocks, ...]


_NORMS = (
    ("norm_q", "to_q"),
    ("norm_k", "to_k"),
    ("norm_added_q", "add_q_proj"),
    ("norm_added_k", "add_k_proj"),
    ("q_norm", "to_q"),
    ("k_norm", "to_k"),
)


def attention(
    path: str,
    columns: str = "",
    rows: str = "",
    norms: tuple[tuple[str, str], ...] = (),
    heads: str = "heads",
    keys: str = "to_k",
    counts: str = "",
    rotary: str = "",
) -> Part:
    """An attention with the names that diffusers usually gives, or with names of its own.

    Args:
        path: From the block.
        columns: Further Linears to divide by output, several in one string.
        rows: Further Linears to divide by input.
        norms: Further pairs of a norm and the Linear before it.
        heads: Attribute that counts the heads.
        keys: Path of the Linear that makes keys.
        counts: Further attributes that count heads or their channels.
        rotary: Arguments with rotary embeddings that differ between heads.

    Returns:
        The part.
    """
    usual = "to_q to_k to_v to_gate to_gate_logits add_q_proj add_k_proj add_v_proj"
    return Part(
        path=path,
        columns=(*usual.split(), *columns.split()),
        rows=("to_out.0", "to_out", "to_add_out", *rows.split()),
        norms=(*_NORMS, *norms),
        heads=heads,
        keys=keys,
        counts=(heads, "kv_heads", "num_kv_heads", "inner_dim", "inner_kv_dim", *counts.split()),
        rotary=tuple(rotary.split()),
    )


def feed_forward(path: str, columns: str = "net.0.proj", rows: str = "net.2") -> Part:
    """A multi-layer perceptron, gated or not.

    Args:
        path: From the block.
        columns: Linears at its entry, several in one string.
        rows: The Linear at its exit.

    Returns:
        The part.
    """
    return Part(path=path, columns=tuple(columns.split()), rows=tuple(rows.split()))
