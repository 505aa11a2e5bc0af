"""The public names, all at once: what `import geomed` offers one by one, and what configs may name shortly."""

from geomed.adapters.adaptformer import AdaptFormer
from geomed.adapters.adapter import Adapter, adapter_state, attach, detach, merge
from geomed.adapters.bitfit import BitFit
from geomed.adapters.files import load_adapter, save_adapter
from geomed.adapters.lora import LoRA
from geomed.adapters.prompts import Prompts
from geomed.adapters.tune import Tune
from geomed.backbones.inputs import Inputs
from geomed.backbones.tsvit import TSViT, TSViTSize
from geomed.backbones.vit import ViT
from geomed.data.datamodule import DataModule
from geomed.data.pastis import Pastis
from geomed.data.sentinel2_series import Sentinel2Series
from geomed.data.simulated_season import SimulatedSeason
from geomed.heads.class_tokens import ClassTokens, ClassTokensPooled
from geomed.heads.linear import Linear
from geomed.pixels import Pixels
from geomed.tasks.losses import CrossEntropy, Dice, Focal
from geomed.tasks.segmentation import Segmentation
from geomed.tokens import Tokens

__all__ = [
    "AdaptFormer",
    "Adapter",
    "BitFit",
    "ClassTokens",
    "ClassTokensPooled",
    "CrossEntropy",
    "DataModule",
    "Dice",
    "Focal",
    "Inputs",
    "Linear",
    "LoRA",
    "Pastis",
    "Pixels",
    "Prompts",
    "Segmentation",
    "Sentinel2Series",
    "SimulatedSeason",
    "TSViT",
    "TSViTSize",
    "Tokens",
    "Tune",
    "ViT",
    "adapter_state",
    "attach",
    "detach",
    "load_adapter",
    "merge",
    "save_adapter",
]
