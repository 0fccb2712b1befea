"""PostgreSQL as the queue's engine. This docstring is the map.

    backend      transactions over a pool; what an error means           statements  its dialect
    schema       the steps of the schema and their ledger                clock       the server's
    hosts        which of several servers is the primary
    vitals       what an operator needs to know of the server
    inspection   looks at a queue there, changes nothing      transfer   moves one there

Only backend, hosts and transfer know asyncpg; `daemon.queue.engine` imports the engine where the
URL asks for it.
"""
