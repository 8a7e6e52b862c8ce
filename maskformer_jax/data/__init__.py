"""The dataset builders: `maskformer_jax.data.NAME.NAME_dataset_builder`. They import TensorFlow.

A wheel has their files in this folder. A checkout has them in `data/` at its top, under the same module names.
"""

import pathlib

_HERE = pathlib.Path(__file__).parent
FOLDER = _HERE if (_HERE / "shapes" / "scene.py").exists() else _HERE.parents[1] / "data"

# Not an entry in sys.path: `import data` belongs to the user's project.
__path__[:] = [str(FOLDER)]
