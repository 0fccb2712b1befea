"""Many daemons over one queue and one broker, while all of it is killed and cut off. The map.

    hosts        network namespaces: hosts with addresses of their own, that can be cut off
    queues       where the queue is, and how its database breaks
    fleet        broker, media store and daemons, each daemon on its host
    asker        a careful client: asks in messages of many, and repeats until it is answered
    trouble      what happens to the fleet by chance, with a seed
    verdict      what must be true afterwards
    run          `make cluster`: 20,000 jobs on 4 daemons, and a table

Daemons are forked by tests/crash's forge, with its models that need no weights.
"""
