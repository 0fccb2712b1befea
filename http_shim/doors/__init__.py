"""Doors in the shape of other products, on the daemon's own models: synchronous, bounded, unqueued.

embedder        what stands behind the doors, and what it answers
model_names     which names of models a client may ask for
waiting_room    how many are let in at a time, and how many wait for it
immich          immich-machine-learning's door, with immich_requests: what its clients send
openai          OpenAI's embeddings, with openai_requests and openai_answers
"""
