"""The environment of managed processes. They do not inherit the balancer's as it is: what is on the lists
here goes through, the rest stays behind, and with it every key and password. What is set in each
process and why is told in docs/runtime-environment.md.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from balancer.core.device import Device

_INHERITED = frozenset(
    (
        *("HOME", "USER", "LOGNAME", "PATH", "TMPDIR", "TZ", "LANG", "LANGUAGE"),
        *("LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"),
        *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
        *("http_proxy", "https_proxy", "no_proxy", "all_proxy"),
    )
)
_INHERITED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "GGML_")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)

# Ollama and llama.cpp also reach cards through ROCm and Vulkan, and Vulkan sees every card of the machine,
# those that CUDA_VISIBLE_DEVICES hides among them. An empty list hides them from it; llama.cpp ends itself at
# -1. Source: Ollama v0.33 docs/gpu.mdx, discover/runner.go; llama.cpp ggml/src/ggml-vulkan/ggml-vulkan.cpp.
_NO_OTHER_WAY: Mapping[str, str] = MappingProxyType(
    {
        "ROCR_VISIBLE_DEVICES": "-1",
        "HIP_VISIBLE_DEVICES": "-1",
        "GGML_VK_VISIBLE_DEVICES": "",
        "OLLAMA_VULKAN": "0",
    }
)


def inherited(
    environ: Mapping[str, str], *, names: Iterable[str] = (), prefixes: Sequence[str] = ()
) -> dict[str, str]:
    """What a process takes over from the balancer's environment: what any program needs to run here, and
    further names and prefixes that its runtime knows. Nothing named like a secret."""
    wanted = _INHERITED.union(names)
    starts = (*_INHERITED_PREFIXES, *prefixes)
    return {
        name: value
        for name, value in environ.items()
        if (name in wanted or name.startswith(starts)) and not _SECRET.search(name)
    }


def pinned(devices: Sequence[Device]) -> dict[str, str]:
    """What shows a process these devices and no other, none for the CPU; by UUID, which no reordering of
    cards changes. -1 names no card, so CUDA finds none. Source: CUDA C++ Programming Guide,
    CUDA_VISIBLE_DEVICES."""
    keys = ",".join(device.key for device in devices) or "-1"
    return {"CUDA_VISIBLE_DEVICES": keys, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", **_NO_OTHER_WAY}


def pinned_by_index(devices: Sequence[Device]) -> dict[str, str]:
    """The same by index, in the order of the PCI bus, which is the driver's, for what cannot read UUIDs."""
    return pinned(devices) | {"CUDA_VISIBLE_DEVICES": ",".join(str(device.index) for device in devices)}
