"""The fleet: what several daemons at one broker and one queue know of each other.

    company        the next three, opened and closed together
    workers        all daemons at the broker
    wakes          wakes them when jobs wait
    role_keeper    which daemons read the requests for all

None of these is needed for jobs to be done once: leases and fences in the queue ensure that.
"""
