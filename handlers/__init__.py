"""What one picture goes through: fetch, decode, preprocess, infer, store.

A handler sees a job and its own siblings, never the queue, MQTT or SQL. Importing this package
imports no model library; those load when the daemon opens a handler.

    assembly                 builds the configured handlers over the parts they share: models by
                             clip_opener and face_opener, on model_lanes
    handler_set              the open handlers, and what the daemon asks of them
    image_embedding, image_embedding_handler, face_detection, face_embedding,
    face_embedding_handler   the documented inference classes and the three handlers
    inference                MLInference, the base of every model, and Provenance
    lane                     the one thread that owns a device, and what it is busy with;
                             lane_threads: it, and those beside it; gpus: which devices there are
    device                   a model on all lanes, and who has the next batch; model_copy: its
                             copy on one, and how many go there together; model_life: that on the
                             lane's thread: loads, tests (self_test), idle unloading; copy_standing:
                             whether it is left out since it failed
    memory_ladder            what a model does when memory runs out, and how it comes back;
                             degradation: what is told of it; memory: the vendors' words for it
    clip, clip_text          CLIP's image tower and text tower, on clip_tower; with clip_checkpoint,
                             clip_vendors, clip_weights (found, fingerprinted, built), clip_layers
                             (our own transformer), clip_packing and clip_reduction (its weights
                             packed for a CPU, and in fewer bits) and clip_arithmetic (which
                             precision it runs in) the only files with torch and open_clip;
                             clip_precision: how two precisions are measured and judged;
                             clip_catalog: what is known of published weights without them;
                             clip_passes: several at a time on a CPU; clip_cuda: on a GPU;
                             clip_staging: pictures on their way there
    text_embedding           the documented inference class of texts
    scrfd_detector, arcface  the detector and the recogniser, on onnx_model, the life they share;
                             onnx_vendors: the only file with insightface, onnxruntime and onnx,
                             face_pixels: with cv2; scrfd_outputs: numbers -> boxes; face_batches:
                             how many at a time, side_by_side: on several threads;
                             arcface_untrained: random weights
    detectors                which of the detectors the settings mean; yunet_detector: OpenCV's
    faces                    what a face is; face_files: which files are its models,
                             face_alignment: the geometry of 112x112 faces
    cascade                  scikit-image's frontal cascade, for machines without weights
    weights                  where model files come from; part_file, pack_archive, folder_turn:
                             whole or not at all, and one download at a time
    model_inventory, model_file, task_types
                             which models are used, and whose files they are
    images                   bytes -> upright RGB picture: image_formats finds which format,
                             image_colours makes RGB of it; image_resizing: at the size wanted
    decoders                 the threads that do it, each with a
                             process (decoder_pool, decoder_process) that may crash;
                             file_costs: what costs too much to be opened at all
    clip_input               bytes -> the square that CLIP takes, large JPEGs the fast way
    pictures                 what jobs share of a picture: fetched, decoded, searched once; shared:
                             work done once for all who want it; turns: a bound, the urgent first
    media_store              pictures in, face results out, over media_store_http (with
                             media_store_answers the only files with an HTTP client);
                             upload_form: and up; origin: whether what came is a preview, and
                             which pixels results are told in
    previews                 small pictures for people to look at
    image_store, face_store  the documented stores, on qdrant_store and its base vector_store;
                             claims: one model a collection, by a collection_claim;
                             engine_choice: where vectors lie;
                             server_layout: how a server spreads and compresses them
    direct                   vectors and faces at once, for the doors of other products' shapes
    search, query_vectors, duplicates
                             what is near a text, a picture, a face, or something stored;
                             filters: only among these; stored_vectors: what there is
    collection_parts, model_record
                             what is behind a collection's fixed name: which model's vectors answer
    model_change, model_change_work, shadow
                             changes that model while it is searched (docs/model-change.md); with
                             model_failures, model_lease; inventory: what a part has, as
                             point_inventory and face_inventory count it; image_shadow, face_shadow:
                             a picture embedded again; faceless: pictures without a face
    models_at_hand           models by fingerprint: image_models, face_models (face_specs: how
                             these are configured)
    vector_engine, vector_points
                             what stores and engines say to each other
    timings, store_demo      how long each step took; where a store's demo keeps its vectors
    blame, disk_room         who is at fault for a failure; whether a disk has room for vectors
    qdrant_edge, qdrant_local, qdrant_server
                             one file per engine; qdrant_models, engine_folder, background_loop:
                             what they share; server_life: which process of a server answers,
                             server_errors: what its failures mean
    vector_snapshots         copies of an embedded engine's folder, for backups; vectors_at_rest:
                             the folder itself while nobody has it open, and records_at_rest:
                             which models are in it; model_sums: the models' files
    vector_copying           collections from one engine to another
    edge_shard, edge_vendor  one collection of qdrant_edge, and its words for ours
    edge_upkeep              has its index built while it is used: edge_schedule (when), edge_copy
                             (the folders, crashes), edge_process (who does it), write_gate (who
                             waits meanwhile)
"""
