"""Qdrant, one file per engine: embedded, its client's local mode, a server.

    vector_engine, vector_points
                              the interface of stores and engines, and what may be stored
    qdrant_edge, qdrant_local, qdrant_server
                              the engines; qdrant_models, engine_folder, background_loop: what they
                              share
    server_layout             how a server spreads and compresses vectors; server_life: which
                              process of a server answers, server_errors: what its failures mean
    edge_shard, edge_vendor   one collection of qdrant_edge; its terms translated into ours
    edge_upkeep               has its index built while it is used: edge_schedule (when), edge_copy
                              (the folders, crashes), edge_process (the process that builds it),
                              write_gate (holds writes meanwhile)
    search_width              how many candidates a search of an index looks at
    disk_room                 whether a disk has room for vectors

Only these files import qdrant_client and qdrant_edge.
"""
