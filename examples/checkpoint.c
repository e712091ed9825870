/* SPDX-License-Identifier: MIT */
/*
 * checkpoint - a bank whose accounts live in memory and outlive the program: incremental checkpoints write only the pages
 * that were written since the one before, and the next run reads a page back when it is first touched.
 *
 *	checkpoint FILE run PAGES CHECKPOINTS TRANSFERS
 *	checkpoint FILE verify
 *
 * run goes on from FILE's last checkpoint, or makes FILE, and checkpoints after every TRANSFERS transfers. It may be killed
 * at any point. verify makes all transfers once more and compares.
 *
 * FILE begins with two slots, which are written in turn; the valid one with the higher sequence says how far the log reaches
 * that follows. The log is a record for each checkpoint: a head, which pages it has and the checksum of each, and these pages.
 * A slot is written when all before its end has reached the disk. So what lies beyond is not finished and is cut off, and what
 * lies before it is whole, or was damaged since. When most of the log is out of date a new file is written, and takes the name.
 *
 * The program waits while a checkpoint is written: another thread that writes meanwhile would be seen by the next one, but
 * what this one has of it would be of two times. Memory is touched by the program itself only, never in system calls: so no
 * privilege is needed (GCUFFD_LAZY_USER_FAULTS).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "gcuffd.h"

#define PAGE 4096u
#define WORDS (PAGE / sizeof(uint64_t))
#define MOST_PAGES (1u << 26)
#define BATCH 64 /* pages written at once */
#define RUNS 512
#define MAGIC 0x31746e696f706b63u /* "ckpoint1" */

struct slot {
	uint64_t magic, pages, sequence, end; /* pages of the memory; end of the log in bytes */
	uint64_t checksum;                    /* of these */
};

struct head {
	uint64_t sequence, count, checksum; /* of the entries, which follow; then, page-aligned, the pages */
};

struct entry {
	uint64_t page, checksum;
};

struct place {
	uint64_t offset, checksum; /* offset 0: never written, all zero */
};

struct log {
	int fd;
	struct slot slot;
	uint64_t live;       /* pages that have a place */
	struct place *place; /* of the last content of each page */
};

static const char *path;
static struct log current;
static struct log restored; /* as current was when memory was made from it: constant */
static uint64_t *bank;      /* the number of transfers so far, then accounts */
static struct gcuffd_watch *watch;

/* ---- small things ---- */

static void refuse(const char *what, const char *why)
{
	fprintf(stderr, "checkpoint: %s: %s\n", what, why);
	exit(1);
}

/* err is a negative error number, as the library returns it. */
static void check(const char *what, int err)
{
	if (err)
		refuse(what, strerror(-err));
}

static void *allocate(uint64_t count, size_t size)
{
	void *p = calloc(count + 1, size);
	if (!p)
		check("memory", -ENOMEM);
	return p;
}

static uint64_t mix(uint64_t z)
{
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static uint64_t checksum(const void *data, size_t length)
{
	const uint64_t *word = data;
	uint64_t sum = length;
	for (size_t i = 0; i < length / sizeof(*word); i++)
		sum = mix(sum + word[i]) + i;
	return sum;
}

static uint64_t round_up(uint64_t n) { return (n + PAGE - 1) / PAGE * PAGE; }

static uint64_t now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000;
}

/* ---- the file ---- */

static void put(const struct log *log, uint64_t at, const void *data, size_t length)
{
	for (size_t done = 0; done < length;) {
		ssize_t n = pwrite(log->fd, (const char *)data + done, length - done, (off_t)(at + done));
		check("writing", n < 0 ? -errno : 0);
		done += (size_t)n;
	}
}

