import pytest

from csip.ingest.benchmarks import labelled
from csip.ingest.decoder import Decoder


@pytest.fixture(autouse=True)
def closed_decoders(monkeypatch):
    """Who loads tracklets closes the decoder that they are read with; tests that load some leave it to this."""
    made = []

    def make(runtime):
        made.append(Decoder(runtime))
        return made[-1]

    monkeypatch.setattr(labelled, "Decoder", make)
    yield
    for decoder in made:
        decoder.close()
