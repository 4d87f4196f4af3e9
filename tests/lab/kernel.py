# SPDX-License-Identifier: MIT
"""The lab's kernel: Debian's stock package, unpacked into a cache and never installed, and an initramfs made for it.

The guest has no disk image. Its initramfs mounts the host's root directory read-only over 9p, lays a tmpfs above it
with overlayfs, and runs a shell script there. So the guest sees the checkout, the virtual environment and every tool of
the host under their own paths; it may write anywhere, and what it writes is gone when it powers off.
"""

from __future__ import annotations

import functools
import gzip
import lzma
import os
import shutil
import stat
import struct
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The repository's root directory, on the host and in the guest."""

METAPACKAGE = "linux-image-amd64"
"""The Debian package whose dependency names the real kernel package."""

# modprobe lives in sbin, which is not on everybody's PATH.
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])

_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "modprobe": "kmod",
    "depmod": "kmod",
    "dpkg": "dpkg",
    "apt-get": "apt",
    "setpriv": "util-linux",
}

_MODULES = ("virtio_pci", "virtio_console", "9p", "9pnet_virtio", "overlay")

# The guest's own file systems cover these, so nothing that the guest needs may lie below them.
_COVERED = ("/dev", "/proc", "/sys")

# The shell's script arrives as the kernel parameter lab=, which the kernel hands on as an environment variable.
_INIT = """\
#!/bin/busybox sh
set -e
/bin/busybox mount -t proc proc /proc  # where busybox finds itself, to run the commands below
for module in /modules/*; do insmod $module; done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro root /host
mount -t tmpfs tmpfs /scratch
mkdir /scratch/upper /scratch/work
mount -t overlay -o lowerdir=/host,upperdir=/scratch/upper,workdir=/scratch/work overlay /root
mount -t proc proc /root/proc
mount -t sysfs sysfs /root/sys
mount -t devtmpfs devtmpfs /root/dev
mkdir /root/dev/shm /root/dev/pts
mount -t tmpfs tmpfs /root/dev/shm
mount -t devpts devpts /root/dev/pts
ip link set lo up
exec switch_root /root /bin/sh -c "$(echo "$lab" | base64 -d)"
"""


class LabError(Exception):
    """The lab cannot be prepared; the message says what is missing and what to do about it."""


@dataclass(frozen=True)
class Kernel:
    """A kernel that is ready to boot: its image, its initramfs, and the directory to mount on /lib/modules."""

    image: Path
    initramfs: Path
    modules: Path


def tool(name: str) -> str:
    """The path of a program; LabError, naming the Debian package, if this machine lacks it."""
    path = shutil.which(name, path=_PATH)
    if path is None:
        raise LabError(f"{name} is not installed: apt-get install {_TOOLS.get(name, name)}")
    return path


def missing() -> list[str]:
    """One sentence for each thing the lab lacks on this machine; empty if it can boot. May download the kernel."""
    sentences = []
    for name in _TOOLS.keys() - ({"depmod", "dpkg", "apt-get"} if _cached() else set()):
        try:
            tool(name)
        except LabError as error:
            sentences.append(str(error))
    for path in (ROOT, _cache(), Path(sys.prefix), Path(sys.base_prefix)):
        if any(path.is_relative_to(covered) for covered in _COVERED):
            sentences.append(f"{path} lies below a directory that the guest has of its own: move it elsewhere")
    if not sentences:
        try:
            prepare()
        except (LabError, OSError) as error:
            sentences.append(str(error))
    return sorted(sentences)


@functools.cache
def prepare() -> Kernel:
    """Fetches the kernel unless the cache has it, writes the initramfs and compiles what the guest will import.

    Raises LabError.
    """
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    (cache / ".gitignore").write_text("*\n")
    tree = _cached() or _fetch(cache)
    image = next((tree / "boot").glob("vmlinu*-*"))  # vmlinux, or vmlinuz if _unpack could not decompress it
    version = image.name.partition("-")[2]
    initramfs = cache / f"initramfs-{version}.gz"
    _write(initramfs, gzip.compress(b"".join(_initramfs(tree, version)), compresslevel=1))
    _compile(cache)
    return Kernel(image, initramfs, tree / "lib/modules")


def _cache() -> Path:
    return Path(os.environ.get("PCISPLIT_CACHE") or ROOT / ".cache/lab").resolve()


def _cached() -> Path | None:
    """The newest kernel in the cache; it is complete, because _fetch renames it into place as its last act."""
    return max(_cache().glob("linux-image-*/"), key=lambda tree: tree.stat().st_mtime_ns, default=None)


def _fetch(cache: Path) -> Path:
    """Downloads and unpacks the kernel package. If that fails, the package lists may be missing or stale: once more."""
    try:
        with suppress(LabError):
            return _unpack(cache)
        if os.geteuid() == 0:
            _run("apt-get", "update")
        return _unpack(cache)
    except LabError as error:
        advice = "does apt-get update succeed? else set PCISPLIT_CACHE to a cache made elsewhere"
        raise LabError(f"{error} ({advice})") from None


