"""``python -m flt key=value``: the same as ``flt train key=value``."""

import sys

from flt.cli import main

if __name__ == "__main__":
    sys.exit(main())
