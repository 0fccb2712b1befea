"""Search: what is near a text, a picture, a face, or something stored.

    search, query_vectors     the search, and the vector that it compares with
    duplicates                the near-duplicates of a picture, and theirs in turn
    filters                   a client's filter -> the engines' conditions
    stored_vectors            what the collections hold, page by page

Nothing here writes.
"""
