"""Bytes from elsewhere: S3, the model hub, the web, the model cache. Imports no torch."""
