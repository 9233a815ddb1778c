"""A process that lacks flt and runs the code of model cards: a line of JSON in, a line with what was printed out.

python card_code.py
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback


def printed(code: str, folder: str) -> str:
    """What a card's code prints in a folder, or the error in which it ends."""
    os.chdir(folder)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            exec(code, {})
        except Exception:
            return traceback.format_exc()
    return out.getvalue()


def main() -> None:
    """Answers until there are no more lines."""
    sys.modules["flt"] = None  # type: ignore[assignment]  # not even where it is installed beside the others
    for line in sys.stdin:
        print(json.dumps(printed(**json.loads(line))), flush=True)


if __name__ == "__main__":  # pytest imports every file here for its doctests
    main()
