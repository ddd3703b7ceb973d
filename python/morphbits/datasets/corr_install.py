"""Install CoRR by DataLad: clone, get exactly the images of the table, verify each.

CoRR (Zuo et al. 2014, doi:10.1038/sdata.2014.49) is a DataLad superdataset, `RawDataBIDS`, with a
subdataset for each site; images are git-annex keys (MD5E), so that each file's checksum is part of
the dataset. Everything is derived from the files: a command that was killed is run again.

No clone is ever removed: its images may be had nowhere else by now.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from morphbits import bids, images
from morphbits.datasets.corr_table import Scan
from morphbits.errors import UserError
from morphbits.files import locked

SOURCE = "///corr/RawDataBIDS"  # DataLad's own name of CoRR at datasets.datalad.org
_MD5_KEY = re.compile(r"MD5E?-s(\d+)--([0-9a-f]{32})")
_KEPT = "nothing in it was changed"
_SLOW = 60  # seconds with less than a kilobyte each, after which a server counts as gone


@dataclass(frozen=True)
class Installer:
    """CoRR in `root`, which is `data/corr`; `lock` is open for as long as something is changed."""

    root: Path
    source: str
    lock: IO[str]
    say: Callable[[str], None]

    @property
    def dataset(self) -> Path:
        """The superdataset."""
        return self.root / "RawDataBIDS"

    def clone(self) -> None:
        """Have the superdataset; it gets its name when the clone is whole."""
        if (self.dataset / ".git").exists():
            self._know_source(self.dataset, self.source)
            return
        partial = self.root / ".RawDataBIDS.part"
        if _holds_content(partial):
            raise UserError(f"{partial}: holds fetched images; move it away, then run again")
        _remove(partial)
        done = self._datalad(self.root, "clone", self.source, str(partial))
        if done.returncode != 0:
            raise UserError(
                f"CoRR cannot be cloned from {self.source} ({_reason(done)}): check the network, "
                "or name a mirror or a copy on a disk (SOURCE=)"
            )
        try:
            partial.rename(self.dataset)
        except OSError:
            raise UserError(
                f"{self.dataset}: is there but no clone of CoRR; move it away, then run again"
            ) from None

    def check_readable(self, sites: Sequence[str]) -> None:
        """Refuse clones that git does not read, as it does not read another user's."""
        refused: dict[Path, Path] = {}
        for folder in (self.dataset, *(self.dataset / site for site in sites)):
            try:
                (folder / ".git").lstat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
            done = self._git(folder, "rev-parse", "--git-dir")
            parts = (folder, folder / ".git")
            foreign = next((p for p in parts if p.lstat().st_uid != os.geteuid()), None)
            if done.returncode != 0 and foreign:
                refused[folder] = foreign
            elif done.returncode != 0 and (folder == self.dataset or _holds_content(folder)):
                raise UserError(f"{folder}: git does not read it ({_last(done)}); {_KEPT}")
        if refused:
            folder, foreign = next(iter(refused.items()))
            me, folders = _user(os.geteuid()), [shlex.quote(str(path)) for path in refused]
            allow = f"git config --global --add safe.directory {folders[0]}"
            if len(folders) > 1:
                allow = (
                    f"for folder in {' '.join(folders)}; do git config --global --add "
                    'safe.directory "$folder"; done'
                )
            raise UserError(
                f"{folder} belongs to {_user(foreign.lstat().st_uid)} and you are {me}, so git "
                f"does not read it: allow it ({allow}), or take the dataset over (chown -R {me} "
                f"{shlex.quote(str(self.root))}); {_KEPT}"
            )

    def install_sites(self, sites: Sequence[str]) -> None:
        """Have the subdatasets (names and keys of their files, no content)."""
        for site in sites:
            folder = self.dataset / site
            if self._is_installed(site):
                self._know_source(folder, f"{self.source}/{site}")
                continue
            if os.path.lexists(folder / ".git"):
                self._set_aside(folder)
            self._datalad(self.dataset, "get", "--no-data", site)

    def _set_aside(self, folder: Path) -> None:
        """Out of the way with a clone that was cut short."""
        if _holds_content(folder):
            raise UserError(
                f"{folder}: holds fetched images, but is no whole clone; see what 'git status' "
                f"and 'git annex info' say there; {_KEPT}"
            )
        aside = tempfile.mkdtemp(prefix=f".{folder.name}.cut-short-", dir=self.root)
        folder.rename(aside)
        folder.mkdir()
        self.say(f"{folder}: a clone that was cut short, holds no images; it is now {aside}")

    def _know_source(self, folder: Path, source: str) -> None:
        """Let what was cloned from elsewhere, from a server that is gone maybe, be had from this
        source too."""
        url = re.sub("^///", "https://datasets.datalad.org/", source).replace("/.git/", "/")
        if "://" in url and not url.endswith("/.git"):  # by HTTP there is nothing but the folder
            url += "/.git"
        if url in self._run(folder, "git", "remote", "--verbose").stdout.split():
            return
        name = "source-" + hashlib.md5(url.encode()).hexdigest()[:8]
        self._run(folder, "git", "remote", "add", name, url)
        self._run(folder, "git", "fetch", "--quiet", name)

    def _is_installed(self, site: str) -> bool:
        """The site's own repository is there, with files checked out and an annex."""
        folder = self.dataset / site
        if not (folder / ".git").exists():
            return False
        done = self._git(folder, "config", "--local", "annex.uuid")
        return done.returncode == 0 and any(folder.glob("sub-*"))

    def get(self, scan: Scan) -> str:
        """Have one image, verified. Returns an empty text, or why it is missing."""
        site, path = self.dataset / scan.site, self.root / scan.path
        if not self._is_installed(scan.site):
            return f"site {scan.site} cannot be installed from {self.source}"
        if not os.path.lexists(path):
            return f"{self.source} has no such file"
        wrong = problem(path, scan.shape)
        if not wrong:
            return ""
        if path.is_file():  # content that is not the key's: git-annex moves it out of the way
            self._run(site, "git", "annex", "fsck", "--quiet", str(path.relative_to(site)))
        done = self._datalad(self.dataset, "get", str(path.relative_to(self.dataset)))
        if not path.is_file():
            return _reason(done)
        return problem(path, scan.shape)

    def _datalad(self, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        return self._run(folder, "datalad", "-f", "json", *words)

    def _git(self, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        """What git says of this repository, and not of one that it lies in."""
        ceiling = f"GIT_CEILING_DIRECTORIES={folder.parent}"
        return self._run(folder, "env", ceiling, "git", *words)

    def _run(self, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        """A command that inherits the lock: it keeps others out even when we are killed."""
        environment = {
            "GIT_HTTP_LOW_SPEED_LIMIT": "1000",
            "GIT_HTTP_LOW_SPEED_TIME": str(_SLOW),
            "GIT_TERMINAL_PROMPT": "0",
            "DATALAD_UI_PROGRESSBAR": "none",
            # git-annex commits to a branch of its own; a machine without a name gets this one
            "GIT_AUTHOR_NAME": "morphbits",
            "GIT_AUTHOR_EMAIL": "morphbits@localhost",
            "GIT_COMMITTER_NAME": "morphbits",
            "GIT_COMMITTER_EMAIL": "morphbits@localhost",
            **os.environ,
        }
        try:
            return subprocess.run(
                words, cwd=folder, env=environment, text=True, capture_output=True, check=False,
                stdin=subprocess.DEVNULL, pass_fds=(self.lock.fileno(),),
            )  # fmt: skip
        except FileNotFoundError:
            raise UserError(
                f"{words[0]} is not installed: make setup, then ./install-corr.sh"
            ) from None


def install(
    data: Path,
    scans: Sequence[Scan],
    source: str = SOURCE,
    jobs: int = 4,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Install these images below `data/corr`; returns one line for each that is missing."""
    sites = list(dict.fromkeys(scan.site for scan in scans))
    with _opened(bids.corr_raw(data), source, say) as installer:
        installer.check_readable(sites)
        installer.clone()
        installer.install_sites(tqdm(sites, "sites", unit="site", leave=False, disable=None))
        missing = []
        with (
            ThreadPoolExecutor(jobs) as pool,
            tqdm(total=len(scans), desc="images", unit="image", disable=None) as bar,
        ):
            for scan, wrong in zip(scans, pool.map(installer.get, scans), strict=True):
                bar.update()
                if wrong:
                    missing.append(f"{scan.subject.entities} ({scan.site}): {wrong}")
                elif scan.note:
                    bar.clear()
                    say(f"{scan.subject.entities} ({scan.site}): {scan.note}")
    return missing


def problem(path: Path, shape: tuple[int, ...] | None) -> str:
    """Why an image cannot be used, empty where it can: content there, as its key says, readable,
    of the expected shape."""
    if not path.is_file():
        return "its content is not there"
    key = _MD5_KEY.search(os.readlink(path) if path.is_symlink() else _lookup_key(path))
    if key:
        if path.stat().st_size != int(key[1]):
            return f"it has {path.stat().st_size} bytes, its key says {key[1]}"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
        if digest != key[2]:
            return f"its checksum is {digest}, its key says {key[2]}"
    try:
        image = images.load(path)
    except UserError as error:
        return str(error)
    if shape and image.data.shape != shape:
        return f"its shape is {image.data.shape}, the study's was {shape}"
    return ""


def _lookup_key(path: Path) -> str:
    """The key of a file that is no link (unlocked, or a file system without links); else empty."""
    words = ["git", "-C", str(path.parent), "annex", "lookupkey", path.name]
    return subprocess.run(words, text=True, capture_output=True, check=False).stdout


@contextmanager
def _opened(root: Path, source: str, say: Callable[[str], None]) -> Iterator[Installer]:
    """One installation at a time; the next one waits and finds everything there."""
    root = root.resolve()  # commands run in folders of their own
    with locked(root / ".lock", "choose another DATA= folder") as lock:
        if "://" not in source and not source.startswith("///"):
            source = str(Path(source).resolve())
        yield Installer(root, source, lock, say)


def _results(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """What DataLad says went wrong, on one line."""
    said = [
        str(result.get("error_message") or result.get("message"))
        for result in _results(done)
        if result.get("status") not in ("ok", "notneeded")
    ]
    text = " ".join((said[0] if said else done.stderr).split())
    return text[:300] or f"datalad ended with {done.returncode}"


def _last(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _holds_content(folder: Path) -> bool:
    """Whether git-annex keeps a file here, whole, begun or damaged; also where that cannot be
    seen."""

    def unseen(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    try:
        git = folder / ".git"
        if git.is_file():  # where the repository lies elsewhere: "gitdir: PATH"
            git = folder / git.read_text().partition(": ")[2].strip()
        return any(
            files
            for part in ("objects", "tmp", "bad")
            for _, _, files in os.walk(git / "annex" / part, onerror=unseen)
        )
    except (OSError, UnicodeDecodeError):
        return True


def _remove(folder: Path) -> None:
    """Remove a clone that never got its name (git-annex makes folders read-only)."""
    for parent, names, _ in os.walk(folder):
        for name in names:
            os.chmod(os.path.join(parent, name), 0o755)
    shutil.rmtree(folder, ignore_errors=True)
