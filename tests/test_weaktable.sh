#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test_weaktable.sh - examples/weaktable: all entries are there while their keys are, and all but a few, which stray pointers keep, go with them.
#
# vm: examples/weaktable
set -u

program=${top_builddir:-.}/examples/weaktable
[ -x "$program" ] || { echo "skip: $program was not built"; exit 77; }
out=$("$program" 50000) || { echo "FAIL: $out"; exit 1; }
echo "$out"
after=$(echo "$out" | sed -n 's/^50000 entries; .* collected: \([0-9]*\); wrong: 0$/\1/p')
if [ "${after:-0}" -lt 25000 ] || [ "$after" -gt 25100 ]; then
	echo "FAIL: that is not what is expected"
	exit 1
fi
