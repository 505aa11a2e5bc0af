"""The public names, all at once: what `import geomed` offers one by one, and what configs may name shortly."""

from geomed.adapters.adapter import Adapter, adapter_state, attach, detach, merge
from geomed.adapters.adaptformer import AdaptFormer
from geomed.adapters.allocation_rule import AllocationRule
from geomed.adapters.bitfit import BitFit
from geomed.adapters.columns import Columns
from geomed.adapters.convpass import Convpass
from geomed.adapters.counts import trainable_table
from geomed.adapters.dvpt import DVPT
from geomed.adapters.earth_adapter import EarthAdapter, load_released_earth_adapter
from geomed.adapters.explora import ExPLoRA
from geomed.adapters.fact import FacT
from geomed.adapters.files import load_adapter, save_adapter
from geomed.adapters.layer_norm_tuning import LayerNormTuning
from geomed.adapters.lora import LoRA
from geomed.adapters.peft_tuner import Peft
from geomed.adapters.plan import Plan, make_plan
from geomed.adapters.prompts import Prompts
from geomed.adapters.rein import Rein
from geomed.adapters.repadapter import RepAdapter
from geomed.adapters.sensitivity import measure_sensitivity
from geomed.adapters.sharding import shard
from geomed.adapters.side_network import SideNetwork
from geomed.adapters.snell import SNELL, SNELLA
from geomed.adapters.spt import SPT
from geomed.adapters.ssf import SSF
from geomed.adapters.tune import Tune
from geomed.adapters.vpt import VPT
from geomed.backbones.cnn import Cnn
from geomed.backbones.inputs import Inputs
from geomed.backbones.tsvit import TSViT, TSViTSize
from geomed.backbones.vit import ViT, ViTSize
from geomed.data.area import Area, Labels, Legend, Masks, Reflectance
from geomed.data.case_ids import CaseIds
from geomed.data.crops import Crops, LocalCrops
from geomed.data.datamodule import DataModule
from geomed.data.duplicates import Duplicates
from geomed.data.folder_of_classes import FolderOfClasses
from geomed.data.image import Image
from geomed.data.med_mnist import MedMnist
from geomed.data.pastis import Pastis
from geomed.data.photometric import Photometric
from geomed.data.pretraining_data import PretrainingData
from geomed.data.rendition import Rendition
from geomed.data.scan_cache import ScanCache
from geomed.data.scan_files import Reading
from geomed.data.scan_table import ScanTable
from geomed.data.scenes import Scenes
from geomed.data.sentinel2_series import Sentinel2Series
from geomed.data.simulated_cohort import SimulatedCohort
from geomed.data.simulated_dates import SimulatedDates
from geomed.data.simulated_season import SimulatedSeason
from geomed.data.simulation.sensor import Response, Sensor
from geomed.data.targets import Findings, Grade, OneOf
from geomed.data.transforms import Augment
from geomed.data.unlabelled_rasters import UnlabelledRasters
from geomed.data.unlabelled_scans import UnlabelledScans
from geomed.evaluation.classification_scores import ClassificationScores
from geomed.evaluation.operating_point import SensitivityAtLeast, SpecificityAtLeast, Youden
from geomed.evaluation.patient_splits import AllIn, ByMark, ByPatient, ByPatientFold, BySite
from geomed.evaluation.splits import ByArea, ByBlocks, ByYear, Together
from geomed.heads.attention_mil import AttentionMIL
from geomed.heads.class_tokens import ClassTokens, ClassTokensPooled
from geomed.heads.linear import Linear
from geomed.heads.pooled import CumulativeLink, Pooled
from geomed.inference.maps import MapsCallback
from geomed.pixels import Pixels
from geomed.tasks.case_losses import BinaryCrossEntropy, CategoricalCrossEntropy
from geomed.tasks.centring import RunningMean, Sinkhorn
from geomed.tasks.classification import Classification
from geomed.tasks.collapse import Collapse
from geomed.tasks.dinov2 import DINOv2
from geomed.tasks.losses import CrossEntropy, Dice, Focal
from geomed.tasks.mae import MAE, DecoderSize, TrainedDecoder
from geomed.tasks.optimisation import Optimisation
from geomed.tasks.pretraining import Pretraining
from geomed.tasks.segmentation import Segmentation
from geomed.tasks.task import BaseWeights
from geomed.tokens import Tokens

__all__ = [
    "DVPT",
    "MAE",
    "SNELL",
    "SNELLA",
    "SPT",
    "SSF",
    "VPT",
    "AdaptFormer",
    "Adapter",
    "AllIn",
    "AllocationRule",
    "Area",
    "AttentionMIL",
    "Augment",
    "BaseWeights",
    "BinaryCrossEntropy",
    "BitFit",
    "ByArea",
    "ByBlocks",
    "ByMark",
    "ByPatient",
    "ByPatientFold",
    "BySite",
    "ByYear",
    "CaseIds",
    "CategoricalCrossEntropy",
    "ClassTokens",
    "ClassTokensPooled",
    "Classification",
    "ClassificationScores",
    "Cnn",
    "Collapse",
    "Columns",
    "Convpass",
    "Crops",
    "CrossEntropy",
    "CumulativeLink",
    "DINOv2",
    "DataModule",
    "DecoderSize",
    "Dice",
    "Duplicates",
    "EarthAdapter",
    "ExPLoRA",
    "FacT",
    "Findings",
    "Focal",
    "FolderOfClasses",
    "Grade",
    "Image",
    "Inputs",
    "Labels",
    "LayerNormTuning",
    "Legend",
    "Linear",
    "LoRA",
    "LocalCrops",
    "MapsCallback",
    "Masks",
    "MedMnist",
    "OneOf",
    "Optimisation",
    "Pastis",
    "Peft",
    "Photometric",
    "Pixels",
    "Plan",
    "Pooled",
    "Pretraining",
    "PretrainingData",
    "Prompts",
    "Reading",
    "Reflectance",
    "Rein",
    "Rendition",
    "RepAdapter",
    "Response",
    "RunningMean",
    "ScanCache",
    "ScanTable",
    "Scenes",
    "Segmentation",
    "SensitivityAtLeast",
    "Sensor",
    "Sentinel2Series",
    "SideNetwork",
    "SimulatedCohort",
    "SimulatedDates",
    "SimulatedSeason",
    "Sinkhorn",
    "SpecificityAtLeast",
    "TSViT",
    "TSViTSize",
    "Together",
    "Tokens",
    "TrainedDecoder",
    "Tune",
    "UnlabelledRasters",
    "UnlabelledScans",
    "ViT",
    "ViTSize",
    "Youden",
    "adapter_state",
    "attach",
    "detach",
    "load_adapter",
    "load_released_earth_adapter",
    "make_plan",
    "measure_sensitivity",
    "merge",
    "save_adapter",
    "shard",
    "trainable_table",
]
