"""Settings are checked before anything starts, and without PyTorch's compiler, which takes a second
or two to import."""

from __future__ import annotations

import subprocess
import sys

CHECKS_ALL = """
import sys
from gan_train import recipes
from gan_train.adversary import ImageShape
from gan_train.training.schedule import world_sizes

for path in sorted(recipes.SHIPPED.glob("*.yaml")):
    config = recipes.load(path.stem)
    channels = 1 if config.data.colour == "grey" else 3
    world_sizes(config, ImageShape(channels, config.data.resolution, ("a", "b")))
print("torch._dynamo" in sys.modules)
"""


def test_checking_the_networks_of_every_recipe_imports_no_compiler() -> None:
    told = subprocess.run([sys.executable, "-c", CHECKS_ALL], capture_output=True, text=True)
    assert told.stdout == "False\n", told.stderr
