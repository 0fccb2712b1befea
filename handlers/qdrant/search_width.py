"""How many candidates a search of an HNSW index looks at: more in a larger collection.

At 100,000 synthetic points of 512 numbers 512 candidates found 0.994 of the ten nearest, at a
million 0.84; there 1,024 found 0.94, 2,048 0.98 and 4,096 0.996 (`python -m bench.large`). A search
takes about as much longer as it looks at more, and stays well below a look at every point.
"""

LEAST = 512
POINTS_A_CANDIDATE = 500
MOST = 8192
"""At four million points; from there on a search takes no longer, and finds a little less."""


def search_width(wanted: int, points: int = 0) -> int:
    """Return Qdrant's `hnsw_ef`.

    Args:
        wanted: how many matches are asked for, with those that are passed over.
        points: how many the collection has, where that is known.
    """
    return max(LEAST, min(MOST, points // POINTS_A_CANDIDATE), 2 * wanted)
