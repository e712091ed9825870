/* SPDX-License-Identifier: MIT */
/* options.c - defaults, parsing and checks. Any thread; touches nothing but its arguments, and the log that they name. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "api/api.h"
#include "base/without.h"
#include "gc/restore.h"
#include "sys/valgrind.h"

#define LEAST_LIMIT ((size_t)2 << 20)

void gcuffd_options_init(struct gcuffd_options *o)
{
	memset(o, 0, sizeof(*o));
	o->size = sizeof(*o);
	o->log_level = GCUFFD_LOG_WARN;
	o->hang_seconds = 60;
}

/* ---- text ---- */

enum type { SIZE, NUMBER, FLAG, NOT_FLAG, RUNG, LEVEL, CODEC, COOL, PLANT, WITHOUT };

struct field {
	const char *name;
	enum type type;
	size_t offset; /* or the flag */
};

#define FIELD(name, type) { #name, type, offsetof(struct gcuffd_options, name) }

static const struct field fields[] = {
	FIELD(reservation, SIZE), FIELD(soft_limit, SIZE), FIELD(hard_limit, SIZE), FIELD(start_size, SIZE),
	FIELD(mark_threads, NUMBER), FIELD(growth_percent, NUMBER), FIELD(decay_ms, NUMBER), FIELD(stop_timeout_ms, NUMBER),
	FIELD(resident_target, SIZE), FIELD(store_memory, SIZE), FIELD(store_file, SIZE), FIELD(store_codec, CODEC),
	FIELD(cool_mode, COOL), FIELD(cool_after_ms, NUMBER), FIELD(pressure_percent, NUMBER), FIELD(fault_percent, NUMBER), FIELD(hang_seconds, NUMBER),
	FIELD(resolver_threads, NUMBER), FIELD(finalizer_thread, NUMBER), FIELD(log_fd, NUMBER),
	FIELD(rung, RUNG), FIELD(log_level, LEVEL), FIELD(without, WITHOUT),
	{"interior", NOT_FLAG, GCUFFD_NO_INTERIOR}, {"huge", NOT_FLAG, GCUFFD_NO_HUGE}, {"pacing", NOT_FLAG, GCUFFD_NO_PACING},
	{"verify", FLAG, GCUFFD_VERIFY}, {"process_roots", FLAG, GCUFFD_PROCESS_ROOTS}, {"past_end", FLAG, GCUFFD_PAST_END},
	{"cold", FLAG, GCUFFD_COLD}, {"cold_user_faults", FLAG, GCUFFD_COLD_USER_FAULTS},
	{"plant_drop_card", PLANT, GCUFFD_PLANT_DROP_CARD}, {"plant_skip_tls", PLANT, GCUFFD_PLANT_SKIP_TLS},
	{"plant_early_sweep", PLANT, GCUFFD_PLANT_EARLY_SWEEP}, {"plant_skip_root", PLANT, GCUFFD_PLANT_SKIP_ROOT},
	{"plant_skip_finalizer", PLANT, GCUFFD_PLANT_SKIP_FINALIZER},
};

static bool parse_size(const char *text, uint64_t *out)
{
	static const char units[] = "KMGT";
	char *end;
	errno = 0;
	unsigned long long n = strtoull(text, &end, 10);
	if (end == text || errno || *text == '-')
		return false;
	const char *unit = *end ? strchr(units, *end) : NULL;
	if (unit) {
		unsigned shift = 10 * (unsigned)(unit - units + 1);
		if (n << shift >> shift != n)
			return false;
		n <<= shift;
		end++;
	}
	*out = n;
	return !*end;
}

static bool parse_word(const char *text, const char *const *words, size_t n, int *out)
{
	for (size_t i = 0; i < n; i++)
		if (!strcmp(text, words[i])) {
			*out = (int)i;
			return true;
		}
	return false;
}

static void set_flag(unsigned *flags, unsigned flag, bool on) { *flags = on ? *flags | flag : *flags & ~flag; }

static bool set_number(struct gcuffd_options *o, const struct field *f, const char *value)
{
	uint64_t n;
	if (!parse_size(value, &n))
		return false;
	if (f->type == SIZE)
		*(size_t *)((char *)o + f->offset) = n;
	else if (f->type == NUMBER && n <= UINT32_MAX)
		*(unsigned *)((char *)o + f->offset) = (unsigned)n;
	else if (n > 1)
		return false;
	else if (f->type == FLAG || f->type == NOT_FLAG)
		set_flag(&o->flags, (unsigned)f->offset, (n == 1) == (f->type == FLAG));
	else
		set_flag(&o->debug, (unsigned)f->offset, n == 1);
	return true;
}

