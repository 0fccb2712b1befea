"""MQTT: the link to the broker, and what is said on it besides jobs.

    link             the link to the broker; client (the only file that imports gmqtt), reception,
                     sender, vendor: one connection of it
    broker_tls       how the broker's certificate is checked
    inbox            hands a message to the part that it is for
    presence         the contents of the availability topic
    worker_topics    the info and stats topics: what this daemon is, how busy it is
    home_assistant   announces this daemon to Home Assistant, obeys its switches; home_discovery:
                     the announcements: pure

Topics and payloads themselves are in topics, events and wire/.
"""
