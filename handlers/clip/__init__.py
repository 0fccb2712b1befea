"""CLIP's image tower and text tower, in the precision and the passes that suit the processor.

    image_tower, text_tower   the two models, on tower: what they share
    catalog                   what is known of published weights, without torch and open_clip
    weights, checkpoint       found, fingerprinted, built; vendors: torch and open_clip themselves
    layers                    our own transformer
    arithmetic, precision     which precision it runs in; how two are measured and judged
    packing, reduction        its weights packed for a CPU, and in fewer bits
    passes                    several at a time on a CPU
    cuda, staging             on a GPU; pictures on their way there

Only these files import torch and open_clip.
"""
