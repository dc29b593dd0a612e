"""GAN training as a library. It knows of no engine: neither Ray nor Prefect nor MLflow."""
