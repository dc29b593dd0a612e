"""GAN training as a library. Nothing in it imports Ray, Prefect or MLflow."""
