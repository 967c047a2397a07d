"""Comparisons on real pairs: ``python -m dig2dig.benchmark COMMAND``; ``--help`` lists the commands."""
