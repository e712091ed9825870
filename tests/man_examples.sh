#!/bin/sh
# SPDX-License-Identifier: MIT
#
# man_examples.sh - compiles each example of the manual pages, with all warnings as errors, links it to
# the library in the build directory, and runs it: it must end with status 0. An example is what
# stands between .EX and .EE after .SH EXAMPLES. Runs in the build directory.
set -eu

top=${top_srcdir:-$(cd "$(dirname "$0")/.." && pwd)}
build=${top_builddir:-.}
cc=${CC:-cc}
lib=$(cd "$build" && pwd)/.libs
tmp=$(mktemp -d "${TMPDIR:-/tmp}/gu-man.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
failed=0 count=0

[ -e "$lib/libgcuffd.so" ] || { echo "skip: no libgcuffd.so in $lib"; exit 77; }
# shellcheck disable=SC2086 # CC may hold options
echo 'int main(void) { return 0; }' | $cc -x c -o "$tmp/try" - 2>/dev/null || { echo "skip: $cc does not work"; exit 77; }

extract() {
	awk '/^\.SH /{ on = /EXAMPLES/ } on && /^\.EE/{ exit } on && code { print } on && /^\.EX/{ code = 1 }' "$1" |
		sed 's/\\-/-/g; s/\\&//g; s/\\(aq/'"'"'/g; s/\\e/\\/g'
}

# run_example PAGE
run_example() {
	name=$(basename "$1")
	extract "$1" >"$tmp/$name.c"
	[ -s "$tmp/$name.c" ] || { echo "FAIL: $name has no example"; return 1; }
	# shellcheck disable=SC2086
	$cc -std=gnu17 -g -O1 -Wall -Wextra -Werror -pthread ${GU_SANITIZE:-} -I"$top/include" "$tmp/$name.c" -o "$tmp/$name" \
		-L"$lib" -lgcuffd -Wl,-rpath,"$lib" || { echo "FAIL: $name does not compile"; return 1; }
	"$tmp/$name" >"$tmp/out" 2>&1 </dev/null || { echo "FAIL: $name ends with $?"; cat "$tmp/out"; return 1; }
	echo "ok: $name: $(tr '\n' ' ' <"$tmp/out")"
}

for page in "$top"/man/gcuffd_*.3 "$top"/man/gcuffd.7; do
	grep -q '^\.so ' "$page" && continue
	count=$((count + 1))
	run_example "$page" || failed=1
done
[ $failed = 0 ] && echo "PASS: $count examples"
exit $failed
