"""The public names of mapping: what `import geomed` offers besides those of `geomed.public`."""

from geomed.data.mapped_scenes import Settings as MapSettings
from geomed.data.mapped_scenes import find_scenes
from geomed.inference.model import MapModel
from geomed.inference.outputs import Layers
from geomed.inference.plan import Tiling
from geomed.inference.worker import Job as MapJob
from geomed.mapping.files import Fields, map_files
from geomed.mapping.models import load_model

__all__ = [
    "Fields",
    "Layers",
    "MapJob",
    "MapModel",
    "MapSettings",
    "Tiling",
    "find_scenes",
    "load_model",
    "map_files",
]
