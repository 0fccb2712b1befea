"""What a backup is made of; the commands in `daemon.cli` put the parts together.

archive          the tar file: checked, taken apart; archive_writer: written
destination      where that file appears: whole or not at all
queue_copy       the queue's SQLite file as of one moment, and as nobody's who lives
settings_copy    what was configured, without secrets
qdrant_server    the collections of a Qdrant server, by its snapshots
"""
