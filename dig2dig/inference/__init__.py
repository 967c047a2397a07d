"""One run of infer.py: what is to do, what was done, and the files it writes."""
