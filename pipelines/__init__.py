"""What runs `gan_train`: Ray, Prefect, MLflow and the command line."""
