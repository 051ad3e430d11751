#!/bin/sh
# Runs when the packages are installed: puts the newest kernel of the same sources into the root at $1, as files. Installed
# as a package it would bring the programs that make a first file system, and make one.
set -eu
root=$1
APT_CONFIG=$MMDEBSTRAP_APT_CONFIG
export APT_CONFIG
kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: *\(linux-image-.*\)/\1/p' | head -n 1)
test -n "$kernel" || { echo "the sources have no linux-image-cloud-amd64" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -o APT::Sandbox::User=root download -q "$kernel"
# The folders of the root are links into usr, which stay links.
dpkg-deb --fsys-tarfile ./*.deb | tar -C "$root" -x --keep-directory-symlink ./boot ./lib/modules
for release in "$root"/usr/lib/modules/*; do
    chroot "$root" depmod "${release##*/}"
done
