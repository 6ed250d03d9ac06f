"""What a run was made with: the weights, their version, the decoding, the code and the machine."""

import hashlib
import importlib.metadata
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

import huggingface_hub
import torch

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "librosa", "soundfile", "numpy", "bitsandbytes")


def weights_checksum(model: torch.nn.Module) -> str:
    """SHA-256 of 64 values of each tensor, its name, type and shape: tells models apart without reading 15 GB."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        values = tensor.flatten()[:: max(1, tensor.numel() // 64)][:64].contiguous().cpu()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def model_commit(name: str, revision: str | None) -> str | None:
    """The commit of a model from the hub, as it lies in the cache; None for one that came with the book or a folder."""
    try:
        path = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
    except ValueError:  # no name of a repository, so a folder
        path = None
    return Path(path).parent.name if isinstance(path, str) else revision


def decoding(model: torch.nn.Module) -> dict:
    """How replies are written: greedily, and by whatever else the model's generation config says."""
    config = getattr(model, "generation_config", None)
    rest = config.to_diff_dict() if config is not None else {}
    return {"do_sample": False, "num_beams": 1} | {k: v for k, v in rest.items() if k != "transformers_version"}


def environment(lalm) -> dict:
    """What may matter and does not make a run another one."""
    device = next(lalm.model.parameters()).device
    on_gpu = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if on_gpu else str(device),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if on_gpu else [],
        "cuda": torch.version.cuda,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if on_gpu else None,
        "commit": _code_commit(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def _code_commit() -> str | None:
    """The commit of this code, with "-dirty" where it was changed since; None where it is no clone."""
    here = Path(__file__)
    git = ("git", "-C", str(here.parent))
    if _output(*git, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _output(*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _output(*command: str) -> str | None:
    """The first line that a command prints, or None if there is no such command or it fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.partition("\n")[0] if done.returncode == 0 else None
