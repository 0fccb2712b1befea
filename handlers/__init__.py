"""What one picture goes through: fetch, decode, preprocess, infer, store.

A handler sees a job and its own siblings, never the queue, MQTT or SQL. Importing this package
imports no model library; those load when the daemon opens a handler.

    assembly       builds the configured handlers over the parts they share
    clip_opener, face_opener
                   its models as the settings want them, on their lanes
    handler_set    the open handlers, and what the daemon asks of them
    image_embedding, image_embedding_handler, face_detection, face_embedding,
    face_embedding_handler, text_embedding
                   the documented inference classes and the three handlers
    inference      MLInference, the base of every model, and Provenance
    image_store, face_store
                   the documented stores
    direct         vectors and faces at once, without a job: for the APIs of other products
    vector_copying collections from one engine to another
    task_types     which task type uses which models
    timings, store_demo, blame
                   how long each step took; where a store's demo keeps its vectors; whether a
                   dependency or a picture is at fault

    media/         the picture: fetched, decoded, shared; results and previews to the media store
    lanes/         the devices, their threads, and a model's life on them
    models/        which models are used, and which are at hand
    downloads/     where model files come from
    clip/          CLIP's two towers
    faces/         the detectors and the recogniser
    vectors/       the stores: one model a collection, one fixed name, copies for backups
    qdrant/        the engines under the stores: embedded, in memory, a server
    search/        what is near a text, a picture, a face, or something stored
    model_change/  a collection's model changed while it is searched

Each folder's docstring is its own map; no two folders import each other.
"""
