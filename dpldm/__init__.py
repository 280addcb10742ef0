"""Differentially private image synthesis by latent diffusion.

An independent re-implementation, from the abstract alone, of "Differential Privacy Data Synthesis Method Based on
Latent Diffusion Model" (Ge, Zhang, Sun; Computer Science 51(3), 2024).

What most programs need can be had from here: `from dpldm import LatentDiffusion`. It is loaded when it is asked for, so
that `import dpldm` takes no time.
"""

__version__ = "0.1.0"

EXPORTS = {  # name -> the module that has it
    "Experiment": "runs.experiment",
    "Folders": "runs.experiment",
    "ImageData": "data.images",
    "Known": "data.images",
    "LatentDiffusion": "method.synthesizer",
    "Ledger": "privacy.accounting",
    "PrivacySpec": "privacy.mechanisms",
    "PrivateData": "privacy.guard",
    "SynthesisSettings": "method.settings",
    "evaluate": "evaluation.protocol",
    "load": "data.datasets",
    "load_own": "data.own",
    "load_synthesizer": "runs.saved",
    "run": "runs.run",
    "settings_for": "recipes",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in EXPORTS:
        raise AttributeError(f"module 'dpldm' has no attribute {name!r}: expected a module, or {', '.join(EXPORTS)}")
    return getattr(import_module(f"dpldm.{EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *EXPORTS])
