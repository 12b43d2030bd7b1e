"""What a newcomer meets: do the pinned versions resolve, and do `make demo` and the tests end well on a bare machine?

    python3 -m tools.installation                        # all of it: the resolver, then both systems
    python3 -m tools.installation resolve                # Python 3.10 to 3.13
    python3 -m tools.installation trixie --tests all     # `make demo` and the whole `make test` in Debian 13
    python3 -m tools.installation bookworm --compiler --tests wheel    # with gcc, and a wheel in an empty environment

`resolve` asks the package index, and nothing else, for what setup.py and constraints.txt name: no local wheels, no
configuration of pip. It runs pip with each `python3.x` on the PATH that works, and uv's resolver for the others.

`bookworm` (Python 3.11) and `trixie` (Python 3.13) are Debian systems made by mmdebstrap. They hold python3,
python3-venv, git, make and ca-certificates, no torch, and no C compiler unless with `--compiler`. The last commit is
cloned into each. This needs Linux, root, mmdebstrap, git, a network, and 7 GB of disk, given back at the end. Proxies,
certificates and pip's index are taken from the environment. Prints minutes, and gigabytes downloaded and used; exits
with 1 if anything failed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
SYSTEMS = ("bookworm", "trixie")
PACKAGES = "python3,python3-venv,git,make,ca-certificates"
KERNELS = "tests/kernels/test_kernels.py tests/kernels/test_quant_kernels.py"
COMPILER = "gcc,libc6-dev,python3-dev"
NO_COMPILER = "! command -v cc && ! command -v gcc && ! command -v clang"  # dash looks at the first name alone
WHEEL = [
    "python3 -m venv /root/builder && /root/builder/bin/pip install -q build && "
    "/root/builder/bin/python -m build --wheel --outdir /root/wheel > /root/build.log && ls /root/wheel",
    "python3 -m venv /root/user && /root/user/bin/pip install -q /root/wheel/*.whl",
    'cd / && /root/user/bin/dia-engine say --model talker --seed 1 "[S1] Hello, my little robot." -o /root/hello.wav',
]
TESTS = {"none": [], "kernels": [f'make test TESTS="{KERNELS}"'], "all": ["make test"], "wheel": WHEEL}
NETWORK = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "PIP_INDEX_URL")
CERTIFICATES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE")  # each names a file


def resolve(version: str, folder: Path) -> None:
    """Find versions of everything that `.[test]` needs, for one version of Python.

    Raises:
        CalledProcessError: there are none; the resolver has said why.
    """
    source = folder / "source"  # asking for a package's requirements writes into its source folder
    if not source.exists():
        shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(".*", "*.egg-info", "build"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    environment |= {name: os.environ[name] for name in NETWORK + CERTIFICATES if name in os.environ}
    environment["PIP_CONFIG_FILE"] = os.devnull

    def call(*command: str | Path) -> None:
        subprocess.run(command, check=True, cwd=source, env=environment)

    python = f"python{version}"
    if works(python):
        pip = folder / version / "bin" / "pip"
        call(python, "-m", "venv", folder / version)
        call(pip, "install", "-q", "-c", "constraints.txt", "pip")
        call(pip, "install", "-q", "--dry-run", "--ignore-installed", "-c", "constraints.txt", ".[test]")
    else:
        print(f"there is no {python} here that works: asking uv", flush=True)
        uv = folder / "uv" / "bin" / "uv"
        if not uv.exists():
            call(sys.executable, "-m", "venv", folder / "uv")
            call(uv.with_name("pip"), "install", "-q", "uv")
        index = ["--default-index", environment["PIP_INDEX_URL"]] if "PIP_INDEX_URL" in environment else []
        target = ["--python-version", version, "--python-platform", "x86_64-manylinux_2_28"]
        what = ["-c", "constraints.txt", "--extra", "test", "setup.py", "-o", folder / f"{version}.txt"]
        call(uv, "pip", "compile", "-q", "--no-config", "--no-cache", *index, *target, *what)


def works(python: str) -> bool:
    """Whether a Python can make virtual environments. A version manager's commands may be on the PATH and fail."""
    if shutil.which(python) is None:
        return False
    return subprocess.run([python, "-c", "import ensurepip"], check=False, capture_output=True).returncode == 0