static int get(const struct log *log, uint64_t at, void *data, size_t length)
{
	for (size_t done = 0; done < length;) {
		ssize_t n = pread(log->fd, (char *)data + done, length - done, (off_t)(at + done));
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

static void sync_file(int fd) { check("fsync", fsync(fd) ? -errno : 0); }

/* For the name in it. */
static void sync_directory(void)
{
	char *copy = strdup(path);
	int fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	check("the directory", fd < 0 ? -errno : 0);
	sync_file(fd);
	close(fd);
	free(copy);
}

/* Of what has taken another file's name, or lost its own, somebody else has the newer one. */
static int open_alone(const char *name, int flags)
{
	struct stat st;
	int fd = open(name, O_RDWR | O_CLOEXEC | flags, 0600);
	if (fd >= 0 && (flock(fd, LOCK_EX | LOCK_NB) || fstat(fd, &st) || !st.st_nlink))
		refuse(name, "another process has it");
	return fd;
}

/* ---- reading ---- */

static int read_page(const struct log *log, uint64_t page, void *into)
{
	const struct place *p = &log->place[page];
	if (!p->offset) {
		memset(into, 0, PAGE);
		return 0;
	}
	int err = get(log, p->offset, into, PAGE);
	return err ? err : checksum(into, PAGE) == p->checksum ? 0 : -EIO;
}

static bool is_whole(const struct slot *s)
{
	return s->magic == MAGIC && s->checksum == checksum(s, offsetof(struct slot, checksum)) && s->pages - 1 < MOST_PAGES;
}

static void read_slots(struct log *log)
{
	static const struct slot none;
	struct slot s[2] = {none, none};
	for (int i = 0; i < 2; i++)
		(void)get(log, (uint64_t)i * PAGE, &s[i], sizeof(s[i]));
	for (int i = 0; i < 2; i++)
		if (is_whole(&s[i]) && s[i].sequence >= log->slot.sequence)
			log->slot = s[i];
	if (!log->slot.magic)
		refuse(path, "not a checkpoint file, or its beginning is damaged");
	for (int i = 0; i < 2; i++)
		if (!is_whole(&s[i]) && memcmp(&s[i], &none, sizeof(none)))
			fprintf(stderr, "checkpoint: %s: a slot is damaged: a checkpoint may be lost\n", path);
}

static void set_place(struct log *log, const struct entry *e, uint64_t offset)
{
	log->live += !log->place[e->page].offset;
	log->place[e->page] = (struct place){offset, e->checksum};
}

/* Where the record ends; 0: it is damaged. */
static uint64_t read_record(struct log *log, uint64_t at)
{
	struct head h;
	if (get(log, at, &h, sizeof(h)) || h.count > log->slot.pages)
		return 0;
	size_t length = h.count * sizeof(struct entry);
	struct entry *entries = allocate(h.count, sizeof(*entries));
	uint64_t end = at + round_up(sizeof(h) + length);
	bool whole = !get(log, at + sizeof(h), entries, length) && h.checksum == checksum(entries, length) + h.sequence;
	for (uint64_t i = 0; whole && i < h.count; i++, end += PAGE) {
		whole = entries[i].page < log->slot.pages;
		if (whole)
			set_place(log, &entries[i], end);
	}
	free(entries);
	return whole ? end : 0;
}

static bool open_log(void)
{
	struct stat st;
	current.fd = open_alone(path, 0);
	if (current.fd < 0 && errno == ENOENT)
		return false;
	check(path, current.fd < 0 || fstat(current.fd, &st) ? -errno : 0);
	read_slots(&current);
	if ((uint64_t)st.st_size < current.slot.end)
		refuse(path, "the file was truncated");
	current.place = allocate(current.slot.pages, sizeof(*current.place));
	for (uint64_t at = 2 * PAGE; at != current.slot.end;) {
		at = read_record(&current, at);
		if (!at || at > current.slot.end)
			refuse(path, "the file is damaged");
	}
	check(path, ftruncate(current.fd, (off_t)current.slot.end) ? -errno : 0); /* the rest was not finished */
	return true;
}

/* ---- writing ---- */

typedef void source_fn(uint64_t page, void *into);

/* A record for these pages. The entries' checksums are those of what is written, whatever happens to memory meanwhile. */
static void append(struct log *log, struct entry *entries, uint64_t count, source_fn *source)
{
	static uint64_t buffer[BATCH][WORDS];
	struct head h = {log->slot.sequence, count, 0};
	uint64_t at = log->slot.end, first = at + round_up(sizeof(h) + count * sizeof(*entries)), end = first;
	for (uint64_t i = 0, n = 0; i < count; i++) {
		source(entries[i].page, buffer[n]);
		entries[i].checksum = checksum(buffer[n++], PAGE);
		set_place(log, &entries[i], first + i * PAGE);
		if (n == BATCH || i + 1 == count) {
			put(log, end, buffer, n * PAGE);
			end += n * PAGE;
			n = 0;
		}
	}
	h.checksum = checksum(entries, count * sizeof(*entries)) + h.sequence;
	put(log, at, &h, sizeof(h));
	put(log, at + sizeof(h), entries, count * sizeof(*entries));
	log->slot.end = end;
}

/* The checkpoint is there from the moment that its slot is on the disk. */
static void commit(struct log *log)
{
	sync_file(log->fd);
	log->slot.checksum = checksum(&log->slot, offsetof(struct slot, checksum));
	put(log, log->slot.sequence % 2 * PAGE, &log->slot, sizeof(log->slot));
	sync_file(log->fd);
}

static void from_current(uint64_t page, void *into) { check("reading a page from the file", read_page(&current, page, into)); }

/* What current has, in a file of its own that then takes the name. Memory goes on being restored from the old one. */
static void write_fresh(void)
{
	struct log fresh = {.slot = current.slot, .place = allocate(current.slot.pages, sizeof(*fresh.place))};
	struct entry *entries = allocate(current.live, sizeof(*entries));
	uint64_t n = 0;
	char *name;
	check("memory", asprintf(&name, "%s.new", path) < 0 ? -ENOMEM : 0);
	fresh.fd = open_alone(name, O_CREAT);
	fresh.slot.end = 2 * PAGE;
	check(name, fresh.fd < 0 || ftruncate(fresh.fd, 0) || ftruncate(fresh.fd, 2 * PAGE) ? -errno : 0);
	for (uint64_t page = 0; page < current.slot.pages && current.live; page++)
		if (current.place[page].offset)
			entries[n++].page = page;
	if (n)
		append(&fresh, entries, n, from_current);
	commit(&fresh);
	check(path, rename(name, path) ? -errno : 0);
	sync_directory();
	if (current.place)
		close(current.fd);
	free(current.place);
	free(entries);
	free(name);
	current = fresh;
}

/* ---- memory ---- */

static int fill(void *data, size_t offset, size_t length, void *into)
{
	int err = 0;
	(void)data;
	for (size_t at = 0; at < length && !err; at += PAGE)
		err = read_page(&restored, (offset + at) / PAGE, (char *)into + at);
	return err;
}

/* fill could not give a page. Raised by a touch, and nothing here touches memory inside of the C library's output. */
static void on_sigbus(int signal, siginfo_t *info, void *context)
{
	(void)signal, (void)context;
	fprintf(stderr, "checkpoint: %s: page %zu is damaged\n", path, (size_t)((char *)info->si_addr - (char *)bank) / PAGE);
	_exit(1);
}

/* The resolving thread keeps the file open, under the same number, whatever becomes of it here. */
static struct gcuffd_lazy *make_memory(void)
{
	size_t length = current.slot.pages * PAGE;
	struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO};
	struct gcuffd_lazy_options o = {.size = sizeof(o), .fds = &restored.fd, .nfds = 1};
	struct gcuffd_lazy *lazy;
	void *start;
	restored = current;
	restored.place = allocate(current.slot.pages, sizeof(*restored.place));
	memcpy(restored.place, current.place, current.slot.pages * sizeof(*restored.place));
	o.flags = GCUFFD_LAZY_WATCHABLE | GCUFFD_LAZY_USER_FAULTS;
	check("gcuffd_lazy_map", gcuffd_lazy_map(length, fill, NULL, &o, &lazy, &start));
	bank = start;
	check("SIGBUS", sigaction(SIGBUS, &action, NULL) ? -errno : 0);
	check("gcuffd_watch_create", gcuffd_watch_create(0, &watch));
	check("gcuffd_watch_begin", gcuffd_watch_begin(watch, bank, length, 0));
	return lazy;
}

static void from_memory(uint64_t page, void *into) { memcpy(into, bank + page * WORDS, PAGE); }

/* The pages written since the last call, in order. */
static uint64_t take_written(struct entry *entries)
{
	struct gcuffd_run runs[RUNS];
	uint64_t n = 0;
	size_t count;
	for (void *at = bank; at;) {
		check("gcuffd_watch_collect", gcuffd_watch_collect(watch, at, SIZE_MAX, runs, RUNS, &count, &at));
		for (size_t i = 0; i < count; i++)
			for (uint64_t *p = runs[i].start; p < (uint64_t *)runs[i].end; p += WORDS)
				entries[n++].page = (uint64_t)(p - bank) / WORDS;
	}
	return n;
}

static void checkpoint(void)
{
	uint64_t begin = now_us(), end = current.slot.end;
	struct entry *entries = allocate(current.slot.pages, sizeof(*entries));
	uint64_t n = take_written(entries);
	if (n) {
		current.slot.sequence++;
		append(&current, entries, n, from_memory);
		commit(&current);
	}
	printf("checkpoint %llu: %llu transfers, %llu pages, %llu bytes, %llu us\n", (unsigned long long)current.slot.sequence,
	       (unsigned long long)bank[0], (unsigned long long)n, (unsigned long long)(current.slot.end - end),
	       (unsigned long long)(now_us() - begin));
	free(entries);
	if (current.slot.end > 4 * PAGE * (current.live + 64))
		write_fresh();
}

/* ---- the bank ---- */

/* What a transfer does follows from its number. The accounts' sum stays 0. */
static void transfer(uint64_t *words, uint64_t pages)
{
	uint64_t n = ++words[0], accounts = pages * WORDS - 1;
	words[1 + mix(2 * n) % accounts] -= n;
	words[1 + mix(2 * n + 1) % accounts] += n;
}

static void run(uint64_t checkpoints, uint64_t transfers)
{
	for (uint64_t i = 0; i < checkpoints; i++) {
		for (uint64_t t = 0; t < transfers; t++)
			transfer(bank, current.slot.pages);
		checkpoint();
	}
}

static void verify(void)
{
	uint64_t pages = current.slot.pages, *words = allocate(pages, PAGE);
	while (words[0] < bank[0])
		transfer(words, pages);
	for (uint64_t i = 0; i < pages * WORDS; i++)
		if (words[i] != bank[i])
			refuse(path, "the content is wrong");
	free(words);
	printf("verified\n");
}

/* ---- the program ---- */

static void make_log(uint64_t pages)
{
	current.slot = (struct slot){.magic = MAGIC, .pages = pages};
	write_fresh();
}

static bool parse(const char *text, uint64_t most, uint64_t *n)
{
	char *end;
	errno = 0;
	*n = strtoull(text, &end, 10);
	return *text >= '0' && *text <= '9' && !*end && !errno && *n <= most;
}

int main(int argc, char **argv)
{
	uint64_t begin = now_us(), pages, checkpoints, transfers;
	bool verifies = argc == 3 && !strcmp(argv[2], "verify");
	bool runs = argc == 6 && !strcmp(argv[2], "run") && parse(argv[3], MOST_PAGES, &pages) && pages &&
		    parse(argv[4], UINT64_MAX, &checkpoints) && parse(argv[5], UINT64_MAX, &transfers);
	struct gcuffd_lazy_stats stats = {.size = sizeof(stats)};
	if (!verifies && !runs) {
		fprintf(stderr, "usage: checkpoint FILE run PAGES CHECKPOINTS TRANSFERS\n       checkpoint FILE verify\n");
		return 2;
	}
	path = argv[1];
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!open_log() && verifies)
		check(path, -ENOENT);
	else if (!current.place)
		make_log(pages);
	if (runs && pages != current.slot.pages)
		refuse(path, "it has another number of pages");
	struct gcuffd_lazy *lazy = make_memory();
	printf("restored %llu: %llu transfers, %llu pages, ready after %llu us\n", (unsigned long long)current.slot.sequence,
	       (unsigned long long)bank[0], (unsigned long long)current.live, (unsigned long long)(now_us() - begin));
	if (runs)
		run(checkpoints, transfers);
	else
		verify();
	check("gcuffd_lazy_stats", gcuffd_lazy_stats(lazy, &stats));
	printf("%llu pages filled\n", (unsigned long long)stats.filled);
	gcuffd_watch_destroy(watch);
	return gcuffd_lazy_unmap(lazy) != 0;
}
