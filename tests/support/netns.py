"""Two hosts on this machine: network namespaces of the test's own, with a cable between them that can be pulled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest

_number = count()


class Hosts(NamedTuple):
    """names: of the namespaces, and of the network card in each. address: of the first one."""

    names: tuple[str, str]
    address: str

    def start(self, host: int, script: Path, arguments: list[str]) -> subprocess.Popen[str]:
        """What `torchrun --nnodes 2` starts on one of the hosts, 0 or 1: a process of each."""
        command = ["ip", "netns", "exec", self.names[host], sys.executable, "-m", "torch.distributed.run"]
        command += ["--nnodes", "2", "--node_rank", str(host), "--master_addr", self.address, "--master_port", "29500"]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": self.names[host]}
        command += [str(script), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)

    def cable(self, state: str) -> None:
        """Pull the cable (down), or plug it in (up)."""
        _ip("-n", self.names[0], "link", "set", self.names[0], state)


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Skips the test where no namespaces can be made."""
    if shutil.which("ip") is None:
        pytest.skip("no ip command (iproute2) to make network namespaces with")
    stem = f"{os.getpid() % 10**8}n{next(_number)}"
    names = f"a{stem}", f"b{stem}"
    with ExitStack() as stack:
        for name in names:
            try:
                _ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
            stack.callback(_ip, "netns", "del", name)
        first, second = names
        _ip("link", "add", first, "netns", first, "type", "veth", "peer", "name", second, "netns", second)
        for place, name in enumerate(names, 1):
            _ip("-n", name, "addr", "add", f"10.77.0.{place}/24", "dev", name)
            for card in ("lo", name):
                _ip("-n", name, "link", "set", card, "up")
        yield Hosts(names, "10.77.0.1")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
