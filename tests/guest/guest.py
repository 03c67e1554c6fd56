#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
"""Makes the small Linux guests that the tests and the demo boot.

Owns everything between Debian's packages and three files: a kernel, an initrd
that finds the disk and hands over to it, and a disk with a root filesystem
(busybox, the C library, e2fsprogs and whatever files come with them). The
packages are fetched through an apt state of our own, so that the host's is
not touched and a guest of another architecture needs no multiarch; apt checks
signatures and checksums. Nothing here needs root.

As a program, guest.py [--refresh] ARCH (aarch64 or x86_64) prints the paths
and how to start QEMU, building what is not in the cache.

One thread. Reference: deb-src-control, initramfs buffer format ("newc") in
the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import argparse
import fcntl
import hashlib
import os
import pathlib
import pwd
import re
import shutil
import struct
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent

# What differs between the guests: Debian's name of the architecture, the
# kernel package (a metapackage: no version is written down here), and QEMU's
# machine. The cloud kernels are the small ones and have ext4 built in.
ARCHES = {
    "aarch64": {
        "debian": "arm64",
        "qemu": "qemu-system-aarch64",
        "machine": ["-M", "virt", "-cpu", "cortex-a57"],
        "console": "ttyAMA0",
    },
    "x86_64": {
        "debian": "amd64",
        "qemu": "qemu-system-x86_64",
        "machine": ["-M", "pc", "-cpu", "qemu64"],
        "console": "ttyS0",
    },
}

# Modules the initrd loads, and those that lie on the disk in MODULE_DIR for
# whoever needs them. What they depend on is found out.
MODULES = ["virtio_pci", "virtio_blk"]
DISK_MODULES = ["virtio_net", "nbd"]
MODULE_DIR = "lib/modules"

# Programs on the disk, with all they depend on.
ROOT_PACKAGES = ["busybox-static", "e2fsprogs", "nbd-client"]

DISK_BYTES = 256 << 20

# Commands of busybox that get a name of their own on the disk. e2fsprogs'
# own commands win where both have one.
APPLETS = """
 [ awk basename blkdiscard blockdev cat chmod cmp cp cut date dd df dirname
 dmesg du echo env expr false find free fstrim grep gunzip gzip head hexdump
 hostname id insmod ip ls md5sum mkdir mknod mktemp mount mv od poweroff printf ps pwd
 reboot rm rmdir sed seq sh sha256sum sleep sort stat strings sync tail tar
 tee test time timeout touch tr true umount uname uniq uptime usleep vi wc
 which xargs yes
""".split()


class Unavailable(Exception):
    """The guest can't be had on this machine; the text says why."""


class Guest:
    """A built guest: `kernel`, `initrd`, `disk` are paths, `info` the entry
    of ARCHES. The disk is shared by all who use the cache: never write it."""

    def __init__(self, arch, folder):
        self.arch = arch
        self.info = ARCHES[arch]
        self.kernel = folder / "kernel"
        self.initrd = folder / "initrd"
        self.disk = folder / "disk.raw"
        self.versions = folder / "versions"


def command_line(guest):
    """What the guest's kernel is told: little to say, no time lost."""
    return (f"console={guest.info['console']} quiet panic=-1 nokaslr "
            "mitigations=off no_timer_check cryptomgr.notests apparmor=0 "
            "audit=0")


def cache_dir():
    """Where guests are kept between runs. The test runner gives each test a
    home of its own, which is the same as its $TMPDIR: then the user's."""
    home = os.path.expanduser("~")
    if home == os.environ.get("TMPDIR"):
        home = pwd.getpwuid(os.getuid()).pw_dir
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    return pathlib.Path(base) / "rewind"


def run(argv, **kwargs):
    """Runs a program; its output is shown only when it fails."""
    kwargs.setdefault("stdout", subprocess.PIPE)
    try:
        done = subprocess.run([str(a) for a in argv], text=True,
                              stderr=subprocess.PIPE,
                              stdin=subprocess.DEVNULL, check=False, **kwargs)
    except FileNotFoundError as missing:
        raise Unavailable(f"{missing.filename} is not installed") from missing
    if done.returncode != 0:
        raise Unavailable(f"{' '.join(str(a) for a in argv)}\n"
                          f"{done.stdout or ''}{done.stderr}")
    return done.stdout


class Apt:
    """apt with a state, cache and architecture of its own under `folder`."""

    KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

    def __init__(self, folder, debian_arch):
        self.folder = folder
        self.arch = debian_arch
        for sub in ("lists/partial", "cache/archives/partial"):
            (folder / sub).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        self.conf = folder / "apt.conf"
        # Read after the host's own configuration, of which a proxy is kept
        # and hooks are dropped: they act on the host.
        self.conf.write_text(f"""
#clear APT::Update;
#clear APT::NeverAutoRemove;
#clear DPkg::Pre-Install-Pkgs;
#clear DPkg::Post-Invoke;
APT::Architecture "{debian_arch}";
#clear APT::Architectures;
APT::Architectures {{ "{debian_arch}"; }};
APT::Sandbox::User "";
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferences "-";
Dir::Etc::preferencesparts "-";
Dir::State "{folder}";
Dir::State::lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::State::extended_states "{folder}/extended_states";
Dir::Cache "{folder}/cache";
Dir::Log "{folder}";
""")

    def sources(self):
        """The host's Debian archives (a mirror is thus kept), or the public
        one if the host's lists are empty."""
        out = run(["apt-get", "indextargets", "--format",
                   "$(ORIGIN) $(REPO_URI) $(RELEASE) $(COMPONENT)",
                   "Created-By: Packages"])
        found = sorted({tuple(line.split()[1:]) for line in out.splitlines()
                        if line.startswith("Debian ")
                        and line.endswith(" main")})
        if found:
            return found
        release = pathlib.Path("/etc/os-release").read_text()
        match = re.search(r"^VERSION_CODENAME=(\w+)$", release, re.M)
        if not match or not re.search(r"^ID=debian$", release, re.M):
            raise Unavailable("this is not Debian: no kernel to fetch")
        name = match.group(1)
        host = "http://deb.debian.org"
        return [(f"{host}/debian", name, "main"),
                (f"{host}/debian", f"{name}-updates", "main"),
                (f"{host}/debian-security", f"{name}-security", "main")]

    def get(self, tool, *args, **kwargs):
        return run([tool, "-c", self.conf, *args], **kwargs)

    def update(self):
        lines = [f"deb [signed-by={self.KEYRING}] {' '.join(source)}\n"
                 for source in self.sources()]
        (self.folder / "sources.list").write_text("".join(lines))
        self.get("apt-get", "-qq", "update")

    def kernel_package(self):
        """The package that the newest kernel's metapackage stands for."""
        meta = f"linux-image-cloud-{self.arch}"
        shown = self.get("apt-cache", "show", "--no-all-versions", meta)
        match = re.search(r"^Depends:.*?\b(linux-image-[^ ,]+)", shown, re.M)
        if not match:
            raise Unavailable(f"{meta} names no kernel package")
        return match.group(1)

    def fetch(self):
        """Downloads and returns (kernel's file, [the root's files])."""
        archives = self.folder / "cache/archives"
        for old in archives.glob("*.deb"):
            old.unlink()
        kernel = self.kernel_package()
        self.get("apt-get", "-qq", "download", kernel, cwd=archives)
        kernel_deb = next(archives.glob("*.deb"))
        self.get("apt-get", "-qq", "-y", "--download-only", "install",
                 *ROOT_PACKAGES)
        return kernel_deb, sorted(set(archives.glob("*.deb")) - {kernel_deb})


def module_order(tree, names):
    """Files of the modules `names` and what they need, in an order they can
    be loaded in. What a module needs stands in its own .modinfo."""
    files = {}
    for path in tree.rglob("*.ko*"):
        files[path.name.split(".")[0].replace("-", "_")] = path
    order = []

    def visit(name, depth):
        if name not in files or files[name] in order:
            return  # built in, or there already
        if depth > 16:
            raise Unavailable(f"module {name} depends on itself")
        path = files[name]
        if path.suffix != ".ko":
            raise Unavailable(f"{path.name}: compressed modules are unknown")
        match = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
        for need in (match.group(1).decode().split(",") if match else []):
            if need:
                visit(need.replace("-", "_"), depth + 1)
        order.append(path)

    for name in names:
        visit(name, 0)
    return order


def module_names(order):
    """[(name that sorts in loading order, file)]"""
    return [(f"{idx:02}-{path.name}", path) for idx, path in enumerate(order)]


class Cpio:
    """Writes the kernel's "newc" archives; also, one after another in one
    file, which the kernel unpacks over each other."""

    def __init__(self):
        self.parts = []
        self.inode = 1

    def add(self, name, mode, data=b"", rdev=(0, 0)):
        fields = (self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, rdev[0],
                  rdev[1], len(name) + 1, 0)
        self.inode += 1
        head = b"070701" + b"".join(b"%08X" % field for field in fields)
        head += name.encode() + b"\0"
        self.parts.append(head + bytes(-len(head) % 4)
                          + data + bytes(-len(data) % 4))

    def folder(self, name):
        self.add(name, 0o040755)

    def file(self, name, data, mode=0o755):
        self.add(name, 0o100000 | mode, data)

    def device(self, name, major, minor):
        self.add(name, 0o020600, rdev=(major, minor))

    def finish(self):
        self.add("TRAILER!!!", 0)
        return b"".join(self.parts)


def make_initrd(busybox, modules):
    cpio = Cpio()
    for name in ("bin", "dev", "proc", "sys", "run", "root", "modules"):
        cpio.folder(name)
    cpio.device("dev/console", 5, 1)
    cpio.file("bin/busybox", busybox)
    cpio.file("init", (HERE / "initrd-init").read_bytes())
    for name, path in module_names(modules):
        cpio.file(f"modules/{name}", path.read_bytes())
    return cpio.finish()


def job_initrd(guest, job):
    """The guest's initrd with a shell script that it runs once the root is
    its own; returns bytes."""
    cpio = Cpio()
    cpio.file("job", job.encode())
    return guest.initrd.read_bytes() + cpio.finish()


def make_root(root, modules):
    """Completes an unpacked tree to one that a machine starts from."""
    for name in (MODULE_DIR, "dev", "proc", "sys", "run", "tmp", "mnt", "root", "home",
                 "etc", "sbin", "usr/bin"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in APPLETS:
        taken = any((root / folder / name).exists()
                    or (root / folder / name).is_symlink()
                    for folder in ("bin", "sbin", "usr/bin", "usr/sbin"))
        if not taken:
            (root / "usr/bin" / name).symlink_to("/bin/busybox")
    (root / "bin/sh").unlink(missing_ok=True)
    (root / "bin/sh").symlink_to("busybox")
    shutil.copyfile(HERE / "disk-init", root / "sbin/init")
    (root / "sbin/init").chmod(0o755)
    (root / "etc/hostname").write_text("guest\n")
    (root / "etc/passwd").write_text("root::0:0:root:/root:/bin/sh\n")
    (root / "etc/motd").write_text("A small machine on a served disk.\n")
    for name, path in module_names(modules):
        shutil.copyfile(path, root / MODULE_DIR / name)
    # A home with work in it: what a rm -rf is really feared for.
    for idx in range(256):
        folder = root / f"home/ann/project-{idx % 16:02}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"note-{idx:03}.txt").write_text(
            f"note {idx}\n" * (1 + idx * 7 % 400))


def make_disk(root, disk):
    """An ext4 filesystem with the tree's files."""
    with open(disk, "wb") as out:
        out.truncate(DISK_BYTES)
    # Lazy initialisation would go on writing in the background of a guest.
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-L", "guest", "-m", "0",
         "-J", "size=8", "-E",
         "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0",
         "-d", root, disk],
        env={**os.environ,
             "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"})


