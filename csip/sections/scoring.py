"""Clips to embeddings, scores, and a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict

from csip.sections.bounds import MANY, STRICT, Each, Within, check


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
    clip_stride: Annotated[int, Within(1, 100_000)] = 4
    histogram_bins: Annotated[tuple[int, int, int], Each("1 or more each", 1, count=(3, 3))] = (16, 4, 4)

    def __post_init__(self) -> None:
        check(self)


_LENGTHS = Each("ascending positive numbers", 1, ascending=True, distinct=True)


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
    ranks: Annotated[tuple[int, ...], Each("positive numbers", 1, count=(1, MANY))] = (1, 5, 10, 20)
    rerank: bool = False
    rerank_k1: Annotated[int, Within(1, 10_000)] = 50
    rerank_k2: Annotated[int, Within(1, 10_000)] = 15
    rerank_weight: Annotated[float, Within(0, 1)] = 0.3
    bootstrap: Annotated[int, Within(0, 1_000_000)] = 1000
    confidence: Annotated[float, Within(0.01, 0.999)] = 0.95
    bootstrap_seed: Annotated[int, Within(0, 2**63 - 1)] = 0
    breakdown: bool = True
    lengths: Annotated[tuple[int, ...], _LENGTHS] = (16, 32, 64, 128)

    def __post_init__(self) -> None:
        check(self)


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
    contact_tracklets: Annotated[int, Within(1, 10_000)] = 24
    contact_frames: Annotated[int, Within(1, 1000)] = 8
    queries: Annotated[int, Within(0, 10_000)] = 6
    gallery: Annotated[int, Within(1, 1000)] = 10

    def __post_init__(self) -> None:
        check(self)
