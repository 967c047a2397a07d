"""Fuses images.

python infer.py configs/ivf.yaml sources.visible=DIR_OR_FILE sources.infrared=DIR_OR_FILE out=DIR [key=value …]
"""

import sys

from dig2dig.__main__ import infer as main
from dig2dig.errors import last_resort

if __name__ == "__main__":
    sys.excepthook = last_resort
    raise SystemExit(main(sys.argv[1:]))
