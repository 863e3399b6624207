"""Look at sources without building from them: `csip check`."""

from __future__ import annotations

from csip.config import ExtractConfig, RuntimeConfig
from csip.errors import SourceError, VideoError
from csip.ingest.benchmarks.importing import check_place, count_benchmark, is_benchmark, open_benchmark
from csip.ingest.decoder import Decoder
from csip.ingest.find import SHOWN, Found, expand_all


def find_sources(sources: tuple[str, ...], camera: str) -> Found | None:
    """Find what sources name, and open none of it.

    Args:
        sources: as for `build-skeletons`.
        camera: that took all of them; empty: every file is a camera of its own.

    Returns:
        The files; None of a benchmark, whose files only its own index tells.

    Raises:
        SourceError: they name nothing that could be built from.
    """
    if is_benchmark(sources):
        check_place(sources[0])
        return None
    return expand_all(sources, camera)


def check_sources(sources: tuple[str, ...], config: ExtractConfig, runtime: RuntimeConfig) -> dict[str, object]:
    """Check what `build-skeletons` would read, and count what is in it; nothing is written.

    Of a benchmark, everything is checked that an import checks before it writes. Of videos, each is opened.

    Args:
        sources: as for `build-skeletons`.
        config: the sections that it would be given.
        runtime: the same.

    Returns:
        What there is, by what it is.

    Raises:
        SourceError: something is wrong; the message lists it.
        WeightsError: crops would need a pose model, and its weights are nowhere to be had.
    """
    found = find_sources(sources, "")
    if found is None:
        return count_benchmark(open_benchmark(sources[0], config, runtime))
    wrong: list[str] = []
    seconds, shas = 0.0, set()
    with Decoder(runtime) as decoder:
        for one in found.files:
            try:
                info = decoder.probe(one.path)
            except VideoError as error:
                wrong.append(f"{one.told}: {error}" if one.told else str(error))
                continue
            seconds += info.duration
            shas.add(info.sha256)
    told = [*wrong, *found.closed]
    if told:
        listed = "".join(f"\n  {one}" for one in told[:SHOWN])
        raise SourceError(
            f"Sources {', '.join(sources)}: found {len(wrong)} of {len(found.files)} files that cannot be read as "
            f"videos, and {len(found.closed)} folders that cannot be looked into. "
            f"{min(len(told), SHOWN)} of {len(told)}:{listed}\nA build leaves them out and reads the others."
        )
    return {
        "videos": len(shas),
        "duplicate files": len(found.files) - len(shas),
        "minutes": round(seconds / 60, 2),
        "other files": dict(found.others),
    }
