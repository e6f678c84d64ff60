"""Finding sample 10,000,000 of a run, and what knowing all samples costs in memory.

Ours: the order is a function of the position. Peer: PyTorch's `RandomSampler` with batches skipped
one by one, which is how a loader without a state is brought to a position (accelerate's
`skip_first_batches`); its data set is a list of numbers, so that nothing but the order is measured.
No shard is read: the index is synthetic, 2,000 samples a shard.

    python benchmarks/order_seek.py [--rounds 5] [--out RESULT.json]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, RandomSampler

from lit_restore.data.entries import Column, Entries
from lit_restore.data.index import ShardIndex
from lit_restore.data.order import Order
from lit_restore.data.plan import PositionBatches, plan_batches
from lit_restore.data.reader import ShardSource

PER_SHARD, BATCH, WINDOW = 2000, 16, 16
SAMPLES = (10**5, 10**6, 10**7)
SIZE = 20_000_000
AT = 10_000_000


def synthetic(number: int) -> ShardIndex:
    """A shard of pictures with keys of 8 characters, as `shards make` writes them."""
    keys = "".join(f"{number * PER_SHARD + k:08d}" for k in range(PER_SHARD)).encode()
    image = Column(
        np.arange(PER_SHARD, dtype=np.int64) * 102_400 + 512,
        np.full(PER_SHARD, 100_000, np.uint32),
        np.zeros(PER_SHARD, np.uint8),
    )
    ends = np.arange(1, PER_SHARD + 1, dtype=np.uint32) * 8
    entries = Entries(np.frombuffer(keys, np.uint8), ends, {"image": image})
    return ShardIndex(Path(f"train-{number:06d}.tar"), entries, PER_SHARD * 102_400)


def ours(counts: list[int], start: int) -> list[int]:
    """The samples of the first batch from `start` on."""
    total = start + BATCH
    plan = plan_batches(total_samples=total, global_batch=BATCH, micro_batch=None, world=1)
    positions = next(iter(PositionBatches(plan, rank=0, start=start)))
    order = Order(counts, seed=0, window=WINDOW)
    return [order.index(position) for position in positions]


def skipping(size: int, start: int) -> list[int]:
    """The same of a shuffled loader that walks there."""
    sampler = RandomSampler(range(size), generator=torch.Generator().manual_seed(0))
    batches = iter(BatchSampler(sampler, BATCH, drop_last=True))
    return next(islice(batches, start // BATCH, None))


def seconds(function: Callable[[], list[int]]) -> float:
    start = time.perf_counter()
    assert len(function()) == BATCH
    return time.perf_counter() - start


def held(make: Callable[[], Any]) -> float:
    """Bytes that stay with what `make` returns, by `tracemalloc`."""
    gc.collect()
    tracemalloc.start()
    kept = make()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    return size


def used_order(counts: list[int]) -> Order:
    """An order that has been asked in a window, as in a run."""
    order = Order(counts, seed=0, window=WINDOW)
    order.index(0)
    return order


def memory(samples: int) -> dict[str, float]:
    """Bytes a sample of the index, the order, and the peer's permutation as a list and a tensor."""
    counts = [PER_SHARD] * (samples // PER_SHARD)
    index = held(lambda: ShardSource([synthetic(k) for k in range(len(counts))]))
    return {
        "samples": samples,
        "index": round(index / samples, 2),
        "order": round(held(lambda: used_order(counts)) / samples, 3),
        "permutation_tensor": 8.0,
        # RandomSampler makes a list of the whole permutation (torch.randperm(n).tolist()).
        "permutation_list": round(held(lambda: torch.randperm(samples).tolist()) / samples, 2),
    }


def main() -> None:
    """Print the figures and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    counts = [PER_SHARD] * (SIZE // PER_SHARD)
    mine, theirs = [], []
    for _ in range(args.rounds):
        mine.append(seconds(lambda: ours(counts, AT)))
        theirs.append(seconds(lambda: skipping(SIZE, AT)))
    result = {
        "what": f"seconds to the first batch of {BATCH} at sample {AT} of {SIZE}, and bytes a "
        "sample of what is kept in memory",
        "rounds": args.rounds,
        "seek_s": {
            "ours": [round(value, 5) for value in sorted(mine)],
            "skipping": [round(value, 3) for value in sorted(theirs)],
        },
        "ratio_median": round(statistics.median(b / a for a, b in zip(mine, theirs, strict=True))),
        "bytes_per_sample": [memory(samples) for samples in SAMPLES],
        "index": f"shards of {PER_SHARD}, one field, keys of 8 bytes; order: window of {WINDOW}",
        "machine": f"1 thread of a shared {platform.machine()} virtual machine, no GPU",
        "load_before": round(load, 2),
        "versions": {"torch": torch.__version__, "numpy": np.__version__,
                     "python": platform.python_version()},
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
