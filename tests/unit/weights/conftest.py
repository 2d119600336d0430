import pytest

from cluster.weights.config import WeightsConfig
from cluster.weights.model_files import ModelFiles
from tests.support.loopback_s3 import LoopbackS3

PART = 2**18


@pytest.fixture
def s3(monkeypatch):
    """A store with one model in it, which every AWS client of this process finds."""
    model = {"config.json": b"{}", "model.safetensors": bytes(range(251)) * 5000, "notes.md": b"-", "empty.json": b""}
    with LoopbackS3({f"models/llama/{name}": data for name, data in model.items()}) as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store


@pytest.fixture
def weights(tmp_path):
    return WeightsConfig(cache=str(tmp_path / "cache"), part=PART, streams=4)


@pytest.fixture
def files(weights):
    """As another process on the same machine would have them, each time it is called."""
    made = []

    def make(**changes):
        made.append(ModelFiles(weights.model_copy(update=changes)))
        return made[-1]

    yield make
    for each in made:
        each.close()
