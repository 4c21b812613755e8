import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alarm_service.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """Start a local cluster with a Serve proxy; yield its URL."""
    pytest.importorskip("ray.serve")
    import ray
    from processes import free_port
    from ray import serve

    from alarm_service.ray.model import connect

    # Replicas import the stand-in device, and this checkout's packages.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "benchmarks"), *sys.path])
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"  # a busy machine's need it
    # Logical cores: an ingress runs at the same time as its successor for a while.
    own: dict[str, Any] = {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    ray.init(num_cpus=8, log_to_driver=False, **own)
    port = free_port()
    connect(Settings(ray=True), http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()
