"""Faults of what inferd depends on: broker, Qdrant, media store, disk, clock, a second daemon."""
