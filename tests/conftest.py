"""What holds for all tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from support import apart, slurm_cluster

apart.refuse()
LONG = ("training", "samples", "cli")  # folders whose tests start many processes
# tensorboard, which MONAI imports, would load TensorFlow; with this module there it does not
sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a test that loads TensorFlow into this process come after all that must not see
    it; a worker of xdist is given whole files. Make runs them by themselves (`apart`). Long files
    come first: at the end of a run a worker waits for the other one's last file."""
    last = {item.path for item in items if item.get_closest_marker("tensorflow")}
    items.sort(key=lambda item: (item.path in last, item.path.parent.name not in LONG))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Slurm of one node, its environment."""
    reason = slurm_cluster.missing()
    if reason:
        pytest.skip(reason)
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm"), cpus=4) as environment:
        yield environment