def install(system: str, folder: Path, targets: list[str], compiler: bool) -> None:
    """Make a Debian system, with a C compiler or without, and run commands such as `make demo` in a clone of this
    repository there.

    Raises:
        CalledProcessError: a command failed; its output stands above.
    """
    root = folder / system
    packages = f"{PACKAGES},{COMPILER}" if compiler else PACKAGES
    subprocess.run(["mmdebstrap", "-q", "--variant=minbase", f"--include={packages}", system, root], check=True)
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{ROOT}", root / "root/dia-engine"], check=True)
    environment = {
        "HOME": "/root",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "PIP_LOG": "/root/pip.log",
    }
    environment |= {name: os.environ[name] for name in NETWORK if name in os.environ}
    for name in CERTIFICATES:
        if name in os.environ:
            shutil.copy(os.environ[name], root / f"etc/{name}")
            environment[name] = f"/etc/{name}"
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")

    def call(command: str) -> None:
        # In namespaces of its own: what is mounted and started there goes when the command ends, however it ends.
        inside = 'mount --rbind /dev "$0/dev" && exec chroot "$0" sh -c "cd /root/dia-engine && $1"'
        isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child", f"--mount-proc={root}/proc"]
        subprocess.run([*isolated, "sh", "-c", inside, root, command], check=True, env=environment)

    call(f"python3 --version && {'command -v gcc' if compiler else NO_COMPILER}")
    empty = gigabytes(root)
    for target in targets:
        start = time.monotonic()
        call(target)
        print(f"{system}: `{target}` took {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
    call(".venv/bin/python -m pip list | grep -iE '^(torch|triton|numpy|transformers) '")
    loaded = downloaded((root / "root/pip.log").read_text())
    print(f"{system}: downloaded {loaded:.1f} GB, uses {gigabytes(root) - empty:.1f} GB of disk", flush=True)


def gigabytes(folder: Path) -> float:
    """Disk used by a folder, in units of 10^9 bytes."""
    used = subprocess.run(["du", "-s", "--block-size=1000", folder], check=True, capture_output=True, text=True)
    return int(used.stdout.split()[0]) / 1e6


def downloaded(log: str) -> float:
    """Sum of the downloads in a log of pip, in units of 10^9 bytes."""
    units = {"bytes": 1e-9, "kB": 1e-6, "MB": 1e-3, "GB": 1}
    return sum(float(size) * units[unit] for size, unit in re.findall(r"Downloading \S+ \(([\d.]+) (\w+)\)", log))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help="resolve, bookworm, trixie; default: all")
    parser.add_argument("--tests", choices=TESTS, default="kernels", help="what to test in the systems, after the demo")
    parser.add_argument("--compiler", action="store_true", help="the systems have gcc")
    parser.add_argument("--folder", help="where to make temporary folders, default: $TMPDIR or /tmp")
    arguments = parser.parse_args()
    known = ("resolve", *SYSTEMS)
    parts = arguments.parts or known
    unknown = set(parts) - set(known)
    if unknown:
        parser.error(f"a part is one of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    if set(parts) & set(SYSTEMS):
        missing = [command for command in ("mmdebstrap", "git", "unshare") if not shutil.which(command)]
        if os.geteuid() != 0 or missing:
            parser.error(
                f"{' and '.join(SYSTEMS)} need root and mmdebstrap, git and unshare; missing: {missing or 'root'}"
            )

    failed = []
    for part in parts:
        for version in PYTHONS if part == "resolve" else [None]:
            name = f"Python {version}: resolve" if version else part
            with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="dia-engine-") as folder:
                try:
                    if version:
                        resolve(version, Path(folder))
                    else:
                        install(part, Path(folder), ["make demo", *TESTS[arguments.tests]], arguments.compiler)
                except subprocess.CalledProcessError as error:
                    failed.append(name)
                    print(f"{name}: failed with {error.returncode}", flush=True)
                else:
                    print(f"{name}: good", flush=True)
    print(f"failed: {', '.join(failed)}" if failed else "all good")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
