/* SPDX-License-Identifier: MIT */
/* observe.c - see observe.h. The process ends when the pipe to it is closed. */
#include "observe.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util.h"

#define PRESENT (1ull << 63)
#define SWAPPED (1ull << 62)
#define CHUNK 4096u

struct range {
	size_t low, pages;
	unsigned kinds;
};

static bool read_all(int fd, void *data, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t n = read(fd, (char *)data + done, size - done);

		if (n <= 0)
			return false;
		done += (size_t)n;
	}
	return true;
}

static void write_all(int fd, const void *data, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t n = write(fd, (const char *)data + done, size - done);

		if (n <= 0)
			bench_fail("the observer", errno);
		done += (size_t)n;
	}
}

static void *map(size_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		bench_fail("the observer", errno);
	return memory;
}

/* ---- the second process */

static void count(struct observe_answer *a, uint64_t entry, bool cold, uint8_t *was_in)
{
	bool in = entry & PRESENT;

	a->present[cold] += in;
	a->swapped[cold] += !in && entry & SWAPPED;
	a->returned[cold] += in && !*was_in;
	*was_in = in;
}

static struct observe_answer look(int pagemap, const struct range *r, const uint8_t *page_kinds, uint8_t *was_in)
{
	struct observe_answer a = { { 0, 0 }, { 0, 0 }, { 0, 0 } };
	uint64_t entries[CHUNK];

	for (size_t i = 0; i < r->pages; i++) {
		size_t n = r->pages - i < CHUNK ? r->pages - i : CHUNK;

		if (i % CHUNK == 0 && pread(pagemap, entries, n * 8, (off_t)((r->low + i) * 8)) != (ssize_t)(n * 8))
			bench_fail("the observer's page map", errno);
		if (page_kinds[i])
			count(&a, entries[i % CHUNK], !(page_kinds[i] & ~r->kinds), &was_in[i]);
	}
	return a;
}

static _Noreturn void serve(int ask, int answer, int pagemap)
{
	struct range r;
	char c;

	if (!read_all(ask, &r, sizeof(r)))
		_exit(0);
	uint8_t *page_kinds = map(r.pages), *was_in = map(r.pages);
	if (!read_all(ask, page_kinds, r.pages))
		_exit(1);
	while (read_all(ask, &c, 1)) {
		struct observe_answer a = look(pagemap, &r, page_kinds, was_in);

		write_all(answer, &a, sizeof(a));
	}
	_exit(0);
}

/* ---- the first one */

void observe_begin(struct observer *o)
{
	int ask[2], answer[2];
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (pagemap < 0 || pipe2(ask, O_CLOEXEC) || pipe2(answer, O_CLOEXEC))
		bench_fail("the observer", errno);
	o->pid = fork();
	if (o->pid < 0)
		bench_fail("the observer", errno);
	if (!o->pid) {
		close(ask[1]);
		serve(ask[0], answer[1], pagemap);
	}
	close(ask[0]);
	close(answer[1]);
	close(pagemap);
	o->ask = ask[1];
	o->answer = answer[0];
}

void observe_range(struct observer *o, size_t low, size_t pages, const uint8_t *page_kinds, unsigned kinds)
{
	struct range r = { low, pages, kinds };

	write_all(o->ask, &r, sizeof(r));
	write_all(o->ask, page_kinds, pages);
}

struct observe_answer observe_look(struct observer *o)
{
	struct observe_answer a;

	write_all(o->ask, "?", 1);
	if (!read_all(o->answer, &a, sizeof(a)))
		bench_fail("the observer ended", 0);
	return a;
}

void observe_end(struct observer *o)
{
	close(o->ask);
	close(o->answer);
	waitpid(o->pid, NULL, 0);
}
