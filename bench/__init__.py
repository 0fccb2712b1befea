"""Measurements, always as ratios within one run: `python -m bench.NAME` prints a table.

    decoders     what decoding in processes costs against threads
    decoding     exact against fast decoding of JPEGs, for embeddings and for faces
    scaled_faces its second half: what scaled decoding would do to faces
    pictures     what is measured on: generated JPEGs, or a folder's
    timing       how long something took
    table        how it is printed

Nothing here is asserted by a test: a machine's speed is its own.
"""
