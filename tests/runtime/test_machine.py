"""What is asked of a machine's memory, before it is asked for."""

import pytest
import torch

from hfgen.runtime.errors import UserError
from hfgen.runtime.machine import Machine, is_out_of_memory


def test_what_fits_is_silent_and_what_cannot_is_one_line():
    machine = Machine("cpu", 2_000_000_000)
    machine.require(2_000_000_000, "it")
    machine.require_images(10_000, (3, 100, 100), "`batch` 10000")
    Machine("mps").require(10**18, "it")  # which does not say how much it has
    with pytest.raises(UserError, match="^`size` 9 need 2 GB, and this machine has 2 GB: use less.$"):
        machine.require(2_000_000_001, "`size` 9")
    with pytest.raises(UserError, match="^`batch` 20000: 20000 images of 3x100x100 at once need 2.4 GB, and"):
        machine.require_images(20_000, (3, 100, 100), "`batch` 20000")


def test_memory_that_runs_out_is_told_from_other_errors():
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried"))
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**55, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
    assert not is_out_of_memory(RuntimeError("The size of tensor a (4) must match")) and not is_out_of_memory(
        OSError()
    )
