"""Log level of torch's C++ library, an environment variable. This module doesn't import torch."""

from __future__ import annotations

import os


def hide_cpp_warnings() -> None:
    """Sets TORCH_CPP_LOG_LEVEL to ERROR, unless the user has set it. Warnings about a dead process are 24 lines of C++.

    torch reads the variable when it is imported. If torch has been imported already, the variable still has an effect
    in the processes that this process starts, and these are the processes that print the warnings.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
