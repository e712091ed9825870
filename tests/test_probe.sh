#!/bin/sh
# SPDX-License-Identifier: MIT
#
# gcuffd probe, for people and as JSON: each capability of gcuffd(1) with yes or no, why not, and what it would take; the same in both; as root
# and as nobody, where less is to be had; and how arguments are refused.
set -u
gcuffd=${top_builddir:?}/gcuffd
man=${top_srcdir:?}/man/gcuffd.1
tmp=$(mktemp -d "${TMPDIR:-/tmp}/gu-probe.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
chmod 755 "$tmp"
failed=0
python=/usr/bin/python3 # one that others can read, too
[ -x $python ] || python=${PYTHON3:-}

complain() {
	echo "$*"
	failed=1
}

# What gcuffd(1) lists under a heading.
listed() { sed -n "/^\.SS $1\$/,/^\.S[SH] [^$(echo "$1" | cut -c1)]/p" "$man" | sed -n '/^\.TP$/{n;s/^\.B //p}' | sort; }

# check_text WHO: a line for each capability and rung; after a no, two more.
check_text() {
	sed -n 's/^\([a-z-]*\)  *\(yes\|no\)  *[^ ].*/\1 \2/p' "$tmp/text" >"$tmp/text.caps"
	cut -d' ' -f1 "$tmp/text.caps" | sort >"$tmp/names"
	[ -s "$tmp/names" ] || complain "$1: no capabilities"
	listed Capabilities | diff - "$tmp/names" || complain "$1: the capabilities are not those of gcuffd(1)"
	sed -n 's/^rung \([a-z]*\) .*/\1/p' "$tmp/text" | sort >"$tmp/names"
	listed Rungs | diff - "$tmp/names" || complain "$1: the rungs are not those of gcuffd(1)"
	nos=$(grep -c ' no$' "$tmp/text.caps")
	for words in 'why not: [^ ]' 'it takes: [^ ]'; do
		[ "$(grep -c "^  *$words" "$tmp/text")" = "$nos" ] || complain "$1: $nos times no, but not so many times $words"
	done
	[ "$(grep -c '^rung .* yes  chosen$' "$tmp/text")" = 1 ] || complain "$1: not one rung is chosen"
}

cat >"$tmp/check.py" <<'END'
import json
import sys

found = json.load(open(sys.argv[1]))
assert sorted(found) == ["capabilities", "features", "kernel", "machine", "probes", "rung", "rungs", "version"], sorted(found)
assert isinstance(found["probes"], bool)
assert int(found["features"], 16) >= 0 and isinstance(found["kernel"], str)
for cap in found["capabilities"]:
    assert sorted(cap) == ["errno", "has", "name", "needs", "reason"], cap
    for text in cap["reason"], cap["needs"]:
        assert (text is None) if cap["has"] else (isinstance(text, str) and text), cap
    assert isinstance(cap["errno"], int) and (not cap["has"] or cap["errno"] == 0), cap
    print(cap["name"], "yes" if cap["has"] else "no")
ladder = ["stop", "async", "move", "rwp"]
assert list(found["rungs"]) == ladder and found["rungs"]["stop"] is True, found["rungs"]
assert found["rung"] == [rung for rung in ladder if found["rungs"][rung]][-1], found["rung"]
END

check_json() {
	"$python" -m json.tool "$tmp/json" >/dev/null || complain "$1: not JSON"
	"$python" "$tmp/check.py" "$tmp/json" >"$tmp/json.caps" || complain "$1: not what gcuffd(1) says of --json"
	diff "$tmp/text.caps" "$tmp/json.caps" || complain "$1: JSON and text tell different things"
}

# probe WHO [COMMAND...]: both forms, run by COMMAND.
probe() {
	who=$1
	shift
	"$@" "$tmp/gcuffd" probe >"$tmp/text" 2>"$tmp/err" || complain "$who: exit status $?"
	"$@" "$tmp/gcuffd" probe --json >"$tmp/json" 2>>"$tmp/err" || complain "$who: exit status $? with --json"
	[ ! -s "$tmp/err" ] || complain "$who: on standard error: $(cat "$tmp/err")"
	check_text "$who"
	[ -z "$python" ] || check_json "$who"
}

# refused WORD...: usage on standard error, nothing else, 2
refused() {
	"$gcuffd" "$@" >"$tmp/out" 2>"$tmp/err"
	status=$?
	[ $status = 2 ] || complain "gcuffd $*: exit status $status, not 2"
	[ ! -s "$tmp/out" ] || complain "gcuffd $*: something on standard output"
	grep -q '^usage: gcuffd probe' "$tmp/err" || complain "gcuffd $*: no usage on standard error"
}

# nobody may not enter a build directory in root's home
cp "$gcuffd" "$tmp/gcuffd"
probe "this user"
if [ "$(id -u)" = 0 ] && command -v setpriv >/dev/null; then
	probe nobody setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set -all --inh-caps -all
	grep -q '^kernel-faults no$' "$tmp/text.caps" || [ "$(cat /proc/sys/vm/unprivileged_userfaultfd)" = 1 ] ||
		complain "nobody has kernel-faults"
else
	echo "not tried as nobody: not root, or no setpriv"
fi
[ -n "$python" ] || echo "JSON was not looked at: no python3"

refused
refused no-such
refused --no-such
refused probe --no-such
refused probe --json more
refused --version more
for word in --version --help; do
	"$gcuffd" $word >"$tmp/out" 2>"$tmp/err" || complain "gcuffd $word: exit status $?"
	if [ ! -s "$tmp/out" ] || [ -s "$tmp/err" ]; then
		complain "gcuffd $word: not just something on standard output"
	fi
done
"$gcuffd" --version | grep -qx 'gcuffd [0-9]*\.[0-9]*\.[0-9]*' || complain "gcuffd --version: no version"
if [ -c /dev/full ]; then
	"$gcuffd" probe >/dev/full 2>"$tmp/err"
	[ $? = 1 ] || complain "gcuffd probe to a full device: not status 1"
	grep -q "can't write" "$tmp/err" || complain "gcuffd probe to a full device: nothing said"
fi
[ $failed = 0 ] && echo "PASS probe"
exit $failed
