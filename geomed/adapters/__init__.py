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
from geomed.adapters.allocation_rule import AllocationRule
from geomed.adapters.bitfit import BitFit
from geomed.adapters.columns import Columns
from geomed.adapters.convpass import Convpass
from geomed.adapters.dvpt import DVPT
from geomed.adapters.earth_adapter import EarthAdapter
from geomed.adapters.explora import ExPLoRA
from geomed.adapters.fact import FacT
from geomed.adapters.layer_norm_tuning import LayerNormTuning
from geomed.adapters.lora import LoRA
from geomed.adapters.peft_tuner import Peft
from geomed.adapters.plan import Plan, make_plan
from geomed.adapters.prompts import Prompts
from geomed.adapters.rein import Rein
from geomed.adapters.repadapter import RepAdapter
from geomed.adapters.sensitivity import Sensitivity, measure_sensitivity
from geomed.adapters.side_network import SideNetwork
from geomed.adapters.snell import SNELL, SNELLA
from geomed.adapters.spt import SPT
from geomed.adapters.ssf import SSF
from geomed.adapters.tune import Tune
from geomed.adapters.vpt import VPT

__all__ = [
    "DVPT",
    "SNELL",
    "SNELLA",
    "SPT",
    "SSF",
    "VPT",
    "AdaptFormer",
    "Adapted",
    "Adapter",
    "AllocationRule",
    "BitFit",
    "Columns",
    "Convpass",
    "EarthAdapter",
    "ExPLoRA",
    "FacT",
    "LayerNormTuning",
    "LoRA",
    "Peft",
    "Plan",
    "Prompts",
    "Rein",
    "RepAdapter",
    "Sensitivity",
    "SideNetwork",
    "Tune",
    "adapted_modules",
    "adapter_state",
    "attach",
    "base_state",
    "detach",
    "freeze_base",
    "innermost",
    "make_plan",
    "measure_sensitivity",
    "merge",
]
