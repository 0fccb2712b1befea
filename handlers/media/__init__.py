"""The picture: fetched, decoded, shared by the jobs that want it; results and uploads.

    pictures                  what jobs share of a picture: fetched, decoded, its faces found once;
                              shared: work done once for all who want it; turns: a semaphore that
                              admits the most urgent first
    images                    bytes -> upright RGB picture: image_formats finds which format,
                              image_colours makes RGB of it; image_resizing: at the size wanted
    decoders                  the threads that decode, each with a process (decoder_pool,
                              decoder_process) that may crash
    file_costs                what a file would cost to open, before it is opened
    media_store               pictures in, face results out, over media_store_http (with
                              media_store_answers the only files with an HTTP client)
    upload_form               pictures into the media store
    clip_input                bytes -> the square that CLIP takes, large JPEGs the fast way
    origin                    whether what came is a preview, and which pixels results are told in
    previews                  small pictures for people to look at

Untrusted bytes are opened in the decoder processes only.
"""
