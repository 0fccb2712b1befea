"""The REST contract: what each route takes and answers; `http_shim.openapi` generates from it.

codes        every code of an error, and what it means
answers      the bodies that are not jobs
operations   how an operation is described
openai_answers the bodies of OpenAI's embeddings API
job_operations, search_operations, queue_operations, worker_operations, health_operations,
openai_operations
the operations, as their routes are grouped
"""
