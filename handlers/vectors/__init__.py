"""Stored vectors: one model a collection, behind one fixed name, and copies of them.

    vector_store, qdrant_store
                              the base of the documented stores, and its form over an engine
    collection_claim          which model's vectors a collection may hold
    faceless                  the pictures in which a model found no face: they have no vector
    collection_parts, model_record
                              which collections are behind a fixed name, and which one is searched
    engine_choice             which engine keeps the vectors
    vector_snapshots          copies of an embedded engine's folder, for backups; vectors_at_rest:
                              the folder itself while no process has it open, and records_at_rest:
                              which models are in it

What an engine can do is in handlers/qdrant.
"""
