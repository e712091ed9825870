#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test_link.sh - a program that links the library, one that loads it when it runs, and one that uses Debian's
# jemalloc as its malloc: each keeps its own malloc, and a heap works in it.
set -eu
build=${top_builddir:-.}
header=${top_srcdir:-.}/include
[ -f "$build/.libs/libgcuffd.so" ] || { echo "no shared library was built"; exit 77; }
[ -z "${GU_SANITIZE:-}" ] || { echo "a library with a sanitizer can't be loaded late"; exit 77; }
dir=$(mktemp -d "${TMPDIR:-/tmp}/gu-link.XXXXXX")
trap 'rm -rf "$dir"' EXIT

cat >"$dir/program.c" <<'END'

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gcuffd.h"

#ifdef LATE
#define GET(name) __typeof__(name) *name##_late = (__typeof__(name) *)dlsym(lib, #name)
#define CALL(name) name##_late
#else
#define GET(name) extern int unused_##name
#define CALL(name) name
#endif

#define MUST(x) do { if (!(x)) { fprintf(stderr, "%d: %s\n", __LINE__, #x); exit(1); } } while (0)

static const char *file_of(const char *symbol)
{
	Dl_info info;
	void *at = dlsym(RTLD_DEFAULT, symbol);
	return at && dladdr(at, &info) ? info.dli_fname : "";
}

int main(int argc, char **argv)
{
	struct gcuffd_heap *heap;
	void *before = malloc(100);
#ifdef LATE
	void *lib = dlopen(argv[2], RTLD_NOW);
	MUST(lib);
#endif
	GET(gcuffd_heap_create);
	GET(gcuffd_thread_attach);
	GET(gcuffd_alloc);
	GET(gcuffd_collect);
	GET(gcuffd_object_find);
	GET(gcuffd_heap_destroy);
	MUST(argc >= 2 && strstr(file_of("malloc"), argv[1]) && strstr(file_of("free"), argv[1]));
	MUST(!CALL(gcuffd_heap_create)(NULL, &heap) && !CALL(gcuffd_thread_attach)());
	struct gcuffd_object o;
	void **list = NULL;
	for (int i = 0; i < 20000; i++) {
		void **more = CALL(gcuffd_alloc)(heap, 500);
		MUST(more);
		*more = list;
		list = more;
		free(malloc(500));
	}
	MUST(!CALL(gcuffd_collect)(heap));
	for (int i = 0; i < 20000; i++, list = *list)
		MUST(!CALL(gcuffd_object_find)(heap, list, &o) && o.base == (void *)list);
	MUST(CALL(gcuffd_object_find)(heap, before, &o) < 0);
	free(before);
	MUST(!CALL(gcuffd_heap_destroy)(heap));
#ifdef LATE
	dlclose(lib);
#endif
	return 0;
}
END

# CC may be several words
# shellcheck disable=SC2086
compile() {
	out=$1
	shift
	${CC:-cc} -O2 -D_GNU_SOURCE -I"$header" -o "$dir/$out" "$dir/program.c" "$@" -ldl
}

LD_LIBRARY_PATH=$build/.libs
export LD_LIBRARY_PATH
compile linked -L"$build/.libs" -lgcuffd
"$dir/linked" libc.so
compile late -DLATE
"$dir/late" libc.so "$build/.libs/libgcuffd.so"

jemalloc=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | sed -n 's/.*libjemalloc\.so\.2 .*=> //p' | head -n 1)
if [ -z "$jemalloc" ]; then
	echo "SKIP: no libjemalloc.so.2 here; the rest passed"
	exit 77
fi
compile with_jemalloc -L"$build/.libs" -Wl,--no-as-needed "$jemalloc" -lgcuffd
"$dir/with_jemalloc" libjemalloc
compile late_jemalloc -DLATE -Wl,--no-as-needed "$jemalloc"
"$dir/late_jemalloc" libjemalloc "$build/.libs/libgcuffd.so"
