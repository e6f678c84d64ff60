"""Peak arithmetic of known devices: what a model's FLOP/s are a share of (MFU).

Dense figures (no 2:4 sparsity), tensor cores with float32 accumulation, in TFLOP/s. A data sheet
that gives only figures "with sparsity" is halved. Sources, all NVIDIA's:

- V100: V100 data sheet (2020). T4: T4 data sheet (2019).
- A100: A100 80GB data sheet (2021). RTX 3090: GA102 whitepaper v2, appendix A.
- L4, L40S: their product data sheets (2023). RTX 4090: Ada whitepaper v2, appendix A.
- H100, H200: H100 (2024) and H200 (2024) data sheets; PCIe: H100 PCIe product brief (2022).
- B200: HGX B200, Blackwell data sheet (2025), an eighth of the eight GPUs'.
"""

from __future__ import annotations

import re

import torch

_HOPPER = {"bf16": 989.4, "fp16": 989.4, "tf32": 494.7, "fp32": 66.9}
_HOPPER_NVL = {"bf16": 835.5, "fp16": 835.5, "tf32": 417.5, "fp32": 60.0}

_TERA: tuple[tuple[str, dict[str, float]], ...] = (
    (r"\bB200\b", {"bf16": 2250, "fp16": 2250, "tf32": 1125, "fp32": 75}),
    (r"\bH[12]00 NVL\b", _HOPPER_NVL),
    (r"\bH200\b", _HOPPER),
    (r"\bH100 PCIe\b", {"bf16": 756, "fp16": 756, "tf32": 378, "fp32": 51.2}),
    (r"\bH100\b.*(\bHBM3\b|\bSXM5?\b)", _HOPPER),
    (r"\bA100\b", {"bf16": 312, "fp16": 312, "tf32": 156, "fp32": 19.5}),
    (r"\bL40S\b", {"bf16": 362.05, "fp16": 362.05, "tf32": 183, "fp32": 91.6}),
    (r"\bL4\b", {"bf16": 121, "fp16": 121, "tf32": 60, "fp32": 30.3}),
    (r"\bRTX 4090$", {"bf16": 165.2, "fp16": 165.2, "tf32": 82.6, "fp32": 82.6}),
    (r"\bRTX 3090$", {"bf16": 71, "fp16": 71, "tf32": 35.6, "fp32": 35.6}),
    (r"\bV100S\b", {"fp16": 130, "fp32": 16.4}),
    (r"\bV100-SXM[23]\b", {"fp16": 125, "fp32": 15.7}),
    (r"\bV100-PCIE\b", {"fp16": 112, "fp32": 14}),
    (r"\bT4\b", {"fp16": 65, "fp32": 8.1}),
)
"""Pattern of the name that CUDA reports → arithmetic → TFLOP/s; the first match holds."""


def peak_flops(device: str, arithmetic: str | None) -> float | None:
    """Peak FLOP/s of one device.

    Args:
        device: the name that CUDA reports, as "NVIDIA H100 80GB HBM3".
        arithmetic: "bf16", "fp16", "tf32", "fp32", or None for another.

    Returns:
        FLOP/s, or None where the device, its part (a MIG slice) or the arithmetic is not known.
    """
    if arithmetic is None or re.search(r"\bMIG\b", device):
        return None
    for pattern, known in _TERA:
        if re.search(pattern, device):
            # A device without TF32 computes float32 as such, whatever is allowed.
            found = known.get(
                "fp32" if arithmetic == "tf32" and "tf32" not in known else arithmetic
            )
            return None if found is None else found * 1e12
    return None


def arithmetic_of(precision: str) -> str | None:
    """What the multiplications of a training are done in.

    Args:
        precision: the Trainer's, as "bf16-mixed" or "32-true".

    Returns:
        "bf16", "fp16", "tf32" (where torch may use it for convolutions or products of matrices:
        the higher of the two peaks, so that no utilisation looks better than it is), "fp32", or
        None for any other.
    """
    kind = precision.partition("-")[0]
    if kind == "32":
        allowed = (
            torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
            torch.backends.cuda.matmul.fp32_precision,
        )
        return "tf32" if "tf32" in allowed else "fp32"
    return {"bf16": "bf16", "16": "fp16"}.get(kind)


def device_peak(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s of `device` in a Trainer's precision; None on CPUs and where it is not known."""
    if device.type != "cuda":
        return None
    return peak_flops(torch.cuda.get_device_name(device), arithmetic_of(precision))
