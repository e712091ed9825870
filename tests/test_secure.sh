#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test_secure.sh - a program that runs with more privilege than its caller takes nothing from the caller's environment; run
# without, the same words have their effects. And what the library writes when it is told to has the mode that the umask says.
set -u
build=${top_builddir:-.}
header=${top_srcdir:-.}/include
[ "$(id -u)" = 0 ] || { echo "SKIP: only root can make such a program"; exit 77; }
[ -f "$build/.libs/libgcuffd-preload.so" ] || { echo "SKIP: no shared libraries were built"; exit 77; }
[ -z "${GU_SANITIZE:-}" ] || { echo "SKIP: a sanitizer reads the environment"; exit 77; }
command -v setpriv >/dev/null || { echo "SKIP: no setpriv here"; exit 77; }
dir=$(mktemp -d "${TMPDIR:-/tmp}/gu-secure.XXXXXX")
trap 'rm -rf "$dir"' EXIT
chmod 755 "$dir"
mkdir -m 1777 "$dir/out"

cat >"$dir/program.c" <<'END'
#include <stdio.h>
#include <stdlib.h>
#include <sys/auxv.h>

#include "gcuffd.h"

static int fill(void *data, size_t offset, size_t length, void *into)
{
	(void)data, (void)offset, (void)length, (void)into;
	return 0;
}

/* The answer and what was said on stderr are looked at by the caller. */
int main(void)
{
	struct gcuffd_heap *heap;
	struct gcuffd_watch *watch;
	struct gcuffd_lazy *lazy;
	void *start;
	free(malloc(100));
	int made = gcuffd_heap_create(NULL, &heap);
	if (!made && gcuffd_thread_attach() == 0 && gcuffd_alloc(heap, 100))
		made = gcuffd_collect(heap);
	gcuffd_watch_create(0, &watch);
	gcuffd_lazy_map(4096, fill, NULL, NULL, &lazy, &start);
	printf("secure %lu heap %d\n", getauxval(AT_SECURE), made);
	return 0;
}
END
build_program() {
	cp "$build/.libs/libgcuffd.so.0" "$build/.libs/libgcuffd-preload.so" "$dir/" || return 1
	ln -s libgcuffd.so.0 "$dir/libgcuffd.so"
	${CC:-cc} -Wall -Wextra -Werror -I"$header" -o "$dir/plain" "$dir/program.c" "$dir/libgcuffd-preload.so" \
		-L"$dir" -lgcuffd -Wl,--no-as-needed,-rpath,"$dir"
}

build_program || { echo "the program was not built"; exit 1; }
cp "$dir/plain" "$dir/raised" && chmod 4755 "$dir/raised"

# as_nobody PROGRAM: with words in the environment, each of which says or does something when it is read.
as_nobody() {
	rm -f "$dir"/out/*
	(cd / && setpriv --reuid 65534 --regid 65534 --clear-groups env GCUFFD_PRELOAD=no_such=1 GCUFFD_WITHOUT=no_such \
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
grep -q "^secure 0" "$dir/stdout" && { echo "SKIP: here the bit that raises has no effect (nosuid?)"; exit 77; }
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
