#!/bin/sh
# Makes the virtual environment .venv and installs requirements.lock and this package into it.
# Run from the project's root (`make setup` does); safe to interrupt and to run again.
#
# Python is the first of these that runs and can make virtual environments: python3.12; a python3 of version 3.12 or
# newer; uv, which fetches Python 3.12 by itself. pip's own settings (PIP_* variables, pip.conf) are respected.
set -eu

VENV=.venv
MAKING=$VENV/.making       # there while the environment itself is being made
INSTALLED=$VENV/.installed # there when everything is installed; the Makefile compares its time

fail() {
    echo "setup_venv.sh: error: $1" >&2
    exit 1
}

# A pyenv shim may be on the PATH without its Python, and a distribution's Python without ensurepip: try, do not look.
can_make_venvs() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1
}

make_venv() {
    # The marker comes before anything else and goes last, so that an interrupted run is seen. What such a run has left
    # is removed before the search: with an activated .venv its python3.12 would be the first on the PATH.
    mkdir -p "$VENV"
    : >"$MAKING"
    rm -rf "${VENV:?}"/*
    if can_make_venvs python3.12; then
        set -- python3.12 -m venv
    elif can_make_venvs python3; then
        set -- python3 -m venv
    elif command -v uv >/dev/null 2>&1; then
        set -- uv venv --python 3.12 --seed --allow-existing
    else
        rm -rf "$VENV"
        fail "no Python 3.12 or newer with venv and ensurepip; install Python 3.12 (Debian, Ubuntu: python3.12-venv) or uv"
    fi
    "$@" "$VENV" || fail "$1 could not make $VENV (its reason is above); mend that and run make again"
    rm "$MAKING"
}

check_venv() {
    "$VENV/bin/python" -c '' 2>/dev/null ||
        fail "$VENV/bin/python does not run; remove the folder $VENV and run make again"
    "$VENV/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' ||
        fail "$VENV has $("$VENV/bin/python" -V 2>&1), expected 3.12 or newer; remove the folder $VENV and run make again"
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1 ||
        fail "$VENV has no working pip; remove the folder $VENV and run make again"
}

# pip writes INSTALLER and RECORD last. A package without them is half copied, yet pip would take it for installed.
forget_half_installed() {
    for info in "$VENV"/lib/python3*/site-packages/*.dist-info; do
        if [ -d "$info" ] && { [ ! -f "$info/INSTALLER" ] || [ ! -f "$info/RECORD" ]; }; then
            echo "setup_venv.sh: $info is incomplete; installing this package again"
            rm -rf "$info"
        fi
    done
}

[ -f requirements.lock ] || fail "no requirements.lock in $(pwd); run make in the project's root"
rmdir "$VENV" 2>/dev/null || true # an empty folder is as good as none
if [ ! -d "$VENV" ] || [ -f "$MAKING" ]; then
    make_venv
fi
check_venv
forget_half_installed
echo "setup_venv.sh: installing requirements.lock into $VENV; the first time about 5 GB and a few minutes"
"$VENV/bin/python" -m pip install -r requirements.lock ||
    fail "pip could not install requirements.lock (its reason is above); run make again to continue"
"$VENV/bin/python" -m pip install --no-deps --no-build-isolation -e . ||
    fail "pip could not install this package (its reason is above); run make again to continue"
: >"$INSTALLED"
