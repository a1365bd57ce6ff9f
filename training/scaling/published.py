"""The cost model against published runs: what they say they took, and what `hardware.py` says.

longtake scale costs
"""

from __future__ import annotations

from typing import NamedTuple

from training.scaling.hardware import Cluster, run_cost


class PublishedRun(NamedTuple):
    """A figure of a published run; `parameters` are the active ones, `mfu` the published utilisation or 0."""

    name: str
    parameters: float
    tokens: float
    gpus: str
    mfu: float
    unit: str
    published: float
    source: str


class ComparedCost(NamedTuple):
    """A published figure and ours for it."""

    name: str
    unit: str
    published: float
    ours: float
    source: str

    @property
    def ratio(self) -> float:
        return self.ours / self.published


PUBLISHED = (
    PublishedRun("GPT-3 175B", 175e9, 300e9, "1xV100", 0, "PF-days", 3_640, "arXiv 2005.14165, table D.1"),
    # Lambda's estimate of 2020: 28 TFLOP/s of a V100 at 1.5 dollars an hour, 355 GPU-years.
    PublishedRun("GPT-3 175B", 175e9, 300e9, "1xV100", 28 / 125, "dollars", 4.6e6, "Lambda, 2020: 28 TFLOP/s, $1.5/h"),
    PublishedRun("PaLM 540B", 540e9, 780e9, "1xTPUv4", 0, "FLOPs", 2.56e24, "arXiv 2204.02311"),
    PublishedRun("Chinchilla 70B", 70e9, 1.4e12, "1xTPUv4", 0, "FLOPs", 5.76e23, "arXiv 2203.15556"),
    PublishedRun("Llama 3.1 405B", 405e9, 15.6e12, "1xH100", 0, "FLOPs", 3.8e25, "arXiv 2407.21783"),
    # 38 to 43 % in the paper's table 4; the model card's hours include what is lost to failures.
    PublishedRun("Llama 3.1 405B", 405e9, 15.6e12, "1xH100", 0.40, "GPU-hours", 30.84e6, "model card; MFU 38 to 43 %"),
    PublishedRun("DeepSeek-V3", 37e9, 14.8e12, "1xH800", 0.33, "GPU-hours", 2.664e6, "arXiv 2412.19437; MFU assumed"),
    PublishedRun("DeepSeek-V3", 37e9, 14.8e12, "1xH800", 0.33, "dollars", 5.328e6, "arXiv 2412.19437; MFU assumed"),
)
# Open-Sora 2.0's first stage (224 GPUs, 85k steps): its batch is not published, so only the money can be compared.
OPEN_SORA_GPU_DAYS, OPEN_SORA_DOLLARS = 2_240, 107_500


def compare_costs() -> list[ComparedCost]:
    """Return each published figure with ours."""
    rows = []
    for run in PUBLISHED:
        flops = 6 * run.parameters * run.tokens
        cluster = Cluster.parse(run.gpus, run.mfu or 1.0)
        cost = run_cost(flops, cluster)
        ours = {"PF-days": cost.petaflop_days, "FLOPs": flops, "GPU-hours": cost.gpu_hours, "dollars": cost.dollars}
        rows.append(ComparedCost(run.name, run.unit, run.published, ours[run.unit], run.source))
    price = Cluster.parse("1xH200").dollars_per_hour
    rows.append(
        ComparedCost(
            "Open-Sora 2.0, stage 1",
            "dollars",
            OPEN_SORA_DOLLARS,
            OPEN_SORA_GPU_DAYS * 24 * price,
            "arXiv 2503.09642: 2,240 GPU-days",
        )
    )
    return rows


def cost_lines(own: list[ComparedCost] | None = None) -> list[str]:
    """Return the comparison as lines of a table; `own` rows are measured runs of ours."""
    rows = [*compare_costs(), *(own or [])]
    lines = [f"{'run':28} {'unit':10} {'published':>10} {'ours':>10} {'ratio':>6}  source"]
    return lines + [
        f"{row.name:28} {row.unit:10} {row.published:10.4g} {row.ours:10.4g} {row.ratio:6.2f}  {row.source}"
        for row in rows
    ]
