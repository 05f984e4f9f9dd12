#!/usr/bin/env bash
# Fetches onnxruntime for C++ into a folder: lib/ from the Python wheel, include/ from Debian.
#
#   ./get_onnxruntime.sh FOLDER
#
# The wheel has the library without headers; Debian's package has the headers, which are older than
# the library, as onnxruntime allows. Needs python3 with pip, apt-get and dpkg-deb, but neither root
# nor an installation. DEBIAN_MIRROR: where Debian's packages are, if apt does not know it. A release
# archive of onnxruntime, unpacked, has the same layout and does as well.
set -euo pipefail

library=1.31.1  # of the wheel
suite=trixie    # of Debian, whose libonnxruntime-dev is 1.21

python=${PYTHON:-python3}
folder=${1:?usage: get_onnxruntime.sh FOLDER}
if [[ -e $folder/include/onnxruntime_cxx_api.h && -e $folder/lib/libonnxruntime.so ]]; then
  echo "$folder has onnxruntime"
  exit 0
fi

fail() {
  printf 'get_onnxruntime.sh: %s\n' "$@" >&2
  exit 2
}

[[ ! -e $folder ]] || fail "$folder exists" "  remedy: remove it, or choose another folder"
for program in "$python" apt-get dpkg-deb; do
  command -v "$program" >/dev/null || fail "$program is missing" \
    "  remedy: install it, or unpack a release of onnxruntime for C++ as $folder"
done
mkdir -p "$(dirname "$folder")"
work=$(mktemp -d "$(realpath "$(dirname "$folder")")/.onnxruntime.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{wheel,apt/lists/partial,apt/archives/partial,deb,ready/lib,ready/include}

echo "library: onnxruntime $library from its Python wheel"
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
  --dest "$work/wheel" "onnxruntime==$library" ||
  fail "pip cannot fetch onnxruntime==$library" "  remedy: see pip's message and its settings"
"$python" -m zipfile -e "$work"/wheel/*.whl "$work/wheel"
cp "$work/wheel/onnxruntime/capi/libonnxruntime.so.$library" "$work/ready/lib"
cp "$work/wheel/onnxruntime/"{LICENSE,ThirdPartyNotices.txt} "$work/ready"
ln -s "libonnxruntime.so.$library" "$work/ready/lib/libonnxruntime.so.1"
ln -s libonnxruntime.so.1 "$work/ready/lib/libonnxruntime.so"

# An apt of its own, with one source: the machine's lists and packages stay as they are.
# shellcheck disable=SC2016  # apt fills in SITE
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(SITE)' | grep -m1 '/debian/*$' || true)}
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[[ -n $mirror ]] || fail "apt knows no mirror of Debian" "  remedy: DEBIAN_MIRROR=... $0 $folder"
[[ -r $keys ]] || fail "$keys is missing" "  remedy: install debian-archive-keyring"
echo "headers: libonnxruntime-dev of Debian $suite"
printf 'deb [signed-by=%s] %s %s main\n' "$keys" "$mirror" "$suite" >"$work/apt/sources.list"
own_apt=(apt-get -qq -o "Dir::State=$work/apt" -o "Dir::Cache=$work/apt"
  -o Dir::State::status=/dev/null -o "Dir::Etc::SourceList=$work/apt/sources.list"
  -o Dir::Etc::SourceParts=/dev/null -o Dir::Etc::PreferencesParts=/dev/null
  -o "APT::Sandbox::User=$(id -un)" -o Acquire::Retries=3)
"${own_apt[@]}" update || fail "apt cannot read Debian $suite" "  remedy: see apt's message"
(cd "$work/deb" && "${own_apt[@]}" download libonnxruntime-dev) ||
  fail "apt cannot fetch libonnxruntime-dev" "  remedy: see apt's message"
dpkg-deb -x "$work"/deb/libonnxruntime-dev_*.deb "$work/deb"
cp "$work"/deb/usr/include/onnxruntime/onnxruntime_*.h "$work/ready/include"

mv "$work/ready" "$folder"
echo "$folder is ready"
