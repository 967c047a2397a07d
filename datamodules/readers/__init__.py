"""Readers of source files: each turns one file into a Picture."""
