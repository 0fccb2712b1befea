"""Measurements, always as ratios within one run: `make bench`, or `python -m bench`.

`python -m bench --only NAME` runs one section of sections.py; each is a module with `measure`:

    end_to_end   image embeddings from request to event, against the machine's ceiling, the bare
                 model, a user's loop and a server of Immich's shape
    face_peers   faces from request to event, against insightface's FaceAnalysis
    faces        insightface's detect() and ours (section detection)
    clip         CLIP's image tower: open_clip's layers, ours in fp32, ours in bf16
    formats      decoding by format, against Pillow decoding every pixel
    task_types   what stages take of a job; three task types of the same pictures
    engines      one queue under several daemons, on SQLite and on PostgreSQL (engine_race: the
                 processes that are these daemons)
    gpu          the same on a GPU, where there is one (gpu_passes)
    overhead     the machinery of a job alone: free_daemon runs handlers that do nothing, and
                 free_rig asks it
    queue        claims and completions, beside raw_queue: SQLite without us
    startup      from the command to ready, and to the first result
    previews     previews looked at instead of originals: bytes, decoding, faces, vectors

What they are made of:

    rows         a row, its two sides, its ratio
    sections     which there are; one runs one, __main__ all, report prints and writes them
    machine      what they were measured on
    turns        processes that take turns: alone, plain, face_loop, face_alone are such
    rig          the whole daemon, asked over MQTT; used: what its parts take of the cores
    immich_server, immich_client: a server of Immich's shape, and who asks it
    face_weights, face_models: real face models where there are any, else random ones
    pictures     what is measured on: generated pictures, or a folder's
    timing       how long something took; table: how it is printed

Longer studies have a command each, `python -m bench.NAME`, and print tables of their own:

    clip, faces  as above, with more columns and sizes
    decoders     what decoding in processes costs against threads
    decoding     exact against fast decoding of JPEGs, for embeddings and for faces
    scaled_faces its second half: what scaled decoding would do to faces
    large        a million embedded vectors, step by step over a kept folder
    memory       what stays in memory with many jobs, pictures and events; models_memory: with
                 models loaded and unloaded

Past this machine (docs/scaling.md):

    capacity     `python -m bench.capacity`: what a number of pictures and hosts takes, and what
                 breaks first; capacity_model: the formulae and their sources;
                 capacity_limits: the parts of a deployment, and what each can do
    simulation   `python -m bench.simulation`: the flow as discrete events, on 1 to 1,000 hosts;
                 simulation_model: its stages; simulation_plot: the picture
    calibration  this machine's figures, which both start from

Nothing here is asserted by a test: a machine's speed is its own.
"""
