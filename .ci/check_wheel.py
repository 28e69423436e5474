"""Fails unless the fusible in the working directory comes with compiled kernels, and S4 runs by them."""

import shutil
from pathlib import Path

import torch

import fusible
from fusible.kernels.loading import load_kernels


assert Path(fusible.__file__).is_relative_to(Path.cwd()), f"{fusible.__file__} is another fusible"
assert not any(map(shutil.which, ("c++", "g++", "gcc", "clang++"))), "there is a compiler"
kernels = load_kernels()
assert kernels is not None and kernels.variant.is_relative_to(Path.cwd()), f"found {kernels}"
model = fusible.S4Model(fusible.S4Config(hidden_size=8, num_hidden_layers=1, mode="diag")).eval().fuse()
assert model.use_kernels
with torch.no_grad():
    model.use_kernels = False
    torch.manual_seed(0)
    values = torch.randn(1, 100, 1)
    expected = model(input_values=values).last_hidden_state
    model.use_kernels = True
    torch.testing.assert_close(model(input_values=values).last_hidden_state, expected, atol=1e-4, rtol=1e-4)
print("runs by", kernels.variant)
