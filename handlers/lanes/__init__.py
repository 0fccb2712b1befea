"""Lanes: the devices, the one thread that owns each, and the life of a model on them.

    lane                      a lane: the one thread that owns a device, and what it is busy with;
                              lane_threads: that thread, and those of passes beside it
    gpus                      which GPUs there are
    device                    a model on all lanes, and which copy gets the next batch
    model_lanes               which lanes a model has
    model_copy                a model's copy on one lane, and its batch size; copy_standing:
                              whether a copy gets no batches for now, since it failed
    model_life                a copy on its lane's thread: loads, tests (self_test), idle unloading
    memory_ladder             what a model does when memory runs out, and how it recovers;
                              degradation: what is told of that; memory: which of the vendors'
                              errors mean it
    side_by_side              passes on several threads

A model touches its device on its lane's thread only.
"""
