"""MLflow runs, models and saved views; the only importer of MLflow."""