def _unpack(cache: Path) -> Path:
    package = _package()
    with tempfile.TemporaryDirectory(dir=cache, prefix="unpack-") as directory:
        # apt's own sandbox user may not write to the cache.
        _run("apt-get", "-o", "APT::Sandbox::User=root", "download", package, cwd=directory)
        tree = Path(directory, "tree")
        _run("dpkg", "-x", str(next(Path(directory).glob("*.deb"))), str(tree))
        if not (tree / "lib").exists():  # packages newer than the merge of / and /usr
            (tree / "lib").symlink_to("usr/lib")
        if not any(tree.glob("lib/modules/*/modules.dep")):  # Debian makes it at installation
            _run("depmod", "-b", str(tree), next((tree / "lib/modules").iterdir()).name)
        _decompress(next((tree / "boot").glob("vmlinuz-*")))
        try:
            return tree.rename(cache / package)
        except OSError:  # another run was faster
            return cache / package


def _decompress(bzimage: Path) -> None:
    """Replaces a bzImage by the vmlinux in it, if that is compressed by xz, as Debian's is.

    QEMU enters the ELF image directly (PVH), while a bzImage takes three seconds to decompress itself under emulation.
    The offsets are those of the x86 boot protocol: setup_sects, payload_offset and payload_length.
    """
    image = bzimage.read_bytes()
    offset, length = struct.unpack_from("<II", image, 0x248)
    offset += (image[0x1F1] + 1) * 512
    if image.startswith(b"\xfd7zXZ\0", offset):
        vmlinux = lzma.LZMADecompressor().decompress(image[offset : offset + length])
        bzimage.with_name(bzimage.name.replace("vmlinuz", "vmlinux")).write_bytes(vmlinux)
        bzimage.unlink()


def _package() -> str:
    for line in _run("apt-cache", "depends", METAPACKAGE).splitlines():
        name = line.partition("Depends: ")[2]
        if name.startswith("linux-image-"):
            return name
    raise LabError(f"apt-cache knows no kernel behind {METAPACKAGE}: the lab needs Debian, and apt-get update")


def _run(name: str, *arguments: str, cwd: str | None = None) -> str:
    """A program's standard output; LabError with the last thing it said if it fails."""
    done = subprocess.run(
        [tool(name), *arguments],
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C", "PATH": _PATH},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise LabError(f"{' '.join([name, *arguments])} failed, saying: {said}")
    return done.stdout


def _write(path: Path, content: bytes) -> None:
    """Replaces a file as one step, for the sake of other runs that share the cache."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(path)


def _initramfs(tree: Path, version: str) -> Iterator[bytes]:
    """A newc archive: busybox under the names of its applets, the modules in the order of their loading, and /init."""
    busybox = Path(tool("busybox")).read_bytes()
    if b"/ld-linux" in busybox:
        raise LabError("busybox is not static, but the initramfs has no libraries: apt-get install busybox-static")
    for directory in ("bin", "modules", "host", "scratch", "root", "dev", "proc"):
        yield _entry(directory, stat.S_IFDIR | 0o755)
    yield _entry("bin/busybox", stat.S_IFREG | 0o755, busybox)
    yield _entry("init", stat.S_IFREG | 0o755, _INIT.encode())
    load = dict.fromkeys(
        line.removeprefix("insmod ").strip()
        for module in _MODULES
        for line in _run("modprobe", "-d", str(tree), "-S", version, "--show-depends", module).splitlines()
        if line.startswith("insmod ")
    )
    for order, path in enumerate(map(Path, load)):
        content = path.read_bytes()
        if path.suffix == ".xz":
            content = lzma.decompress(content)
        yield _entry(f"modules/{order:02}-{path.name.removesuffix('.xz')}", stat.S_IFREG | 0o644, content)
    yield _entry("TRAILER!!!", 0)


def _entry(name: str, mode: int, content: bytes = b"") -> bytes:
    """One member of a newc archive: a header of thirteen hexadecimal words, the name, the content, each padded to 4."""
    path = name.encode() + b"\0"
    words = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
    header = b"070701" + b"".join(b"%08x" % word for word in words) + path
    return header + bytes(-len(header) % 4) + content + bytes(-len(content) % 4)


def _compile(cache: Path) -> None:
    """Compiles the guest's imports: the guest forgets what it writes, and would compile them again at every boot."""
    compiler = [sys.executable, "-W", "ignore", "-m", "compileall", "-qq", "-j0"]
    paths = sysconfig.get_paths()
    installed = [Path(paths[key]) for key in ("stdlib", "purelib", "platlib")]
    state = "".join(f"{path} {path.stat().st_mtime_ns}\n" for path in dict.fromkeys(installed))
    stamp = cache / "compiled"
    # compileall fails for a file with a syntax error or in a directory of root's; neither need be one of ours.
    if not stamp.exists() or stamp.read_text() != state:
        subprocess.run([*compiler, *dict.fromkeys(map(str, installed))], check=False)
        _write(stamp, state.encode())
    subprocess.run([*compiler, str(ROOT / "pcisplit"), str(ROOT / "tests")], check=False)
