"""PostgreSQL as the queue's engine. This docstring is the map.

    backend      transactions over a pool, and whose fault an error is   statements  its dialect
    schema       the steps of the schema and their ledger                clock       whose time

Only these files know asyncpg; `daemon.queue_engine` imports them where the URL asks for it.
"""
