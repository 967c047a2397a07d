"""Trains a prior, or adapts one to a domain.

python train.py configs/finetune.yaml data.root=DIR out=DIR [key=value …]
"""

import sys

from dig2dig.__main__ import train as main
from dig2dig.errors import last_resort

if __name__ == "__main__":
    sys.excepthook = last_resort
    raise SystemExit(main(sys.argv[1:]))
