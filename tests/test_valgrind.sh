#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test_valgrind.sh - a program runs under valgrind as it does without: its heap takes rung stop, says so once, collects and keeps what is in use.
set -eu
build=${top_builddir:-.}
command -v valgrind >/dev/null || { echo "no valgrind here"; exit 77; }
[ -f "$build/.libs/libgcuffd.so" ] || { echo "no shared library was built"; exit 77; }
[ -z "${GU_SANITIZE:-}" ] || { echo "valgrind does not run what has a sanitizer"; exit 77; }
dir=$(mktemp -d "${TMPDIR:-/tmp}/gu-valgrind.XXXXXX")
trap 'rm -rf "$dir"' EXIT

cat >"$dir/program.c" <<'END'
#include <stdio.h>

#include "gcuffd.h"

struct node {
	struct node *next;
};

static struct node *volatile head;

int main(void)
{
	struct gcuffd_stats stats = {.size = sizeof(stats)};
	struct gcuffd_heap *heap, *other;
	long n = 0;
	if (gcuffd_heap_create(NULL, &heap) || gcuffd_thread_attach())
		return 1;
	for (int i = 0; i < 3000; i++) {
		struct node *node = gcuffd_alloc(heap, 1000);
		if (!node)
			return 2;
		if (i % 10 == 0) {
			node->next = head;
			head = node;
		}
	}
	if (gcuffd_collect(heap) || gcuffd_heap_stats(heap, &stats) || gcuffd_heap_create(NULL, &other) || gcuffd_heap_destroy(other))
		return 3;
	for (struct node *at = head; at; at = at->next)
		n++;
	printf("rung %u, %ld nodes, %s\n", stats.rung, n, stats.freed_bytes >= 2000000 ? "collected" : "not collected");
	return gcuffd_heap_destroy(heap) ? 4 : 0;
}
END

# CC may be several words
# shellcheck disable=SC2086
${CC:-cc} -I"${top_srcdir:-.}/include" -o "$dir/program" "$dir/program.c" -L"$build/.libs" -lgcuffd
export LD_LIBRARY_PATH="$build/.libs"
valgrind --undef-value-errors=no --error-exitcode=99 --log-file="$dir/valgrind" "$dir/program" >"$dir/out" 2>"$dir/err" || {
	cat "$dir/out" "$dir/err" "$dir/valgrind"
	exit 1
}
cat "$dir/out" "$dir/err"
[ "$(cat "$dir/out")" = "rung 1, 300 nodes, collected" ]
[ "$(grep -c 'under valgrind' "$dir/err")" = 1 ]
