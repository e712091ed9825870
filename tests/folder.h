/* SPDX-License-Identifier: MIT */
/*
 * folder.h - where a test program keeps its files: a folder of its own, below TMPDIR or /var/tmp, most likely a disk. It disappears when the
 * program and all its children have ended, however they did: then another process reads the end of a pipe that they hold, and removes it.
 */
#ifndef GU_TESTS_FOLDER_H
#define GU_TESTS_FOLDER_H

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define TEST_PATH 256 /* of a file in it */

static char test_folder[TEST_PATH / 2];

/* Runs in a child's child, which nobody waits for. */
static void folder_remove_later(int end)
{
	char byte;
	int null = open("/dev/null", O_RDWR);
	signal(SIGINT, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	for (int fd = 0; fd < 3; fd++)
		dup2(null, fd); /* who reads what the test says waits for its end only */
	while (read(end, &byte, 1) != 0)
		;
	execlp("rm", "rm", "-rf", test_folder, (char *)NULL);
	_exit(1);
}

static void folder_prepare(void)
{
	const char *above = getenv("TMPDIR");
	int ends[2], status;
	snprintf(test_folder, sizeof(test_folder), "%s/gu.XXXXXX", above ? above : access("/var/tmp", W_OK) ? "/tmp" : "/var/tmp");
	if (!mkdtemp(test_folder) || chmod(test_folder, 01777) || pipe2(ends, O_CLOEXEC)) {
		perror(test_folder);
		exit(1);
	}
	fflush(NULL);
	pid_t pid = fork();
	if (pid == 0) {
		close(ends[1]);
		setsid(); /* Check ends what is left of a test's process group */
		if (fork() == 0)
			folder_remove_later(ends[0]);
		_exit(0);
	}
	close(ends[0]);
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		exit(1);
}

#endif
