/* SPDX-License-Identifier: MIT */
/*
 * log.h - lines for people. A sink is where they go: a callback, or a descriptor of the program's. Formatting never
 * allocates: integers and strings only, no floating point. Never called during a stop.
 */
#ifndef GU_BASE_LOG_H
#define GU_BASE_LOG_H

#include <stddef.h>

enum gu_log_level { GU_LOG_ERROR, GU_LOG_WARN, GU_LOG_INFO, GU_LOG_DEBUG };

struct gu_log {
	void (*write)(void *data, int level, const char *line); /* NULL: a line on fd */
	void *data;
	int level; /* lines above it are dropped */
	int fd;    /* as the program numbers it when the line is written; 0: stderr */
};

/* The calling thread has a descriptor table of its own: its lines go to the program's descriptors all the same. */
void gu_log_detach(void);

/* The calling thread's lines, of one log, are kept from hold to release: for who has a lock that others must get while nobody reads lines. */
#define GU_LOG_HELD 4096
struct gu_log_held {
	const struct gu_log *log;
	size_t len;
	unsigned lost; /* there was no room for them */
	char lines[GU_LOG_HELD]; /* each: its level, its text, a zero */
};
void gu_log_hold(struct gu_log_held *held);
void gu_log_release(void);

/* To the process's stderr, as it is. */
void gu_log_line(const char *line, size_t len);

/* To stderr, if it takes the line at once: for who must not wait. */
void gu_log_dying(const char *line);

void gu_log(const struct gu_log *log, int level, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
