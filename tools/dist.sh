#!/bin/sh
# Makes the release from what git tracks, as it stands in the working tree: the source distribution, and a wheel that is
# built from it and so shows that it is whole. Each is then installed into an empty folder outside of the clone and tried
# there; only what has passed appears in the output folder.
# Run from the project's root (`make dist` does): tools/dist.sh [FOLDER]     (default dist)
# No index is asked: setuptools of the environment builds, and what the package needs is taken from there.
set -eu

fail() {
    echo "dist.sh: error: $1" >&2
    exit 1
}

python=${PYTHON:-python}
output=${1:-dist}
[ -f pyproject.toml ] && [ -e .git ] || fail "$(pwd) is no clone; run make dist in the project's root"
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' megatron_chimed/__init__.py)
grep -q "^## \[$version\] - [0-9]" CHANGELOG.md || fail "CHANGELOG.md has no entry with a date for $version; write it first"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A copy, so that neither a file that git does not know nor an earlier build can get in.
mkdir "$work/source" "$work/made"
git ls-files -z >"$work/names"
tar --null -cf "$work/source.tar" -T "$work/names"
tar -xf "$work/source.tar" -C "$work/source"
(cd "$work/source" && "$python" -c 'from setuptools.build_meta import build_sdist; build_sdist("../made")') \
    >"$work/sdist.log" 2>&1 || { cat "$work/sdist.log" >&2; fail "setuptools could not build the source distribution"; }
pip() {
    "$python" -m pip --disable-pip-version-check "$@" --quiet --no-deps --no-index --no-build-isolation
}
pip wheel "$work/made/megatron_chimed-$version.tar.gz" --wheel-dir "$work/made" || fail "pip could not build the wheel"

# try FOLDER: the commands of what is installed there, in a folder with nothing else. PYTHONPATH stands before the
# environment's own packages, among which is this clone.
try() {
    mkdir "$1/work"
    cd "$1/work"
    export PYTHONPATH="$1/packages" PATH="$1/packages/bin:$PATH"
    place=$("$python" -c 'import megatron_chimed; print(megatron_chimed.__file__)')
    [ "$place" = "$1/packages/megatron_chimed/__init__.py" ] || fail "$place was imported in place of $1/packages"
    [ "$(chimed --version)" = "$version" ] || fail "chimed --version says $(chimed --version), expected $version"
    chimed --help >help.txt
    for word in corpus train evaluate; do
        grep -q "chimed $word" help.txt || fail "chimed --help does not name chimed $word"
    done
    # The rows differ, for a tokenizer of so many pieces wants text of its own for each.
    number=1
    while [ $number -lt 400 ]; do
        printf '{"text": "第%d位患者头痛发热%d天，建议多喝水、%d日后复查。"}\n' $number $((number % 7)) $((number * number))
        number=$((number + 1))
    done >texts.jsonl
    chimed tokenizer --input texts.jsonl --vocab-size 300 --output tokenizer >log.txt 2>&1 || { cat log.txt >&2; fail "chimed tokenizer"; }
    chimed corpus --input texts.jsonl --output-prefix corpus --tokenizer-type SentencePieceTokenizer \
        --tokenizer-model tokenizer/tokenizer.model --append-eod --clean --workers 1 >log.txt 2>&1 ||
        { cat log.txt >&2; fail "chimed corpus"; }
    chimed verify corpus corpus >log.txt 2>&1 || { cat log.txt >&2; fail "chimed verify corpus"; }
}

for made in "$work/made"/*; do
    folder=$work/tried-${made##*.}
    mkdir "$folder"
    pip install "$made" --target "$folder/packages" || fail "pip could not install ${made##*/}"
    # Templates, tasks and pages are files that no import would miss.
    (cd "$work/source" && find megatron_chimed -type f) | while read -r name; do
        [ -f "$folder/packages/$name" ] || fail "${made##*/} has no $name; pyproject.toml names the files beside the code"
    done
    (try "$folder")
    echo "dist.sh: ${made##*/} is installed and runs outside of the clone"
done
mkdir -p "$output"
mv "$work/made"/* "$output/"
echo "dist.sh: $output holds the source distribution and the wheel of $version"
