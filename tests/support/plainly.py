"""A process that lacks flt and loads exports as anybody would: a line of JSON in, a line out.

python -IS plainly.py <folder of packages> ...
"""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from typing import Any


def load(folder: str, base: str, auto: str, classes: int, merged: bool) -> Any:
    """The model of an export: merged, or peft's around a base with a head that was drawn."""
    import peft
    import transformers

    kind = getattr(transformers, auto)
    if merged:
        return kind.from_pretrained(folder)
    head = {} if auto.endswith("LM") else {"num_labels": classes, "ignore_mismatched_sizes": True}
    model = kind.from_pretrained(base, **head)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*(missing|unexpected).*")
        return peft.PeftModel.from_pretrained(model, folder)


def answer(batch: str, **order: Any) -> list[list[float]]:
    """Logits (batch, classes): what Python writes of a float is read as the same float."""
    import safetensors.torch
    import torch

    with torch.no_grad():
        return load(**order).eval()(**safetensors.torch.load_file(batch)).logits.tolist()


def main(packages: list[str]) -> None:
    """Answers until there are no more lines; fails where flt was imported."""
    sys.modules["flt"] = None  # type: ignore[assignment]  # not even where it is installed beside the others
    sys.path.extend(packages)
    assert importlib.util.find_spec("flt") is None
    for line in sys.stdin:
        print(json.dumps({"logits": answer(**json.loads(line))}), flush=True)
    assert not [name for name in sys.modules if name.startswith("flt.")]


if __name__ == "__main__":  # pytest imports every file here for its doctests
    main(sys.argv[1:])
