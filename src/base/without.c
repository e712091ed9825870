/* SPDX-License-Identifier: MIT */
/* without.c - see without.h. */
#include "base/without.h"

#include <stdlib.h>
#include <string.h>

#include "base/atomic.h"
#include "base/log.h"

unsigned gu_without_process;

static const char *const names[] = {
#define NAME(name) #name,
	GU_WITHOUT_EACH(NAME)
};

#define SPACED(name) #name " "
const char gu_without_heap_names[] = GU_WITHOUT_OF_HEAP(SPACED) "all";
const char gu_without_names[] = GU_WITHOUT_EACH(SPACED) "all";

static unsigned find(const char *name, size_t len)
{
	if (len == 3 && !memcmp(name, "all", len))
		return GU_WITHOUT_ALL;
	for (unsigned i = 0; i < GU_WITHOUT_COUNT; i++)
		if (strlen(names[i]) == len && !memcmp(names[i], name, len))
			return 1u << i;
	return 0;
}

bool gu_without_parse(const char *text, unsigned allowed, unsigned *bits)
{
	unsigned all = 0;
	for (size_t len;; text += len + 1) {
		len = strcspn(text, "+");
		unsigned bit = find(text, len) & allowed;
		if (!bit)
			return false;
		all |= bit;
		if (!text[len])
			break;
	}
	*bits |= all;
	return true;
}

void gu_without_init(void)
{
	static unsigned begun; /* atomic */
	const struct gu_log log = {.level = GU_LOG_ERROR};
	unsigned bits = 0;
	if (gu_load_relaxed(&begun) || gu_swap_seqcst(&begun, 1))
		return;
	const char *text = secure_getenv("GCUFFD_WITHOUT");
	if (text && *text && !gu_without_parse(text, GU_WITHOUT_ALL, &bits))
		gu_log(&log, GU_LOG_ERROR, "GCUFFD_WITHOUT=%s is ignored; the names are, with + between: %s", text, gu_without_names);
	gu_store_seqcst(&gu_without_process, bits);
}
