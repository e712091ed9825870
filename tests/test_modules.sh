#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test_modules.sh - test_roots with a module to load and unload, which has a word in its data segment and
# one in its TLS.
set -eu
test_roots=${top_builddir:-.}/tests/test_roots
[ -x "$test_roots" ] || { echo "test_roots was not built"; exit 77; }
dir=$(mktemp -d "${TMPDIR:-/tmp}/gu-modules.XXXXXX")
trap 'rm -rf "$dir"' EXIT

cat >"$dir/module.c" <<'END'
static void *volatile in_data = (void *)1;
static __thread void *volatile in_tls;

void *volatile *dlmod_data(void) { return &in_data; }
void *volatile *dlmod_tls(void) { return &in_tls; }
END
# CC may be several words
# shellcheck disable=SC2086
${CC:-cc} -O2 -fPIC -shared -o "$dir/module.so" "$dir/module.c"
GU_DLMOD=$dir/module.so CK_RUN_CASE=modules "$test_roots"
GU_DLMOD=$dir/module.so CK_RUN_CASE=modules_in_cycles "$test_roots"
GU_DLMOD=$dir/module.so CK_RUN_CASE=too_many_modules "$test_roots"
