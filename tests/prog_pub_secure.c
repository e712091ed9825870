/* SPDX-License-Identifier: MIT */
/*
 * prog_pub_secure.c - uses the heap, a watcher and lazy memory, and says whether it runs with more privilege than its
 * caller. What it says on stderr is the libraries'. With arguments: becomes nobody and executes them.
 */
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <unistd.h>

#include "gcuffd.h"

static int fill(void *data, size_t offset, size_t length, void *into)
{
	(void)data, (void)offset, (void)length, (void)into;
	return 0;
}

static int run_as_nobody(char **argv)
{
	if (setgroups(0, NULL) || setgid(65534) || setuid(65534)) {
		perror("nobody");
		return 125;
	}
	execvp(argv[0], argv);
	perror(argv[0]);
	return 126;
}

int main(int argc, char **argv)
{
	struct gcuffd_heap *heap;
	struct gcuffd_watch *watch;
	struct gcuffd_lazy *lazy;
	void *start;
	if (argc > 1)
		return run_as_nobody(argv + 1);
	free(malloc(100));
	int made = gcuffd_heap_create(NULL, &heap);
	if (!made && gcuffd_thread_attach() == 0 && gcuffd_alloc(heap, 100))
		made = gcuffd_collect(heap);
	gcuffd_watch_create(0, &watch);
	gcuffd_lazy_map(4096, fill, NULL, NULL, &lazy, &start);
	printf("secure %lu heap %d\n", getauxval(AT_SECURE), made);
	return 0;
}
