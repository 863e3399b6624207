"""Clips to embeddings, scores, and a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from csip.sections.bounds import STRICT, in_range


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedConfig:
    """How a part becomes one embedding, or several.

    Attributes:
        sampling: "restricted" takes the first frame of each of T equal chunks; "dense" averages over every
            consecutive window of T frames; "both" does one after the other and reports them side by side.
        unit: what is ranked: a whole "tracklet" (or part of one), or every "clip" of T consecutive frames of it.
        clip_stride: frames from the begin of one clip to that of the next; the last clip ends with the tracklet.
        histogram_bins: bins of hue, saturation and value in the colour-histogram baseline.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    sampling: Literal["restricted", "dense", "both"] = "restricted"
    unit: Literal["tracklet", "clip"] = "tracklet"
    clip_stride: int = 4
    histogram_bins: tuple[int, int, int] = (16, 4, 4)

    def __post_init__(self) -> None:
        in_range(self, clip_stride=(1, 100_000))
        if min(self.histogram_bins) < 1:
            raise ValueError(f"EmbedConfig.histogram_bins: got {self.histogram_bins}, expected 1 or more each.")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """How embeddings are ranked and scored (datasets.md section 1).

    Attributes:
        exclude_same_camera: a gallery item of the query's own person and camera does not count. None: as the
            protocol has it; self-labelled video may have one camera only, so there only the query's own part is out.
        query_in_gallery: the queries stand in the gallery too. None: as the protocol has it.
        ranks: the rank-k figures that are reported.
        rerank: k-reciprocal re-ranking of the distances.
        rerank_k1: neighbours that may be reciprocal.
        rerank_k2: neighbours whose encodings are averaged.
        rerank_weight: of the original distance in the sum with the Jaccard distance (lambda).
        bootstrap: draws of the queries, with replacement, that the confidence intervals follow from; 0 for none.
        confidence: share of the draws inside an interval.
        bootstrap_seed: of the draws.
        breakdown: report each pair of cameras, and each class of query length, by itself as well.
        lengths: frames at which one class of query length ends and the next begins.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    exclude_same_camera: bool | None = None
    query_in_gallery: bool | None = None
    ranks: tuple[int, ...] = (1, 5, 10, 20)
    rerank: bool = False
    rerank_k1: int = 50
    rerank_k2: int = 15
    rerank_weight: float = 0.3
    bootstrap: int = 1000
    confidence: float = 0.95
    bootstrap_seed: int = 0
    breakdown: bool = True
    lengths: tuple[int, ...] = (16, 32, 64, 128)

    def __post_init__(self) -> None:
        in_range(self, rerank_k1=(1, 10_000), rerank_k2=(1, 10_000), rerank_weight=(0, 1))
        in_range(self, bootstrap=(0, 1_000_000), confidence=(0.01, 0.999), bootstrap_seed=(0, 2**63 - 1))
        if list(self.lengths) != sorted(set(self.lengths)) or min(self.lengths, default=1) < 1:
            raise ValueError(f"EvaluateConfig.lengths: got {self.lengths}, expected ascending positive numbers.")
        if not self.ranks or min(self.ranks) < 1:
            raise ValueError(f"EvaluateConfig.ranks: got {self.ranks}, expected positive numbers.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """What the report shows.

    Attributes:
        contact_tracklets: tracklets on the contact sheet.
        contact_frames: crops a tracklet on it.
        queries: queries whose ranked gallery is shown.
        gallery: gallery items shown a query.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    contact_tracklets: int = 24
    contact_frames: int = 8
    queries: int = 6
    gallery: int = 10

    def __post_init__(self) -> None:
        in_range(self, contact_tracklets=(1, 10_000), contact_frames=(1, 1000), queries=(0, 10_000), gallery=(1, 1000))
