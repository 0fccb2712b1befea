"""The REST door: the same intake and the same queue as MQTT, never a second implementation."""
