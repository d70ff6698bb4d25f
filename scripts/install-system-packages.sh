#!/usr/bin/env bash
# Installs the Debian packages that a bare machine lacks, and says nothing where it lacks none.
#
#   install-system-packages.sh venv    what `python3 -m venv` needs
#   install-system-packages.sh test    that, what Qt 6 and OpenGL need under Xvfb, and a browser for the exported page
#
# Debian and its kin only: elsewhere, or without the right to install, it prints what is needed and goes on.
set -euo pipefail

gui=(
  xvfb xauth
  libegl1 libgl1 libgl1-mesa-dri libopengl0
  libdbus-1-3 libfontconfig1 libglib2.0-0 fonts-dejavu-core
  libx11-xcb1 libxkbcommon0 libxkbcommon-x11-0
  libxcb-cursor0 libxcb-icccm4 libxcb-image0 libxcb-keysyms1 libxcb-randr0 libxcb-render-util0 libxcb-render0
  libxcb-shape0 libxcb-shm0 libxcb-sync1 libxcb-util1 libxcb-xfixes0 libxcb-xinerama0 libxcb-xkb1
)

case ${1:-} in
  venv) wanted=() ;;
  test) wanted=("${gui[@]}") ;;
  *) echo "usage: ${0##*/} venv|test" >&2; exit 2 ;;
esac

# Any browser of the family will do: Debian has Chromium and its driver as packages, and others bring their own.
if [[ $1 == test ]] && ! { command -v chromedriver && command -v chromium google-chrome chromium-browser; } >/dev/null; then
  wanted+=(chromium chromium-driver)
fi

# Debian splits ensurepip off its python3; any other python3 brings its own.
"${PYTHON:-python3}" -c 'import ensurepip' 2>/dev/null || wanted+=(python3-venv)
[[ ${#wanted[@]} -gt 0 ]] || exit 0

# Newer releases call some libraries NAMEt64 and let NAME stand for them; that one of the two is unknown is no failure.
installed() {
  { dpkg-query -W -f='${db:Status-Status}\n' "$1" "$1t64" 2>/dev/null || true; } | grep -x installed >/dev/null
}

missing=()
if command -v dpkg-query >/dev/null; then
  for package in "${wanted[@]}"; do
    installed "$package" || missing+=("$package")
  done
else
  missing=("${wanted[@]}")
fi
[[ ${#missing[@]} -gt 0 ]] || exit 0

as_root=(env)
if [[ $(id -u) -ne 0 ]]; then
  as_root=(sudo env)
fi
if ! command -v apt-get >/dev/null || ! { [[ $(id -u) -eq 0 ]] || sudo -v; }; then
  echo "Cannot install system packages here; this needs what Debian calls: ${missing[*]}" >&2
  exit 0
fi

echo "Installing system packages: ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt_get() {
  "${as_root[@]}" DEBIAN_FRONTEND=noninteractive apt-get -q -o Dpkg::Use-Pty=0 "$@" >"$log" 2>&1 ||
    { cat "$log" >&2; return 1; }
}
apt_get update || echo "The package lists could not be refreshed; going on with those at hand." >&2
# Not every release packages the browser; the tests that need it say so where it is missing.
known=()
for package in "${missing[@]}"; do
  if [[ $package != chromium* || -n $(apt-cache madison "$package") ]]; then
    known+=("$package")
  fi
done
apt_get install -y --no-install-recommends "${known[@]}"
