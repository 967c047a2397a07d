"""Comparisons on real pairs: ``python -m dig2dig.benchmark quality | theory | degraded``, each with ``--help``."""
