"""Trains a prior, or adapts one to a domain.

python train.py configs/finetune.yaml data.root=DIR out=DIR [key=value …]
"""

import sys

from dig2dig.training.__main__ import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
