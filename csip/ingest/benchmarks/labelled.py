"""A labelled data set of one's own: folders of pictures, videos with identities, or a manifest, to a `Benchmark`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

from csip.config import ExtractConfig, RuntimeConfig
from csip.errors import SourceError
from csip.ingest.benchmarks.checking import Findings
from csip.ingest.benchmarks.crops import SkeletonSource
from csip.ingest.benchmarks.labelled_folder import list_folder
from csip.ingest.benchmarks.labelled_identities import IDENTITIES
from csip.ingest.benchmarks.labelled_index import SUFFIXES
from csip.ingest.benchmarks.labelled_manifest import list_manifest
from csip.ingest.benchmarks.labelled_people import ROLES, Listing, check_people, count_people, number_cameras
from csip.ingest.benchmarks.labelled_pictures import Pictures
from csip.ingest.benchmarks.labelled_video import Videos
from csip.ingest.benchmarks.records import Benchmark, BenchmarkTracklet, SplitRow
from csip.ingest.decoder import Decoder
from csip.plain import digest
from csip.protocols import LABELLED

LABELLED_VERSION: Final = 2
"""Raise it when a change to this loader changes the rows that it makes of the same files."""

_ADVICE = (
    "Mend what is listed and check again with `csip check`; nothing was written. The README's chapter on data sets of "
    "your own has the three forms."
)


def labelled(
    path: Path, source: str, skeletons: SkeletonSource, config: ExtractConfig, runtime: RuntimeConfig
) -> Benchmark:
    """Check a data set and describe it; no picture is read and no video decoded yet, but each is looked for.

    Args:
        path: a folder <split>/<pid>/<camera>/<tracklet>/<picture>, a folder of videos with an identity file, or a
            manifest (.csv, .parquet).
        source: as the user named it.
        skeletons: where they come from.
        config: `benchmark` says where side-car files lie, `track` how crops of videos are encoded.
        runtime: threads and deadlines of the video decoder.

    Raises:
        SourceError: the data set is not what it should be; one message lists everything that is wrong.
    """
    findings = Findings(source)
    decoder = Decoder(runtime)
    listing = _list(path.absolute(), source, skeletons, config, decoder, findings)
    labels = listing.labels
    check_people(labels, findings)
    camids = number_cameras(one.camera for one in labels)
    findings.refuse(_ADVICE)
    content = digest("labelled", LABELLED_VERSION, listing.digest, skeletons.digest)
    numbers: Counter[str] = Counter()
    rows, position = [], {}
    for i, one in enumerate(labels):
        numbers[one.role] += 1
        # Six digits, so that names sort as numbers do.
        name = f"{content[:12]}-{one.role}-{numbers[one.role]:06d}"
        position[name] = i
        rows.append(SplitRow(name, LABELLED, "0", one.role, one.pid, camids[one.camera], one.camera))

    def load(name: str) -> BenchmarkTracklet:
        i = position[name]
        return listing.load(i, name, camids[labels[i].camera])

    counts = {**count_people(labels, listing.lengths), **listing.counts}
    return Benchmark(LABELLED, content, tuple(rows), load, skeletons.layout, dict(skeletons.extractor), counts, decoder)


def _list(
    path: Path,
    source: str,
    skeletons: SkeletonSource,
    config: ExtractConfig,
    decoder: Decoder,
    findings: Findings,
) -> Listing:
    """Tell the three forms apart, and list the tracklets of the one there is."""
    sidecars = config.benchmark.skeleton_folder if skeletons.reads_sidecars else ""
    root = path if path.is_dir() else path.parent
    identities = [root / name for name in IDENTITIES if (root / name).is_file() and path in (root, root / name)]
    if len(identities) > 1:
        raise SourceError(
            f"Source {source}: found {' and '.join(IDENTITIES)}, expected one of them. Name the one that counts behind "
            "the colon, or remove the other."
        )
    if identities:
        return Videos(
            root,
            identities[0],
            skeletons,
            sidecars,
            quality=config.track.jpeg_quality,
            decoder=decoder,
            findings=findings,
        )
    pictures = Pictures(root, skeletons, sidecars, findings)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        list_manifest(pictures, path, findings)
    elif path.is_dir() and any((path / split).is_dir() for split in ROLES):
        list_folder(pictures, config.benchmark.skeleton_folder, findings)
    else:
        raise SourceError(
            f"Source {source}: found none of the three forms there, expected a folder with {', '.join(ROLES)} in it, a "
            f"folder of videos with {' or '.join(IDENTITIES)} in it, or a manifest {' or '.join(SUFFIXES)}. Name one "
            "of those behind the colon: labelled:/path/to/it."
        )
    pictures.sort()
    return pictures
