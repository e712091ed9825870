/* SPDX-License-Identifier: MIT */
/*
 * prog_preload_leak [MIB [SIZE]] - allocates MIB MiB (10240) in pieces of SIZE bytes (1024), writes to each and
 * drops it without free(). Prints the peak resident size in KiB.
 * prog_preload_leak --run COMMAND... - prints that of another program, and passes its status on.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static int run(char **argv)
{
	struct rusage usage;
	int status;
	pid_t pid = fork();
	if (!pid) {
		execvp(argv[0], argv);
		_exit(127);
	}
	if (pid < 0 || wait4(pid, &status, 0, &usage) != pid)
		return 1;
	printf("%ld\n", usage.ru_maxrss);
	return status != 0;
}

int main(int argc, char **argv)
{
	size_t total = (argc > 1 ? strtoul(argv[1], NULL, 0) : 10240) << 20, size = argc > 2 ? strtoul(argv[2], NULL, 0) : 1024;
	struct rusage usage;
	if (argc > 2 && !strcmp(argv[1], "--run"))
		return run(argv + 2);
	for (size_t at = 0; at < total; at += size) {
		char *volatile p = malloc(size);
		if (!p)
			return 1;
		memset(p, (int)at, size);
	}
	getrusage(RUSAGE_SELF, &usage);
	printf("%ld\n", usage.ru_maxrss);
	return 0;
}
