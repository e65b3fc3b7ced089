"""Shared by all tests: no network, and the models that are costly to make."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cpmi.cli import main
from cpmi.errors import InputError
from cpmi.models import ModelSettings, embedded_weights, open_model

if TYPE_CHECKING:
    from cpmi.models.hf import HFModel

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is imported, which is later
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch: tiny models gain nothing from more, and wait for them
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs
sys.path.insert(0, str(Path(__file__).parent))  # for the helpers beside the tests, e.g. tiny_models


@pytest.fixture
def run_cpmi(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command as a user would; gives its exit status, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cpmi", *arguments])
        with pytest.raises(SystemExit) as ended:
            sys.exit(main())  # type: ignore[func-returns-value]
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random decoder and its tokenizer, to train reward models on; never written to."""
    from tiny_models import byte_tokenizer, tiny_model

    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2() -> HFModel:
    """The real SmolLM2-135M-Instruct in float32; a test that uses it is marked ``real_model``."""
    from cpmi.models.hf import HFModel

    try:
        embedded_weights()
    except InputError as error:
        pytest.skip(str(error))
    model = open_model(ModelSettings("smollm2", dtype="float32", device="cpu"))
    assert isinstance(model, HFModel)
    return model


@pytest.fixture(scope="session")  # file systems are cached with their address, so that there can be one server alone
def s3() -> Iterator[str]:
    """A bucket on a server of our own."""
    pytest.importorskip("s3fs", reason="needs s3fs (pip install 'cpmi[remote]')")
    server = pytest.importorskip("moto.server", reason="needs moto's server")
    import boto3

    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield "s3://bucket"
    running.stop()
