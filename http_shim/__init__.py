"""The REST API, on the same intake and the same queue as MQTT."""
