"""A network from elsewhere as a model of the suite (`models.model`): ``package.module:function``.

The function takes nothing and returns a torch module from (moving, fixed), (1, 1, X, Y, Z) each,
to (moved, warp), (1, 1, X, Y, Z) and (1, 3, X, Y, Z): the warp leads from a voxel of the fixed
image to the place in the moving image that it shows, in voxels. Images are prepared as for
SynthMorph of 2022 (`images.prepare`), in sizes that are multiples of 16, or of the module's
attribute `multiple`. The module's parts are stages where it announces them itself
(`morphbits.stages`).

The package is looked for where Python looks, and in the folder that the model's path names.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from morphbits import images
from morphbits.errors import UserError
from morphbits.imagefiles import by
from morphbits.models.on_network_grid import OnNetworkGrid

LARGEST = 512  # multiple of voxels that is taken for a network's need, and not for a mistake
FEATURES = 256  # float32 values per voxel that a registration may need: an unknown network's guess


@dataclass(frozen=True)
class Plugin(OnNetworkGrid):
    """The network that the function `path.name` returns."""

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(_sources(self.path))

    def identity(self, checksum: Callable[[Path], str]) -> dict[str, Any]:
        """Checksums of the module's file, of those that it imports from its package or folder,
        and of the network's numbers; the version of the package where it is an installed one."""
        package = self.path.name.partition(".")[0].partition(":")[0]
        first, *others = self.files
        imported = {os.path.relpath(file, first.parent): checksum(file) for file in others}
        installed = metadata.packages_distributions().get(package, [])
        return {
            "model": self.path.name,
            "model_code": checksum(first),
            **({"model_imports": imported} if imported else {}),
            "model_weights": _weights(self.path),
            "model_packages": {name: metadata.version(name) for name in sorted(set(installed))},
            "model_orientation": self._orientation or "fixed",
        }

    @property
    def stages(self) -> frozenset[str]:
        return frozenset()

    @property
    def _multiple(self) -> int:
        multiple = getattr(_network(self.path), "multiple", images.MULTIPLE)
        if not (isinstance(multiple, int) and 1 <= multiple <= LARGEST):
            raise UserError(
                f"model {self.path.name}: its attribute multiple is {multiple!r}, not a whole "
                f"number from 1 to {LARGEST}"
            )
        return multiple

    def in_words(self) -> str:
        count = sum(parameter.numel() for parameter in self.network().parameters())
        return f"{self.path.name} from {_source(self.path)}, {count:,} parameters"

    def network(self) -> Any:
        return _saying_errors(self.path)

    def multiplications(self, voxels: int) -> int | None:
        return None

    def memory(self, voxels: int, engine: str) -> int:
        return 400_000_000 + 4 * voxels * FEATURES


@functools.cache
def _function(path: Path) -> Callable[[], Any]:
    name, _, function = path.name.partition(":")
    if (folder := str(path.parent.absolute())) not in sys.path:
        sys.path.append(folder)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"model {path.name}: module {name} cannot be imported ({error}); install it, or give "
            f"the folder that holds it: MODEL=folder/{path.name}"
        ) from error
    except Exception as error:
        raise UserError(f"model {path.name}: importing it failed: {_in_words(error)}") from error
    if not hasattr(module, function):
        raise UserError(f"model {path.name}: module {name} has no function {function}")
    return getattr(module, function)  # type: ignore[no-any-return]


def _in_words(error: BaseException) -> str:
    """An error in a user's code: its kind, what it says, and where, torch and this suite aside."""
    frames = traceback.extract_tb(error.__traceback__)
    others = tuple(
        f"{file.parent}{os.sep}" for name in ("torch", "morphbits") if (file := _file(name))
    )
    own = [frame for frame in frames if not frame.filename.startswith(others)]
    where = (own or frames)[-1]
    return f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno})"


def _source(path: Path) -> Path:
    file = inspect.getsourcefile(inspect.unwrap(_function(path)))
    if file is None:
        raise UserError(f"model {path.name}: has no source file, so samples could not name it")
    return Path(file)


def _sources(path: Path) -> list[Path]:
    """The function's file, then those that it imports, directly or not, from its package, and
    from the folder that this lies in, unless packages are installed there."""
    first, name = _source(path), inspect.unwrap(_function(path)).__module__
    top = name.partition(".")[0]
    found, todo = {first}, [(name, first)]
    while todo:
        name, file = todo.pop()
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        for imported in _imports(file, package):
            other = imported.partition(".")[0]
            own = other == top or _folder(other) == _folder(top) != _folder("torch")
            source = _file(imported) if own else None
            if source and source.suffix == ".py" and source not in found:
                found.add(source)
                todo.append((imported, source))
    return [first, *sorted(found - {first})]


def _folder(top: str) -> Path | None:
    """The one that a package or module lies in, that is not part of another."""
    file = _file(top)
    return file and file.parents[1 if file.name == "__init__.py" else 0]


def _file(module: str) -> Path | None:
    """Where a module would be imported from, whether it is yet or not."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.has_location else None


def _imports(file: Path, package: str) -> set[str]:
    """Names that may be those of modules that a file of this package imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = parts[: len(parts) - node.level + 1] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            names |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return names | {name.rpartition(".")[0] for name in names}


@functools.lru_cache(maxsize=1)
def _network(path: Path) -> Any:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a network without trained weights is the same in every process
        function = _function(path)
        try:
            network = function()
        except Exception as error:
            raise UserError(f"model {path.name} cannot be made: {_in_words(error)}") from error
    if not isinstance(network, torch.nn.Module):
        raise UserError(f"model {path.name}: returned a {type(network).__name__}, no torch module")
    return network.eval()


@functools.lru_cache(maxsize=1)
def _saying_errors(path: Path) -> Any:
    """The network, whose errors become a UserError of one sentence. An error that only the
    engine's operators raise is a fault of the engine and is raised as it is."""
    import torch
    from torch.utils._mode_utils import no_dispatch
    from torch.utils._python_dispatch import is_in_torch_dispatch_mode

    class SayingErrors(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = _network(path)

        def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> Any:
            try:
                return self.network(moving, fixed)
            except (UserError, MemoryError):
                raise
            except Exception as error:
                own = self._in_plain_torch(moving, fixed) if is_in_torch_dispatch_mode() else error
                if own is None:
                    raise
                raise UserError(
                    f"model {path.name} failed on images of {by(moving.shape[2:])} voxels: "
                    f"{_in_words(own)}; if it needs other sizes, give the module an attribute: "
                    "multiple = 32"
                ) from error

        def _in_plain_torch(self, moving: torch.Tensor, fixed: torch.Tensor) -> Exception | None:
            """The error that the network raises without perturbation; None if there is none."""
            try:
                with no_dispatch():
                    self.network(moving, fixed)
            except Exception as error:
                return error
            return None

    return SayingErrors().eval()


@functools.cache
def _weights(path: Path) -> str:
    import torch

    found = hashlib.sha256()
    for name, tensor in sorted(_network(path).state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f"model {path.name}: its state {name} is no tensor, so samples could "
                            "not name it")  # fmt: skip
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"sha256:{found.hexdigest()}"
