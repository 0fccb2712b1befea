"""Kills the real daemon at named points, and holds what is left to the promises. The map.

    points       the table of fault points: where a daemon may be killed, by name
    faults       sets one of them up from outside, by wrapping; nothing of it is in the daemon
    stand_ins    models of real shapes that need no weights: a vector follows from a colour
    forge        a process that has imported the daemon and forks one life of it after the other
    lives        the lives of one daemon, each ended by its fault, the last by SIGTERM
    store        the demo media store, with pictures that fail, hang or are refused on purpose
    recorder     what a subscriber with a lasting session heard
    script       what a careful client asks for, step by step, over all deaths
    invariants   what must be true of every case afterwards
    queues       where it keeps its queue: a SQLite file, or PostgreSQL
    case         one case from an empty folder to the verdict
    run          `make crash`: cases by chance with a seed, and a table

A power cut is out of scope: what SIGKILL leaves in the kernel's cache, a power cut may lose.
"""
