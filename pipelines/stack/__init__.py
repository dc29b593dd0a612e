"""One machine's own servers: Prefect with a worker, MLflow and a Ray head, started and ended
together, and found by the other commands."""
