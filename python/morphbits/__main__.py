"""`python -m morphbits` and `python python/morphbits`: the command `morphbits`."""

import sys
from pathlib import Path

if not __package__:  # run as a folder: its parent is where packages are found
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from morphbits.cli import main

if __name__ == "__main__":
    main()
