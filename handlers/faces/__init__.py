"""Faces: what one is, the models that find it and tell it from others, and their files.

    face                      what a face is
    detectors                 which detector the settings mean
    scrfd_detector, arcface   on onnx_model, the life that both share; scrfd_outputs: numbers ->
                              boxes; arcface_untrained: random weights
    onnx_vendors              the only file with insightface, onnxruntime and onnx
    runtime_choice            ONNX Runtime, or OpenVINO where it is quicker and answers the same:
                              runtimes is the trial, agreement its judge, portraits its pictures
    openvino_session          the only file with openvino, which is an extra
    batches                   how many pictures or faces at a time
    pixels, alignment         the only file with cv2; the geometry of 112x112 faces
    yunet_detector            OpenCV's detector
    cascade                   scikit-image's frontal cascade, for machines without weights
    files                     which files are the models

Nothing in a model's file is believed before it was tried on load.
"""
