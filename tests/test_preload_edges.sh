#!/bin/sh
# SPDX-License-Identifier: MIT
#
# The preload library where programs use malloc before main() and after, in signal handlers and by mistake, have few bytes and no
# threads, and keep pointers in TLS that came late and in code.
set -u

# shellcheck source=tests/preload.txt
. "${top_srcdir:?}/tests/preload.txt"

cat >"$tmp/module.c" <<'END'
#include <stdlib.h>

struct node { struct node *next; long check; };
static struct node *list;
static __thread void *slot[100];

void *module_slot(void) { return &slot[50]; }

static __attribute__((constructor)) void begin(void)
{
	for (long i = 0; i < 1000; i++) {
		struct node *n = malloc(sizeof(*n)), *gone = malloc(100);
		*n = (struct node){list, i};
		list = n;
		free(gone);
	}
}

int module_is_whole(void)
{
	long i = 1000;
	for (const struct node *n = list; n && n->check == i - 1; n = n->next)
		i--;
	return i == 0;
}
END
# CC may be several words
# shellcheck disable=SC2086
${CC:-cc} -Wall -Wextra -O2 -fPIC -shared -o "$tmp/module.so" "$tmp/module.c" || exit 1

# edges NAME [ARGUMENT]: with several cycles
edges() {
	GCUFFD_PRELOAD=start_size=4M,stop_timeout_ms=20000 preload "$prog"_edges "$@" && at_least cycles 2 && exactly "put off" 0
}

test_constructors() {
	edges constructors || return 1
	alone=$lib
	for lib in "$alone:$tmp/module.so" "$tmp/module.so:$alone"; do
		edges constructors module || return 1
	done
	lib=$alone
}

test_alarms() { edges alarms; }
test_module() { edges module "$tmp/module.so"; }
test_closures() { edges closures; }
test_kernel() { edges kernel; }

test_threshold() {
	unshare -Ur true 2>/dev/null || { skip "user namespaces are not allowed here"; return; }
	preload "$prog"_edges threshold
}

# mistake WHAT REPORTS TEXT: so many reports of this text on stderr, and the program goes on
mistake() {
	edges mistakes "$1" || return 1
	[ "$(grep -c "$3" "$tmp/err")" = "$2" ] && return
	echo "$1: not $2 lines with: $3"
	head -n 40 "$tmp/err"
	return 1
}

test_mistakes() {
	mistake double 1 "^gcuffd: gcuffd_free(.*freed before" && mistake inside 1 "^gcuffd: gcuffd_free(.*is not the base" &&
		mistake free 1 "^gcuffd: gcuffd_free(.*is not the base" && mistake realloc 1 "^gcuffd: gcuffd_realloc(.*is not the base" &&
		mistake many 32 "^gcuffd: gcuffd_free(.*is not the base" && mistake many 1 "further reports"
}

run_tests constructors alarms module closures kernel threshold mistakes
