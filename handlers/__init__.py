"""What one picture goes through: fetch, decode, preprocess, infer, store.

A handler sees a job and its own siblings, never the queue, MQTT or SQL. Importing this package
imports no model library; those load when the daemon opens a handler.

    image_embedding, face_detection, face_embedding      the three handlers and their documented
                                                         inference classes
    inference    MLInference, the base of every model    device     the lane that owns the device
    clip         the only file that imports torch and open_clip
    faces        the only file that imports insightface and onnxruntime
    cascade      scikit-image's frontal cascade, for machines without weights
    weights      where model files come from             images     bytes -> upright RGB picture
    media_store  pictures in, face results out           vectors    the store interface
    qdrant_edge, qdrant_local, qdrant_server             one file per vector engine
"""
