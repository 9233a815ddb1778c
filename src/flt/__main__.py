"""Entry point of ``python -m flt``, which takes the same arguments as ``flt``."""

import sys

from flt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
