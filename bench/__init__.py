"""Measurements, always as ratios within one run: `python -m bench.NAME` prints a table.

    end_to_end   the daemon against what its decode and model cost alone, and against a peer's way
    decoders     what decoding in processes costs against threads
    clip         CLIP's image tower: open_clip's layers, ours in fp32, ours in bf16
    faces        insightface's detect() and ours, one at a time and batches; face_models: networks
                 of the published ones' shapes
    decoding     exact against fast decoding of JPEGs, for embeddings and for faces
    scaled_faces its second half: what scaled decoding would do to faces
    pictures     what is measured on: generated JPEGs, or a folder's
    memory       what stays in memory with many jobs, pictures and events
    timing       how long something took
    table        how it is printed

Nothing here is asserted by a test: a machine's speed is its own.
"""
