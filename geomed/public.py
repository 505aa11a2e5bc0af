"""The public names, all at once: what `import geomed` offers one by one, and what configs may name shortly."""

from geomed.adapters.adapter import Adapter, adapter_state, attach, detach, merge
from geomed.adapters.adaptformer import AdaptFormer
from geomed.adapters.bitfit import BitFit
from geomed.adapters.counts import trainable_table
from geomed.adapters.files import load_adapter, save_adapter
from geomed.adapters.lora import LoRA
from geomed.adapters.prompts import Prompts
from geomed.adapters.tune import Tune
from geomed.backbones.inputs import Inputs
from geomed.backbones.tsvit import TSViT, TSViTSize
from geomed.backbones.vit import ViT, ViTSize
from geomed.data.area import Area, Labels, Legend, Masks, Reflectance
from geomed.data.datamodule import DataModule
from geomed.data.pastis import Pastis
from geomed.data.sentinel2_series import Sentinel2Series
from geomed.data.simulated_season import SimulatedSeason
from geomed.evaluation.splits import ByArea, ByBlocks, ByYear, Together
from geomed.heads.class_tokens import ClassTokens, ClassTokensPooled
from geomed.heads.linear import Linear
from geomed.inference.maps import MapsCallback
from geomed.pixels import Pixels
from geomed.tasks.losses import CrossEntropy, Dice, Focal
from geomed.tasks.optimisation import Optimisation
from geomed.tasks.segmentation import Segmentation
from geomed.tasks.task import BaseWeights
from geomed.tokens import Tokens

__all__ = [
    "AdaptFormer",
    "Adapter",
    "Area",
    "BaseWeights",
    "BitFit",
    "ByArea",
    "ByBlocks",
    "ByYear",
    "ClassTokens",
    "ClassTokensPooled",
    "CrossEntropy",
    "DataModule",
    "Dice",
    "Focal",
    "Inputs",
    "Labels",
    "Legend",
    "Linear",
    "LoRA",
    "MapsCallback",
    "Masks",
    "Optimisation",
    "Pastis",
    "Pixels",
    "Prompts",
    "Reflectance",
    "Segmentation",
    "Sentinel2Series",
    "SimulatedSeason",
    "TSViT",
    "TSViTSize",
    "Together",
    "Tokens",
    "Tune",
    "ViT",
    "ViTSize",
    "adapter_state",
    "attach",
    "detach",
    "load_adapter",
    "merge",
    "save_adapter",
    "trainable_table",
]
