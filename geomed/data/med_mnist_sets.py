"""The sets of MedMNIST: what is learned on each, and how many images the official split gives each part."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Task = Literal["binary", "multi-class", "multi-label", "ordinal"]

_ORGANS = (
    *("bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left"),
    *("lung-right", "pancreas", "spleen"),
)
_ORGANS_3D = (
    *("liver", "kidney-right", "kidney-left", "femur-right", "femur-left", "bladder", "heart", "lung-right"),
    *("lung-left", "spleen", "pancreas"),
)


@dataclass(frozen=True, kw_only=True)
class MedMnistSet:
    """What is known of one of the sets."""

    task: Task
    """What is to be learned."""

    classes: tuple[str, ...]
    """Class names in index order."""

    counts: tuple[int, int, int]
    """Images of train, val and test."""

    channels: int = 1
    """1 of grey images, 3 of coloured ones."""

    volume: bool = False
    """It holds volumes."""

    by_patient: bool = False
    """Its description says that train, val and test are of different scans or patients."""

    licence: str = "CC BY 4.0"
    """As published."""


SETS: Mapping[str, MedMnistSet] = MappingProxyType(
    {
        "pathmnist": MedMnistSet(
            task="multi-class",
            classes=(
                *("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa"),
                *("cancer-associated stroma", "colorectal adenocarcinoma epithelium"),
            ),
            counts=(89_996, 10_004, 7_180),
            channels=3,
        ),
        "chestmnist": MedMnistSet(
            task="multi-label",
            classes=(
                *("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia"),
                *("pneumothorax", "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia"),
            ),
            counts=(78_468, 11_219, 22_433),
        ),
        "dermamnist": MedMnistSet(
            task="multi-class",
            classes=(
                *("actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma"),
                *("benign keratosis-like lesions", "dermatofibroma", "melanoma", "melanocytic nevi"),
                "vascular lesions",
            ),
            counts=(7_007, 1_003, 2_005),
            channels=3,
            licence="CC BY-NC 4.0",
        ),
        "octmnist": MedMnistSet(
            task="multi-class",
            classes=("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
            counts=(97_477, 10_832, 1_000),
        ),
        "pneumoniamnist": MedMnistSet(task="binary", classes=("normal", "pneumonia"), counts=(4_708, 524, 624)),
        "retinamnist": MedMnistSet(
            task="ordinal", classes=("0", "1", "2", "3", "4"), counts=(1_080, 120, 400), channels=3
        ),
        "breastmnist": MedMnistSet(task="binary", classes=("malignant", "normal, benign"), counts=(546, 78, 156)),
        "bloodmnist": MedMnistSet(
            task="multi-class",
            classes=(
                *("basophil", "eosinophil", "erythroblast"),
                "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
                *("lymphocyte", "monocyte", "neutrophil", "platelet"),
            ),
            counts=(11_959, 1_712, 3_421),
            channels=3,
        ),
        "tissuemnist": MedMnistSet(
            task="multi-class",
            classes=(
                *("Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule", "Glomerular endothelial cells"),
                *("Interstitial endothelial cells", "Leukocytes", "Podocytes", "Proximal Tubule Segments"),
                "Thick Ascending Limb",
            ),
            counts=(165_466, 23_640, 47_280),
        ),
        "organamnist": MedMnistSet(
            task="multi-class", classes=_ORGANS, counts=(34_561, 6_491, 17_778), by_patient=True
        ),
        "organcmnist": MedMnistSet(task="multi-class", classes=_ORGANS, counts=(12_975, 2_392, 8_216), by_patient=True),
        "organsmnist": MedMnistSet(task="multi-class", classes=_ORGANS, counts=(13_932, 2_452, 8_827), by_patient=True),
        "organmnist3d": MedMnistSet(
            task="multi-class", classes=_ORGANS_3D, counts=(971, 161, 610), volume=True, by_patient=True
        ),
        "nodulemnist3d": MedMnistSet(
            task="binary", classes=("benign", "malignant"), counts=(1_158, 165, 310), volume=True
        ),
        "adrenalmnist3d": MedMnistSet(
            task="binary", classes=("normal", "hyperplasia"), counts=(1_188, 98, 298), volume=True, by_patient=True
        ),
        "fracturemnist3d": MedMnistSet(
            task="multi-class",
            classes=("buckle rib fracture", "nondisplaced rib fracture", "displaced rib fracture"),
            counts=(1_027, 103, 240),
            volume=True,
        ),
        "vesselmnist3d": MedMnistSet(
            task="binary", classes=("vessel", "aneurysm"), counts=(1_335, 191, 382), volume=True
        ),
        "synapsemnist3d": MedMnistSet(
            task="binary",
            classes=("inhibitory synapse", "excitatory synapse"),
            counts=(1_230, 177, 352),
            volume=True,
        ),
    }
)
"""The twelve sets of images and six of volumes. Sources: medmnist/info.py of github.com/MedMNIST/MedMNIST, version
3.0.2 (commit 805b742); Yang et al., "MedMNIST v2", Scientific Data 10:41, 2023."""