static bool set_without(struct gcuffd_options *o, const char *value)
{
	struct gu_log log = gu_log_of(o);
	if (gu_without_parse(value, GU_WITHOUT_HEAP, &o->without))
		return true;
	gu_log(&log, GU_LOG_ERROR, "without=%s: the names are, with + between: %s", value, gu_without_heap_names);
	return false;
}

static bool set_field(struct gcuffd_options *o, const struct field *f, const char *value)
{
	static const char *const rungs[] = {"auto", "stop", "async", "move", "rwp"};
	static const char *const levels[] = {"error", "warn", "info", "debug"}, *const codecs[] = {"lz4", "zstd"};
	static const char *const cools[] = {"target", "cgroup", "pressure", "idle"};
	int n;
	if (f->type == RUNG) {
		if (!parse_word(value, rungs, GU_ARRAY_LEN(rungs), &n))
			return false;
		o->rung = (enum gcuffd_rung)n;
		return true;
	}
	if (f->type == CODEC) {
		if (!parse_word(value, codecs, GU_ARRAY_LEN(codecs), &n))
			return false;
		o->store_codec = (enum gcuffd_codec)n;
		return true;
	}
	if (f->type == COOL) {
		if (!parse_word(value, cools, GU_ARRAY_LEN(cools), &n))
			return false;
		o->cool_mode = (enum gcuffd_cool_mode)n;
		return true;
	}
	if (f->type == LEVEL) {
		if (!parse_word(value, levels, GU_ARRAY_LEN(levels), &n))
			return false;
		o->log_level = (enum gcuffd_log_level)n;
		return true;
	}
	return f->type == WITHOUT ? set_without(o, value) : set_number(o, f, value);
}

static bool set_pair(struct gcuffd_options *o, const char *text, size_t len)
{
	char pair[256];
	if (len >= sizeof(pair))
		return false;
	memcpy(pair, text, len);
	pair[len] = 0;
	char *value = strchr(pair, '=');
	if (!value)
		return false;
	*value++ = 0;
	for (size_t i = 0; i < GU_ARRAY_LEN(fields); i++)
		if (!strcmp(fields[i].name, pair))
			return set_field(o, &fields[i], value);
	return false;
}

int gcuffd_options_parse(struct gcuffd_options *o, const char *text, const char **bad)
{
	struct gcuffd_options now = *o;
	while (*text) {
		size_t len = strcspn(text, ", ");
		if (len && !set_pair(&now, text, len)) {
			if (bad)
				*bad = text;
			return -EINVAL;
		}
		text += len + (text[len] != 0);
	}
	*o = now;
	return 0;
}

/* ---- checks ---- */

static int refuse(const struct gcuffd_options *o, const char *what)
{
	struct gu_log log = gu_log_of(o);
	gu_log(&log, GU_LOG_ERROR, "bad option: %s", what);
	return -EINVAL;
}

/* The line that says so goes to stderr. */
static bool log_fd_is_bad(struct gcuffd_options *o)
{
	int how = o->log_fd ? fcntl((int)o->log_fd, F_GETFL) : O_WRONLY;
	bool bad = how < 0 || (how & O_ACCMODE) == O_RDONLY;
	if (bad)
		o->log_fd = 0;
	return bad;
}

static size_t default_reservation(void)
{
	struct rlimit limit;
	size_t ram = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
	size_t least = (size_t)16 << 30, size = gu_valgrind_is_here() ? least : gu_max(ram * 8, least);
	if (!getrlimit(RLIMIT_AS, &limit) && limit.rlim_cur != RLIM_INFINITY)
		size = gu_min(size, limit.rlim_cur / 4);
	return gu_max(size, 8 * GU_REGION);
}

static unsigned default_markers(void)
{
	long n = sysconf(_SC_NPROCESSORS_ONLN);
	return n < 1 ? 1 : (unsigned)gu_min((size_t)n, 8);
}

