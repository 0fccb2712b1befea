"""APIs of other products on the daemon's models: synchronous, bounded, without the queue.

embedder        the interface to the daemon's models
model_names     which names of models a client may ask for
waiting_room    how many requests are answered at a time, and how many may wait
immich          immich-machine-learning's API, with immich_requests: what its clients send
openai          OpenAI's embeddings, with openai_requests and openai_answers
"""
