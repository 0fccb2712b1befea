"""A collection's model, changed while it is searched (docs/model-change.md).

    change, work              the change, step by step, and what its steps do
    failures, lease           pictures that it leaves out; only one daemon embeds at a time
    shadow                    the collection that is filled; image_shadow, face_shadow: how a
                              picture is embedded again
    inventory                 what a collection has, as point_inventory and face_inventory count it

The collection's record decides; what a process remembers of it is a cache.
"""
