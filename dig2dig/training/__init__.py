"""One run of train.py: what learns, checkpoints, and the prior or adapter it leaves."""
