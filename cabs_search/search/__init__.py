"""What is searched and proposed; the only importer of Optuna."""
