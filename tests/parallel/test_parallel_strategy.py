"""Only strategies that the records and checkpoints work under are let through."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    StrategyRegistry,
)

from lit_restore.errors import UserError
from lit_restore.parallel.strategy import check_strategy

OFFERED = {
    "ddp",
    "ddp_find_unused_parameters_false",
    "ddp_find_unused_parameters_true",
    "fsdp2",
}
"""Of the names that Lightning registers; "auto" and "single_device" come from elsewhere."""


@pytest.mark.parametrize(
    "strategy", ["auto", "single_device", *sorted(OFFERED), DDPStrategy(), SingleDeviceStrategy()]
)
def test_one_device_ddp_and_fsdp2_pass(strategy: Any) -> None:
    check_strategy({"strategy": strategy})
    check_strategy({})


@pytest.mark.parametrize(
    "strategy",
    [
        *sorted(set(StrategyRegistry.available_strategies()) - OFFERED - {"single_device"}),
        "foo",
        None,
        DDPStrategy(start_method="fork"),
        FSDPStrategy(),
        ModelParallelStrategy(),
    ],
)
def test_every_other_strategy_is_refused_with_the_mend(strategy: Any) -> None:
    with pytest.raises(UserError, match=r"^trainer\.strategy: .* not offered; use ddp or fsdp2$"):
        check_strategy({"strategy": strategy})
