#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test_secure.sh - a program that runs with more privilege than its caller takes nothing from the caller's environment; run
# without, the same words have their effects. And what the library writes when it is told to has the mode that the umask says.
#
# vm: tests/prog_pub_secure .libs/libgcuffd.so.0 .libs/libgcuffd-preload.so
set -u
build=$(cd "${top_builddir:-.}" && pwd)
program=$build/tests/prog_pub_secure
# lacks NEED WORDS
lacks() {
	case ,${CHECK_NEED:-}, in *,$1,*) echo "FAIL: CHECK_NEED has $1: $2"; exit 1 ;; esac
	echo "SKIP: $2"
	exit 77
}

[ "$(id -u)" = 0 ] || lacks root "only root can make such a program"
[ -f "$build/.libs/libgcuffd-preload.so" ] || { echo "SKIP: no shared libraries were built"; exit 77; }
[ -z "${GU_SANITIZE:-}" ] || { echo "SKIP: a sanitizer reads the environment"; exit 77; }
dir=$(mktemp -d "${TMPDIR:-/tmp}/gu-secure.XXXXXX")
trap 'rm -rf "$dir"' EXIT
chmod 755 "$dir"
mkdir -m 1777 "$dir/out"

# The raised program finds its libraries in the build directory. Nobody may be kept out of that: LD_LIBRARY_PATH is for
# the plain one.
cp "$program" "$dir/plain" && cp "$build/.libs/libgcuffd.so.0" "$build/.libs/libgcuffd-preload.so" "$dir/" || exit 1
cp "$dir/plain" "$dir/raised" && chmod 4755 "$dir/raised" || exit 1

# as_nobody PROGRAM: with words in the environment, each of which says or does something when it is read.
as_nobody() {
	rm -f "$dir"/out/*
	(cd / && "$program" env GCUFFD_PRELOAD=no_such=1 GCUFFD_WITHOUT=no_such "LD_LIBRARY_PATH=$dir" \
		"GCUFFD_PRELOAD_STATS=$dir/out/stats" GU_JE_MALLOC_CONF=no_such:1 GCUFFD_OPTIONS=no_such \
		timeout 60 "$dir/$1") >"$dir/stdout" 2>"$dir/stderr"
	status=$?
	[ $status = 0 ] || { echo "$1: exit status $status"; cat "$dir/stdout" "$dir/stderr"; exit 1; }
}

show() { cat "$dir/stdout" "$dir/stderr"; ls "$dir/out"; }

as_nobody plain
grep -q "^secure 0 heap 0" "$dir/stdout" || { echo "the program does not work:"; show; exit 1; }
for word in GCUFFD_PRELOAD GCUFFD_WITHOUT jemalloc; do
	grep -q "$word" "$dir/stderr" || { echo "$word: was not read at all, so nothing is shown by it"; show; exit 1; }
done
[ -s "$dir/out/stats" ] || { echo "no statistics were written"; show; exit 1; }

as_nobody raised
grep -q "^secure 0" "$dir/stdout" && lacks setuid "here the bit that raises has no effect (nosuid?)"
grep -q "^secure 1 heap 0" "$dir/stdout" || { echo "the raised program does not work:"; show; exit 1; }
if [ -s "$dir/stderr" ] || [ -e "$dir/out/stats" ]; then
	echo "the raised program read its caller's environment:"
	show
	exit 1
fi

# The one file that is ever written.
for mask in 077 022; do
	rm -f "$dir/out/stats"
	(umask $mask && GCUFFD_PRELOAD_STATS="$dir/out/stats" "$dir/plain" >/dev/null 2>&1)
	mode=$(stat -c %a "$dir/out/stats")
	[ "$mode" = "$(printf %o $((0666 & ~mask)))" ] || { echo "umask $mask: mode $mode"; exit 1; }
done
echo "PASS environment mode"
