#!/bin/sh
# SPDX-License-Identifier: MIT
#
# test_timeline.sh - examples/timeline: its lines tell of each cycle in order, of all phases, and of stops inside of them; and they add up to what statistics say.
#
# vm: examples/timeline
set -u

program=${top_builddir:-.}/examples/timeline
[ -x "$program" ] || { echo "skip: $program was not built"; exit 77; }
out=$(mktemp "${TMPDIR:-/tmp}/gu-timeline.XXXXXX")
trap 'rm -f "$out"' EXIT
"$program" 3 0.5 >"$out" || { tail "$out"; echo "FAIL: status $?"; exit 1; }
awk '
function fail(why) { print "FAIL: line " NR ": " why ": " $0; failed = 1; exit 1 }
function inside(begin, length_us) { return stop_begin >= begin - 0.2 && stop_begin + stop_us <= begin + length_us + 0.3 }
/unknown|something new/ { fail("not expected") }
/ put off after / { if ($3 != cycles + 1) fail("not cycle " cycles + 1); swept = stops = 0; next } # a busy machine
/ given up after / { next }
$2 == "thread" { next }
/ stop .* until / { stop_begin = $1; stop_us = $3; stops++; if (stop_us > longest) longest = stop_us; next }
/ round over/ { rounds++; next }
$2 == "cycle" { if ($3 != ++cycles) fail("not cycle " cycles); if (!swept || !told) fail("without a sweep or a stop"); swept = told = 0; next }
/ (first|second) stop / { if (stops && !inside($1, $4)) fail("the stop is not inside of it"); told = stops; stops = 0; next }
/ sweep / { swept = 1; next }
/ (arm|mark|preclean|finalize) / { if (stops) fail("a stop inside"); next }
/ missed$/ { ended = 1; if ($1 != cycles) fail(cycles " cycles"); if ($5 != longest) fail("longest stop " longest); next }
{ fail("what is that?") }
END { if (failed || !ended || cycles < 2) exit 1 }' "$out" || { tail "$out"; exit 1; }
tail -n 1 "$out"
