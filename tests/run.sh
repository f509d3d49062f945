#!/bin/sh
# Runs the whole test suite. Where no Vulkan driver is installed it adds a software one first (Debian, Ubuntu, Fedora, Arch,
# Alpine); macOS and Windows bring their own graphics API.
set -eu
cd "$(dirname "$0")/.."

has_driver() {
  [ -n "${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-}" ] && return 0
  for dir in /usr/share/vulkan/icd.d /etc/vulkan/icd.d /usr/local/share/vulkan/icd.d; do
    # A driver for a GPU counts only where a GPU is; the software one (lavapipe) works everywhere.
    for file in "$dir"/*.json; do
      [ -e "$file" ] || continue
      case $file in *lvp*) return 0 ;; esac
      [ -e /dev/dri/renderD128 ] || [ -e /dev/nvidiactl ] || continue
      return 0
    done
  done
  return 1
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else
    echo "tests/run.sh: no Vulkan driver, and no right to install one; as root: $*" >&2
    exit 1
  fi
}

if [ "$(uname -s)" = Linux ] && ! has_driver; then
  echo "tests/run.sh: no Vulkan driver found; installing Mesa's software driver"
  if command -v apt-get >/dev/null; then
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq mesa-vulkan-drivers libvulkan1
  elif command -v dnf >/dev/null; then
    as_root dnf install -y -q mesa-vulkan-drivers vulkan-loader
  elif command -v pacman >/dev/null; then
    as_root pacman -S --noconfirm --needed vulkan-swrast vulkan-icd-loader
  elif command -v apk >/dev/null; then
    as_root apk add --quiet mesa-vulkan-swrast vulkan-loader
  else
    echo "tests/run.sh: install a Vulkan driver (Mesa's lavapipe will do) and run this again" >&2
    exit 1
  fi
fi

exec cargo test --no-fail-fast "$@"
