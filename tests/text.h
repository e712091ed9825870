/* SPDX-License-Identifier: MIT */
/* text.h - an invented file of /proc, in pieces and with errors, for the tests of what reads one. */
#ifndef GU_TESTS_TEXT_H
#define GU_TESTS_TEXT_H

#include <errno.h>
#include <string.h>

#include "base/check.h"
#include "fake_os.h"
#include "test.h"

static const char *text_path; /* its name */
static const char *text;      /* its contents */
static size_t text_at;        /* how far it was read */
static size_t text_step;      /* bytes a read; 0: any */
static int text_error;        /* instead of the end of the file */
static unsigned interrupts;   /* this many reads say EINTR first */
static int text_opened;       /* now */

static int text_open(const char *path, int flags)
{
	(void)flags;
	ck_assert_str_eq(path, text_path);
	text_at = 0;
	text_opened++;
	return 1000;
}

static int text_close(int fd)
{
	ck_assert_int_eq(fd, 1000);
	text_opened--;
	return 0;
}

static long text_read(int fd, void *buffer, size_t len)
{
	size_t n = gu_min(strlen(text) - text_at, text_step ? gu_min(len, text_step) : len);
	ck_assert_int_eq(fd, 1000);
	if (interrupts) {
		interrupts--;
		return -EINTR;
	}
	memcpy(buffer, text + text_at, n);
	text_at += n;
	return n || !text_error ? (long)n : text_error;
}

static void text_invent(const char *path, const char *contents, size_t step)
{
	fake_install();
	fake_os.open = text_open;
	fake_os.close = text_close;
	fake_os.read = text_read;
	text_path = path;
	text = contents;
	text_step = step;
	text_error = 0;
	interrupts = 0;
}

#endif
