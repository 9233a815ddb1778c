"""``python -m flt key=value``: the same as ``flt train key=value``."""

import sys

from flt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
