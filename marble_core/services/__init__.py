"""The S3 and MLflow servers of a laptop run."""
