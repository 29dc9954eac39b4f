"""Several processes: `solstice.distributed.initialize()` once, at the top of a script.

```python
import solstice

solstice.distributed.initialize()  # then `srun -n 16 python train.py`
```
"""

from solstice.distributed._gather import gather
from solstice.distributed._initialize import initialize

__all__ = ["gather", "initialize"]
