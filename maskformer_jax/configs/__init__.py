"""The recipes: `from maskformer_jax.configs import ade20k`.

A wheel has their files in this folder. A checkout has them in `configs/` at its top, under the same module names.
"""

import pathlib

_HERE = pathlib.Path(__file__).parent
FOLDER = _HERE if (_HERE / "base.py").exists() else _HERE.parents[1] / "configs"

# Not an entry in sys.path: `import configs` belongs to the user's project.
__path__[:] = [str(FOLDER)]
