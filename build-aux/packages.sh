#!/bin/sh
# Installs the Debian packages that are missing: packages.sh NAME... -- NAME...
# Of those behind -- only what this release of Debian has. Nothing is asked of the network when nothing is missing.
#
# apt-get takes a name that it does not know for a regular expression (linux-source-6.1 then means linux-source-6.12
# too), so it is given exact names of packages that apt-cache knows.
set -eu

installed() { dpkg-query -W -f='${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed; }
known() { apt-cache pkgnames "$1" | grep -qFx "$1"; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

missing='' optional='' there='' behind=''
for name; do
  if [ "$name" = -- ]; then behind=yes
  elif installed "$name"; then there="$there${behind:+ $name}"
  elif [ "$behind" ]; then optional="$optional $name"
  else missing="$missing $name"; fi
done

if [ "$missing" ] || { [ "$optional" ] && [ ! "$there" ]; }; then
  as_root apt-get update -q
fi
for name in $optional; do
  if known "$name"; then missing="$missing $name"; fi
done
for name in $missing; do
  known "$name" || { echo "this release of Debian has no package $name" >&2; exit 1; }
done
if [ "$missing" ]; then
  echo "installing$missing"
  # shellcheck disable=SC2086  # names have no blanks
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
fi
