"""Loggers, and pictures of fusions for them."""
