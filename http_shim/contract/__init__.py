"""What the REST door takes and answers, described; `http_shim.openapi` makes the document of it.

codes        every code of an error, and what it means
answers      the bodies that are not jobs
operations   how an operation is described
openai_answers the same of the door for OpenAI's clients
job_operations, search_operations, queue_operations, worker_operations, health_operations,
openai_operations
the operations, as their routes are grouped
"""
