"""From folders of photographs to protected files, a table and a manifest.

plan.py      which files, written where; every conflict found before the work begins
options.py   what one run is told
run.py       read, group by memory, perturb, quantise, write, measure; one broken image stops
             nothing, an interrupt leaves whole files
results.py   what became of each image
manifest.py  the whole run as JSON
memory.py    images that are not files: PIL, numpy, torch
api.py       udp_fast.protect
"""

from .options import Options
from .plan import PlanError, Task, plan_files, unused_masks
from .results import ImageResult, RunProgress, RunResult, Status
from .run import run

__all__ = [
    "ImageResult",
    "Options",
    "PlanError",
    "RunProgress",
    "RunResult",
    "Status",
    "Task",
    "plan_files",
    "run",
    "unused_masks",
]
