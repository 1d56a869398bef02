"""What a later stage will need is asked before it runs: of S3 and of MLflow, from where the question is put. No torch."""
