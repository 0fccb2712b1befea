"""Downloads: where model files come from, and that they come whole or not at all.

    weights                   finds a model's file: at hand, or from where it is published
    part_file, pack_archive   a file while it is downloaded; a pack of several in a zip
    folder_turn               one download at a time into a folder, over all processes

A file gets its name only once it is whole and its checksum was checked.
"""
