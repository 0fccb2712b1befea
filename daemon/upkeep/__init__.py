"""Upkeep: checks, repairs and removals beside the jobs, so that queue and vectors agree.

    audit          compares completed jobs with stored vectors, slice by slice (audit_slice);
                   audit_examination: the jobs and vectors of one picture
    scrub          embeds again what was lost when a machine went down: last_life (this machine),
                   server_watch (that of the Qdrant server)
    removal        removes all that is known of a picture
    pruning        removes jobs that ended long ago

All of it may be interrupted anywhere and goes on, or begins again, at the next start.
"""
