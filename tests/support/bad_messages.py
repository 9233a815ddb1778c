"""Bad messages of every kind."""

from __future__ import annotations

import json
import pickle

import safetensors.torch
import torch
from bad_inputs import HUGE, MARK, MESSAGE, OVERLAP, VAST, Evil, rewritten

from flt.protocol.messages import Plan, encode

MESSAGES = {
    "a pickle": pickle.dumps(Evil()),
    "a pickled tensor": pickle.dumps(torch.ones(2)),
    "nothing": b"",
    "cut off": encode(Plan())[:-3],
    "a huge header": HUGE,
    "a tensor of a huge size": VAST,
    "tensors that overlap": OVERLAP,
    "a tensor that goes past the end": rewritten(
        {**MESSAGE, "x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 8
    ),
    "safetensors of others": safetensors.torch.save({"x": torch.ones(1)}),
    "a class that isn't known": safetensors.torch.save(
        {}, metadata={"flt": json.dumps({"c": "os.system", "f": {"command": f"touch {MARK}"}})}
    ),
    "a tensor that isn't there": safetensors.torch.save({}, metadata={"flt": '{"t": "7"}'}),
}
