"""A machine: what kind of devices it has, how many, how much memory each has, and how fast it multiplies."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import Literal

from rlhf.preflight.arithmetic import peak_flops

Engine = Literal["ddp", "fsdp2", "zero2", "zero3"]
GB = 1e9
UTILISATION = (0.2, 0.6)
"""Share of a GPU's data sheet that training reaches: small models and short rows the first, large ones the second.
Assumed."""
ASSUMED_FLOPS = 312e12
"""Operations a second of a GPU that is not known: an A100's, in bf16."""


@dataclass(frozen=True)
class Machine:
    """Where a project runs."""

    name: str
    kind: Literal["cpu", "gpu"]
    memory: float
    """Bytes of each device: of a GPU, or of a machine that computes on its CPU."""
    flops: float
    """Operations a second of a device: of square float32 products on a CPU, of a GPU's data sheet in bf16."""
    devices: int = 1
    engine: Engine = "ddp"
    """How several devices train together."""

    @property
    def sharded(self) -> bool:
        """Whether weights are sharded over the devices."""
        return self.devices > 1 and self.engine in ("fsdp2", "zero3")

    @classmethod
    def here(cls) -> Machine:
        """The machine that this runs on: its GPUs, else its CPU, whose speed is measured for a tenth of a second."""
        import torch

        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            flops = peak_flops(properties.name) or ASSUMED_FLOPS
            return cls(properties.name, "gpu", float(properties.total_memory), flops)
        memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        threads = torch.get_num_threads()
        return cls(f"{threads} CPU thread{'' if threads == 1 else 's'}", "cpu", memory, square_products())

    @classmethod
    def given(cls, devices: int | None = None, memory: float | None = None, engine: Engine = "ddp") -> Machine:
        """A machine as it is described, of GPUs where the memory of one is given; else this one.

        Args:
            devices: How many devices; None for one.
            memory: GB (10⁹ bytes) of a GPU; None for this machine's devices.
            engine: How several devices train together.
        """
        if memory is None:
            here = cls.here()
            shares = (devices or 1) if here.kind == "cpu" else 1  # processes of one CPU share its memory and its cores
            return replace(
                here, devices=devices or 1, engine=engine, memory=here.memory / shares, flops=here.flops / shares
            )
        return cls(f"GPU of {memory:g} GB, as fast as an A100", "gpu", memory * GB, ASSUMED_FLOPS, devices or 1, engine)

    @property
    def label(self) -> str:
        """Words for a table's title."""
        many = f"{self.devices} × " if self.devices > 1 else ""
        how = f", {self.engine.upper()}" if self.devices > 1 else ""
        return f"{many}{self.name}, {self.memory / GB:.1f} GB{how}"


def square_products(seconds: float = 0.1) -> float:
    """Operations a second of square float32 products: the best of at least three."""
    import torch

    size = 768
    times: list[float] = []
    left, right = torch.ones(size, size), torch.ones(size, size)
    begin = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)
