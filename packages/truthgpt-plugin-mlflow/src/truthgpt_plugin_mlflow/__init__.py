"""The tracker `mlflow`: training runs in MLflow."""
