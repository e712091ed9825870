#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test_probes.sh - the library has the probes that libgcuffd-probes(7) lists and no others, each with as many arguments; or none at all, if it was
# built without.
set -eu
build=${top_builddir:-.}
lib=$build/.libs/libgcuffd.so
[ -f "$lib" ] || { echo "no shared library was built"; exit 77; }
command -v readelf >/dev/null || { echo "no readelf here"; exit 77; }
dir=$(mktemp -d "${TMPDIR:-/tmp}/gu-probes.XXXXXX")
trap 'rm -rf "$dir"' EXIT

# "NAME ARGUMENTS" for each entry of the page. What has no line with its arguments is a step, and has two.
awk '
/^\.T[PQ]$/ { entry = 1; next }
entry && /^\.B [a-z_]*$/ { name = $2; arguments[name] = 2; entry = 0; next }
name && /^\.IR .* \.$/ { arguments[name] = gsub(/", "/, "") + 1 }
{ name = "" }
END { for (name in arguments) print name, arguments[name] }' "${top_srcdir:-.}/man/libgcuffd-probes.7" | sort >"$dir/listed"
grep -q '^mark__begin 2$' "$dir/listed" || { echo "the page was not understood"; exit 1; }

# One that is in several places is named as often.
readelf -n "$lib" >"$dir/notes" 2>/dev/null
awk '
/^ *Provider:/ { ours = $2 == "libgcuffd"; if (!ours) print "provider", $2 }
/^ *Name:/ { name = $2 }
/^ *Arguments:/ && ours { print name, NF - 1 }' "$dir/notes" | sort -u >"$dir/found"

if "$build/gcuffd" probe | grep -qx 'USDT probes compiled in'; then
	diff -u "$dir/listed" "$dir/found" || { echo "the page and the library differ"; exit 1; }
	echo "PASS $(wc -l <"$dir/found") probes"
else
	[ ! -s "$dir/found" ] || { echo "there are probes that gcuffd probe knows nothing of"; cat "$dir/found"; exit 1; }
	echo "PASS built without probes"
fi