def recipe_digest(arch):
    """Changes when what is built here would come out differently."""
    digest = hashlib.sha256(arch.encode())
    for path in (HERE / "guest.py", HERE / "initrd-init", HERE / "disk-init"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def build(arch, folder, tell):
    """Fetches and builds into the empty `folder`."""
    tell(f"fetching Debian's {ARCHES[arch]['debian']} kernel and busybox")
    apt = Apt(folder / "apt", ARCHES[arch]["debian"])
    apt.update()
    kernel_deb, root_debs = apt.fetch()
    tell("building the guest's disk")
    boot, root = folder / "boot", folder / "root"
    run(["dpkg-deb", "-x", kernel_deb, boot])
    root.mkdir()
    for deb in root_debs:
        run(["dpkg-deb", "-x", deb, root])
    kernel = next((boot / "boot").glob("vmlinuz-*"))
    busybox = (root / "bin/busybox").read_bytes()
    first = module_order(boot, MODULES)
    (folder / "initrd").write_bytes(make_initrd(busybox, first))
    kernel.rename(folder / "kernel")
    make_root(root, [path for path in module_order(boot, DISK_MODULES)
                     if path not in first])
    make_disk(root, folder / "disk.raw")
    names = "".join(f"{deb.name}\n" for deb in [kernel_deb, *root_debs])
    (folder / "versions").write_text(names)
    for sub in (boot, root, folder / "apt"):
        shutil.rmtree(sub)
    (folder / "recipe").write_text(recipe_digest(arch))


def prepare(arch, refresh=False, tell=lambda text: None):
    """The guest of an architecture, from the cache or built now. Raises
    Unavailable. Several callers at once wait for one another."""
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"guest-{arch}"
    with open(cache / f"guest-{arch}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        recipe = folder / "recipe"
        if (refresh or not recipe.exists()
                or recipe.read_text() != recipe_digest(arch)):
            fresh = cache / f"guest-{arch}.new"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            try:
                build(arch, fresh, tell)
                shutil.rmtree(folder, ignore_errors=True)
                fresh.rename(folder)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    return Guest(arch, folder)


def boot_sector(path):
    """Assembles the boot-sector guest into a 1 MiB disk image at `path`."""
    source = HERE / "bootsector.S"
    obj = f"{path}.o"
    run(["as", "--32", "-o", obj, source])
    run(["ld", "-m", "elf_i386", "-Ttext=0x7c00", "--oformat=binary",
         "-o", path, obj])
    os.unlink(obj)
    code = pathlib.Path(path).read_bytes()
    if len(code) != 512 or struct.unpack("<H", code[510:])[0] != 0xAA55:
        raise Unavailable(f"{source.name} is not one boot sector")
    with open(path, "r+b") as out:
        out.truncate(1 << 20)


def main():
    parser = argparse.ArgumentParser(
        description="Build a small Linux guest from Debian's packages.")
    parser.add_argument("arch", choices=sorted(ARCHES))
    parser.add_argument("--refresh", action="store_true",
                        help="fetch again, even if the cache has it")
    parser.add_argument("--job", nargs=2, metavar=("SCRIPT", "INITRD"),
                        help="write an initrd that runs the shell script")
    args = parser.parse_args()
    try:
        guest = prepare(args.arch, args.refresh,
                        lambda text: print(f"  {text}", file=sys.stderr))
    except Unavailable as why:
        sys.exit(f"guest.py: {why}")
    if args.job:
        script, initrd = map(pathlib.Path, args.job)
        initrd.write_bytes(job_initrd(guest, script.read_text()))
        return
    print(f"qemu={guest.info['qemu']}")
    print(f"machine={' '.join(guest.info['machine'])}")
    print(f"append={command_line(guest)}")
    for name in ("kernel", "initrd", "disk", "versions"):
        print(f"{name}={getattr(guest, name)}")


if __name__ == "__main__":
    main()
