"""How a Qdrant server spreads, copies and compresses a collection; asked for when it is made."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Quantization: TypeAlias = Literal["none", "int8", "binary"]


@dataclass(frozen=True, slots=True)
class ServerLayout:
    """What a new collection gets; 0 leaves a number to the server's own configuration."""

    shards: int = 0
    """`shard_number`: only as many nodes as that can share a collection, and it never changes."""
    replicas: int = 0
    """`replication_factor`: how many nodes keep each shard."""
    consistency: int = 0
    """`write_consistency_factor`: how many of them have a write before it is confirmed."""
    quantization: Quantization = "none"
    """What searches look at first, in memory; the exact vectors decide afterwards."""
    on_disk: bool = False
    """The exact vectors are mapped from disk instead of kept in memory."""
