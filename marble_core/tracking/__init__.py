"""The only package that speaks to MLflow: runs, the registry, the model card."""
