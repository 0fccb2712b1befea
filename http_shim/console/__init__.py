"""The console: one page at / on which a person sees the queue, looks at results and searches.

    parts        what the daemon passes in: events, pictures, what it runs
    page_routes  the page itself and its files in assets/, read once
    stream       events as they happen, over one long answer (server-sent events)
    feed         what is told beside events: the queue, failures, how the daemon is
    rate         jobs a second, and how long the rest will take
    picture_routes  small pictures out, new pictures in

The page uses REST for all else, and needs what REST needs: a token where authentication is on.
"""
