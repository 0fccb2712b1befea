"""Models as files and as fingerprints: which are used, which are published, which are open.

    model_inventory, model_file
                              which models are used, and whose files they are
    model_sums                the checksums of the files used, for backups
    models_at_hand            models by fingerprint: image_models, face_models (face_specs: how
                              these are configured)
    claims                    claims each store's collection for its model, and checks the claim

No file is used before its checksum was checked.
"""
