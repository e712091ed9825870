/* SPDX-License-Identifier: MIT */
/*
 * hang.h - a child process that hangs says where before it is killed: what each thread waits for in the kernel, the words on its stack that may be
 * return addresses (addr2line -e PROGRAM), and the stack of the thread that the signal finds.
 */
#ifndef GU_TESTS_HANG_H
#define GU_TESTS_HANG_H

#include <execinfo.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HANG_THREADS 4096 /* numbers tried, from the first thread's on */
#define HANG_WORDS 512    /* of a stack */
#define HANG_LINES 24

extern const char __executable_start[], etext[];

/* Only what a signal handler may: a lock of the C library may be what it hangs in. */
static ssize_t hang_read(pid_t tid, const char *name, char *text, size_t size)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/self/task/%d/%s", (int)tid, name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);
	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	return n;
}

static void hang_say(const char *text)
{
	if (write(STDERR_FILENO, text, strlen(text)) < 0)
		_exit(1);
}

/* The last two numbers of /proc/self/task/N/syscall are where its stack is, and its code. Below the end of the page nothing is read. */
static __attribute__((no_sanitize_address)) void hang_stack(const char *call)
{
	char line[64];
	const char *pc = strrchr(call, ' '), *sp = pc;
	while (sp && sp > call && *--sp != ' ')
		;
	const uintptr_t *at = sp ? (const uintptr_t *)strtoul(sp + 1, NULL, 16) : NULL;
	for (unsigned i = 0, lines = 0; at && i < HANG_WORDS && lines < HANG_LINES && (i == 0 || (uintptr_t)(at + i) % 4096); i++) {
		if (at[i] - (uintptr_t)__executable_start >= (uintptr_t)(etext - __executable_start))
			continue;
		snprintf(line, sizeof(line), "  %#lx\n", (unsigned long)(at[i] - (uintptr_t)__executable_start));
		hang_say(line);
		lines++;
	}
}

static void hang_show_thread(pid_t tid, bool self)
{
	char text[512], line[640];
	if (hang_read(tid, "comm", text, sizeof(text)) < 0)
		return;
	snprintf(line, sizeof(line), "thread %d %s", (int)tid, text);
	hang_say(line);
	hang_read(tid, "wchan", text, sizeof(text));
	snprintf(line, sizeof(line), "  in %s\n", text);
	hang_say(line);
	hang_read(tid, "syscall", text, sizeof(text));
	hang_say(text);
	if (!self)
		hang_stack(text);
}

static void hang_show(int sig)
{
	void *frames[64];
	pid_t pid = getpid();
	for (pid_t tid = pid; tid < pid + HANG_THREADS; tid++)
		hang_show_thread(tid, tid == pid);
	backtrace_symbols_fd(frames, backtrace(frames, 64), STDERR_FILENO);
	signal(sig, SIG_DFL);
	raise(sig);
}

/* The first call of backtrace() loads a library: before there are threads. */
static void hang_prepare(void)
{
	void *frame;
	(void)backtrace(&frame, 1);
}

/* In the child, at its start. */
static void hang_limit(unsigned seconds)
{
	signal(SIGALRM, hang_show);
	alarm(seconds);
}

#endif