static void fill_defaults(struct gcuffd_options *o)
{
	o->reservation = gu_align_up(o->reservation ? o->reservation : default_reservation(), GU_REGION);
	o->start_size = o->start_size ? o->start_size : (size_t)4 << 20;
	if (o->resident_target) /* pages are taken out by a thread that has to be there */
		o->start_size = gu_min(o->start_size, o->resident_target / 2);
	if (o->resident_target || o->cool_mode) /* and 4 KiB at a time */
		o->flags |= GCUFFD_NO_HUGE;
	o->cool_after_ms = o->cool_after_ms ? gu_max(o->cool_after_ms, 50) : 60000; /* a round of the hand takes as long */
	o->pressure_percent = o->pressure_percent ? o->pressure_percent : 1;
	o->fault_percent = o->fault_percent ? o->fault_percent : 5;
	o->mark_threads = o->mark_threads ? o->mark_threads : default_markers();
	o->resolver_threads = o->resolver_threads ? o->resolver_threads : 1;
	o->growth_percent = o->growth_percent ? o->growth_percent : 100;
	o->decay_ms = o->decay_ms ? o->decay_ms : 1000;
	size_t most = o->resident_target ? o->resident_target : (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
	if (!o->store_memory)
		o->store_memory = !o->resident_target ? most / 4 : o->store_file ? most / 8 : most / 4 * 3;
	o->store_path = o->store_path ? o->store_path : "/var/tmp";
	o->stop_timeout_ms = o->stop_timeout_ms ? o->stop_timeout_ms : 1000;
}

static void leave_out(struct gcuffd_options *o)
{
	o->without |= gu_without_process & GU_WITHOUT_HEAP;
	o->flags |= o->without & GU_WITHOUT_huge ? GCUFFD_NO_HUGE : 0;
	if (o->without & GU_WITHOUT_decay)
		o->decay_ms = 0;
	if (o->without & GU_WITHOUT_parallel)
		o->mark_threads = 1;
}

int gu_options_resolve(struct gcuffd_options *o, const struct gcuffd_options *in, unsigned on)
{
	const unsigned flags = GCUFFD_NO_INTERIOR | GCUFFD_VERIFY | GCUFFD_NO_HUGE | GCUFFD_PROCESS_ROOTS | GCUFFD_NO_PACING | GCUFFD_PAST_END | GCUFFD_COLD |
		GCUFFD_COLD_USER_FAULTS;
	gcuffd_options_init(o);
	if (in && (in->size < offsetof(struct gcuffd_options, rung) || in->size > 4096))
		return refuse(o, "size: the struct was not set up by gcuffd_options_init()");
	if (in) {
		memcpy(o, in, gu_min(in->size, sizeof(*o)));
		o->size = sizeof(*o);
	}
	o->flags |= on;
	for (size_t i = sizeof(*o); in && i < in->size; i++)
		if (((const char *)in)[i])
			return refuse(o, "a field that this version of the library does not know");
	if (log_fd_is_bad(o))
		return refuse(o, "log_fd: not open, or not for writing");
	if (o->flags & ~flags || o->debug & ~31u)
		return refuse(o, "flags or debug: unknown bit");
	if (o->hard_limit && o->hard_limit < LEAST_LIMIT)
		return refuse(o, "hard_limit: less than 2 MiB");
	if (o->hard_limit && o->soft_limit > o->hard_limit)
		return refuse(o, "soft_limit: above hard_limit");
	if (o->without & ~(unsigned)GU_WITHOUT_HEAP)
		return refuse(o, "without: unknown bit");
	if (o->rung > GCUFFD_RUNG_RWP)
		return refuse(o, "rung: unknown");
	if (o->store_codec > GCUFFD_CODEC_ZSTD)
		return refuse(o, "store_codec: unknown");
	if (o->cool_mode > GCUFFD_COOL_IDLE)
		return refuse(o, "cool_mode: unknown");
	if (o->cool_mode && !(o->flags & GCUFFD_COLD))
		return refuse(o, "cool_mode: without cold=1");
	if ((o->flags & (GCUFFD_COLD | GCUFFD_COLD_USER_FAULTS)) == GCUFFD_COLD_USER_FAULTS)
		return refuse(o, "cold_user_faults: without cold=1");
	if (o->pressure_percent > 100 || o->fault_percent > 100)
		return refuse(o, "pressure_percent or fault_percent: more than 100");
	if (o->mark_threads > 8)
		return refuse(o, "mark_threads: more than 8");
	if (o->resolver_threads > GU_RESOLVERS)
		return refuse(o, "resolver_threads: more than 16");
	if (o->finalizer_thread > 1)
		return refuse(o, "finalizer_thread: more than 1");
	if (o->growth_percent > 10000)
		return refuse(o, "growth_percent: more than 10000");
	if (o->reservation > (size_t)1 << 46)
		return refuse(o, "reservation: more than 64 TiB");
	fill_defaults(o);
	leave_out(o);
	return 0;
}
