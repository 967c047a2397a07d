"""Converts priors, once.

dig2dig prior convert CHECKPOINT.pt FOLDER     an ADM checkpoint as a diffusers folder
dig2dig prior merge PRIOR ADAPTER FOLDER       a prior with a LoRA adapter in its weights, as a diffusers folder
"""

import sys
from pathlib import Path

from dig2dig.errors import told


@told
def main(argv: list[str]) -> int:
    """Runs one of the commands and gives the exit code."""
    match argv:
        case ["convert", checkpoint, folder]:
            prior, adapter = checkpoint, ""
        case ["merge", prior, adapter, folder]:
            pass
        case _:
            asked = bool({"--help", "-h"} & set(argv))
            print(__doc__, file=sys.stdout if asked else sys.stderr)
            return 0 if asked else 2
    from dig2dig.config import PriorConfig
    from dig2dig.priors.build import save_prior
    from dig2dig.priors.load import open_prior

    save_prior(open_prior(PriorConfig(prior, adapter, precision="fp32")), Path(folder))
    print(f"{folder}: diffusers folder written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
