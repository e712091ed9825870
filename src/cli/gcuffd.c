/* SPDX-License-Identifier: MIT */
/*
 * gcuffd.c - the command: what this process can have from this kernel, for people and as JSON. One thread.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#include "base/check.h"
#include "base/probe.h"
#include "gcuffd.h"
#include "sys/caps.h"

#define EXIT_USAGE 2

static const char *const what[GU_CAP_COUNT] = {
	[GU_CAP_UFFD] = "userfaultfd",
	[GU_CAP_KERNEL_FAULTS] = "userfaultfd for faults in system calls",
	[GU_CAP_PAGEMAP_SCAN] = "PAGEMAP_SCAN",
	[GU_CAP_WP_ASYNC] = "async write-protect: which pages were written",
	[GU_CAP_WP_SHORT] = "a faster scan for what is written: shorter stops",
	[GU_CAP_WP_HOLES] = "pages that have no page table read as written: fewer scans for watchers",
	[GU_CAP_MOVE] = "UFFDIO_MOVE: pages can be moved out",
	[GU_CAP_POISON] = "UFFDIO_POISON",
	[GU_CAP_RWP] = "read-write protection",
	[GU_CAP_RWP_ASYNC] = "async read-write protection: which pages were touched",
	[GU_CAP_SET_MODE] = "UFFDIO_SET_MODE",
	[GU_CAP_THP] = "transparent huge pages",
	[GU_CAP_PROCESS_VM_READV] = "process_vm_readv",
};

static void print_usage(FILE *to)
{
	fputs("usage: gcuffd probe [--json]\n"
	      "       gcuffd --version | --help\n"
	      "\n"
	      "probe   tries what libgcuffd uses of the kernel, and says why not and what it would take\n",
	      to);
}

/* ---- for people ---- */

static void print_state(const struct gu_cap_state *state, const char *description)
{
	printf("%-17s %-4s %s\n", state->name, state->has ? "yes" : "no", description);
	if (state->has)
		return;
	printf("%-22s why not: %s", "", state->reason);
	if (state->error)
		printf(" (%s)", strerror(-state->error));
	printf("\n%-22s it takes: %s\n", "", state->needs);
}

static void print_rung(const struct gu_caps *caps, int rung, int chosen)
{
	enum gu_cap lacks = gu_caps_rung_lacks(rung);
	const char *name = gu_caps_rung_name(rung);
	if (lacks != GU_CAP_COUNT)
		printf("rung %-12s no   lacks %s\n", name, caps->list[lacks].name);
	else
		printf("rung %-12s yes  %s\n", name, rung == chosen ? "chosen" : "");
}

static void print_text(const struct gu_caps *caps, const struct utsname *system, int chosen)
{
	printf("gcuffd %s on %s %s %s\n", GCUFFD_VERSION, system->sysname, system->release, system->machine);
	printf("userfaultfd features 0x%llx\n", (unsigned long long)caps->features);
	printf("USDT probes %s\n\n", GU_HAS_PROBES ? "compiled in" : "left out: there was no sys/sdt.h when this was built, or it was told to");
	for (unsigned i = 0; i < GU_CAP_COUNT; i++)
		print_state(&caps->list[i], what[i]);
	putchar('\n');
	for (int rung = GCUFFD_RUNG_STOP; rung <= GCUFFD_RUNG_RWP; rung++)
		print_rung(caps, rung, chosen);
}

/* ---- JSON ---- */

static void print_string(const char *text)
{
	putchar('"');
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;
		if (c == '"' || c == '\\')
			printf("\\%c", c);
		else if (c < 0x20 || c >= 0x7f)
			printf("\\u%04x", c);
		else
			putchar(c);
	}
	putchar('"');
}

static void print_member(const char *name, const char *value)
{
	printf("\"%s\": ", name);
	if (*value)
		print_string(value);
	else
		fputs("null", stdout);
}

static void print_json_state(const struct gu_cap_state *state, bool last)
{
	fputs("    {", stdout);
	print_member("name", state->name);
	printf(", \"has\": %s, ", state->has ? "true" : "false");
	print_member("reason", state->reason);
	fputs(", ", stdout);
	print_member("needs", state->needs);
	printf(", \"errno\": %d}%s\n", -state->error, last ? "" : ",");
}

static void print_json(const struct gu_caps *caps, const struct utsname *system, int chosen)
{
	fputs("{\n  ", stdout);
	print_member("version", GCUFFD_VERSION);
	fputs(",\n  ", stdout);
	print_member("kernel", system->release);
	fputs(",\n  ", stdout);
	print_member("machine", system->machine);
	fputs(",\n  ", stdout);
	print_member("rung", gu_caps_rung_name(chosen));
	printf(",\n  \"features\": \"0x%llx\",\n  \"probes\": %s,\n  \"capabilities\": [\n", (unsigned long long)caps->features,
	       GU_HAS_PROBES ? "true" : "false");
	for (unsigned i = 0; i < GU_CAP_COUNT; i++)
		print_json_state(&caps->list[i], i + 1 == GU_CAP_COUNT);
	fputs("  ],\n  \"rungs\": {", stdout);
	for (int rung = GCUFFD_RUNG_STOP; rung <= GCUFFD_RUNG_RWP; rung++)
		printf("%s\"%s\": %s", rung > GCUFFD_RUNG_STOP ? ", " : "", gu_caps_rung_name(rung),
		       gu_caps_rung_lacks(rung) == GU_CAP_COUNT ? "true" : "false");
	fputs("}\n}\n", stdout);
}

static int probe(bool json)
{
	const struct gu_caps *caps = gu_caps();
	struct utsname system;
	int rung = GCUFFD_RUNG_STOP;
	memset(&system, 0, sizeof(system));
	uname(&system);
	gu_caps_rung(GCUFFD_RUNG_AUTO, &rung);
	if (json)
		print_json(caps, &system, rung);
	else
		print_text(caps, &system, rung);
	return 0;
}

/* ---- arguments ---- */

static int refuse(const char *argument)
{
	if (argument)
		fprintf(stderr, "gcuffd: unknown argument: %s\n", argument);
	else
		fprintf(stderr, "gcuffd: nothing to do\n");
	print_usage(stderr);
	return EXIT_USAGE;
}

static int print_version(bool unused)
{
	(void)unused;
	printf("gcuffd %s\n", GCUFFD_VERSION);
	return 0;
}

static int print_help(bool unused)
{
	(void)unused;
	print_usage(stdout);
	return 0;
}

static const struct {
	const char *name;
	int (*act)(bool json);
	bool takes_json;
} commands[] = {{"probe", probe, true}, {"--version", print_version, false}, {"--help", print_help, false}};

static int run(int argc, char **argv)
{
	if (argc < 2)
		return refuse(NULL);
	for (size_t i = 0; i < GU_ARRAY_LEN(commands); i++) {
		if (strcmp(argv[1], commands[i].name) != 0)
			continue;
		bool json = commands[i].takes_json && argc > 2 && !strcmp(argv[2], "--json");
		int used = json ? 3 : 2;
		return argc > used ? refuse(argv[used]) : commands[i].act(json);
	}
	return refuse(argv[1]);
}

int main(int argc, char **argv)
{
	int result = run(argc, argv);
	if (fflush(stdout) || ferror(stdout)) {
		fprintf(stderr, "gcuffd: can't write: %s\n", strerror(errno));
		return 1;
	}
	return result;
}
