"""Adapters: few trained parameters inside a frozen backbone."""

from geomed.adapters.adapter import (
    Adapted,
    Adapter,
    adapted_modules,
    adapter_state,
    attach,
    base_state,
    detach,
    freeze_base,
    innermost,
    merge,
)
from geomed.adapters.adaptformer import AdaptFormer
from geomed.adapters.bitfit import BitFit
from geomed.adapters.lora import LoRA
from geomed.adapters.prompts import Prompts
from geomed.adapters.tune import Tune

__all__ = [
    "AdaptFormer",
    "Adapted",
    "Adapter",
    "BitFit",
    "LoRA",
    "Prompts",
    "Tune",
    "adapted_modules",
    "adapter_state",
    "attach",
    "base_state",
    "detach",
    "freeze_base",
    "innermost",
    "merge",
]
