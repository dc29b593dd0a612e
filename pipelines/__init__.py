"""Runs the library `gan_train` with Ray, Prefect, MLflow and a command line."""
