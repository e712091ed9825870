#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test_exports.sh - the library exports what the map lists, all of it gcuffd_*, and nothing that would
# replace a symbol of the program's; the preload library what its own map lists, and nothing of the library's, which it needs.
set -eu
lib=${top_builddir:-.}/.libs/libgcuffd.so
map=${top_srcdir:-.}/src/libgcuffd.map
[ -f "$lib" ] || { echo "no shared library was built"; exit 77; }
command -v nm >/dev/null || { echo "no nm here"; exit 77; }

dir=$(mktemp -d "${TMPDIR:-/tmp}/gu-exports.XXXXXX")
trap 'rm -rf "$dir"' EXIT
nm -D --defined-only "$lib" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' | sort >"$dir/exported"
sed -n 's/^[[:space:]]*\([a-z_]*\);$/\1/p' "$map" | sort >"$dir/listed"
if grep -v '^gcuffd_' "$dir/exported"; then
	echo "exported, and not gcuffd_*"
	exit 1
fi
diff -u "$dir/listed" "$dir/exported"
# every function and variable of the header, and no other
sed -n 's/^GCUFFD_API.*[ *]\(gcuffd_[a-z_]*\)[(;].*/\1/p' "${top_srcdir:-.}/include/gcuffd.h" | sort >"$dir/declared"
diff -u "$dir/declared" "$dir/exported"

preload=${top_builddir:-.}/.libs/libgcuffd-preload.so
nm -D --defined-only "$preload" | awk '{ print $3 }' | sort >"$dir/exported"
sed -n '/global:/,/local:/p' "${top_srcdir:-.}/src/preload/preload.map" | tr -s ' \t' '\n' | sed -n 's/;$//p' | sort >"$dir/listed"
diff -u "$dir/listed" "$dir/exported"
readelf -d "$preload" | grep -q 'NEEDED.*\[libgcuffd\.so\.0\]' || { echo "the preload library is not on libgcuffd.so.0"; exit 1; }
