/* SPDX-License-Identifier: MIT */
/* test_events.c - what a handler is told of cycles, phases, stops and stalls, beside what statistics say; and changing it, from everywhere. */
#include <semaphore.h>

#include "core.h"
#include "fake_os.h"
#include "gc/heap.h"

#define MOST 4096u

struct told {
	struct gcuffd_event events[MOST];
	uint64_t at_ns[MOST]; /* when it was told */
	uint32_t n; /* atomic: events up to there are written */
};

static struct gcuffd_heap *heap;
static struct told told;

static void record(void *data, const struct gcuffd_event *event)
{
	struct told *t = data;
	must(event->size == sizeof(*event) && event->kind && event->heap && event->end_ns >= event->begin_ns && event->begin_ns, "kind %d", event->kind);
	if (t->n < MOST) {
		t->events[t->n] = *event;
		t->at_ns[t->n] = test_now_ns();
		__atomic_store_n(&t->n, t->n + 1, __ATOMIC_RELEASE);
	}
}

static uint32_t count(void) { return __atomic_load_n(&told.n, __ATOMIC_ACQUIRE); }

static void start(const char *options, int rung)
{
	memset(&told, 0, sizeof(told));
	heap = heap_make("rung=%s,%s", rung_names[rung], options);
	ck_ok(gcuffd_event_handler_set(heap, record, &told));
}

/* The next that is no stall, which may come anywhere. */
static const struct gcuffd_event *next(uint32_t *at)
{
	while (*at < count() && told.events[*at].kind == GCUFFD_EVENT_STALL)
		++*at;
	return *at < count() ? &told.events[(*at)++] : NULL;
}

static const struct gcuffd_event *expect(uint32_t *at, enum gcuffd_event_kind kind)
{
	const struct gcuffd_event *e = next(at);
	ck_assert_ptr_nonnull(e);
	ck_assert_int_eq(e->kind, kind);
	ck_assert_ptr_eq(e->heap, heap);
	ck_assert_uint_eq(e->lost, 0);
	return e;
}

static const struct gcuffd_event *expect_begin(uint32_t *at, enum gcuffd_phase phase)
{
	const struct gcuffd_event *e = expect(at, GCUFFD_EVENT_PHASE_BEGIN);
	ck_assert_int_eq(e->phase, phase);
	ck_assert_uint_eq(e->begin_ns, e->end_ns);
	return e;
}

/* How long it took, in ns. */
static uint64_t expect_end(uint32_t *at, enum gcuffd_phase phase, const struct gcuffd_event *begin)
{
	const struct gcuffd_event *e = expect(at, GCUFFD_EVENT_PHASE_END);
	ck_assert_int_eq(e->phase, phase);
	ck_assert_uint_eq(e->begin_ns, begin->begin_ns);
	return e->end_ns - e->begin_ns;
}

static uint64_t expect_stop(uint32_t *at, unsigned threads)
{
	const struct gcuffd_event *e = expect(at, GCUFFD_EVENT_STOP);
	ck_assert_int_eq(e->error, 0);
	ck_assert_uint_eq(e->threads, threads);
	ck_assert_uint_ge(e->stopped_ns, e->begin_ns);
	ck_assert_uint_ge(e->end_ns, e->stopped_ns);
	return e->end_ns - e->begin_ns;
}

static uint64_t expect_phase(uint32_t *at, enum gcuffd_phase phase)
{
	const struct gcuffd_event *begin = expect_begin(at, phase);
	return expect_end(at, phase, begin);
}

/* ---- a cycle ---- */

static void expect_beside(uint32_t *at, const struct gcuffd_stats *s, unsigned threads)
{
	const struct gcuffd_event *begin = expect_begin(at, GCUFFD_PHASE_FIRST_STOP);
	ck_assert_uint_eq(expect_stop(at, threads), s->last_stop1_ns);
	ck_assert_uint_ge(expect_end(at, GCUFFD_PHASE_FIRST_STOP, begin), s->last_stop1_ns);
	ck_assert_uint_eq(expect_phase(at, GCUFFD_PHASE_MARK), s->last_mark_ns);
	begin = expect_begin(at, GCUFFD_PHASE_PRECLEAN);
	for (uint64_t i = 0; i < s->last_preclean_rounds; i++)
		ck_assert_uint_eq(expect(at, GCUFFD_EVENT_ROUND)->pages, s->last_round_dirty_pages[i]);
	ck_assert_uint_eq(expect_end(at, GCUFFD_PHASE_PRECLEAN, begin), s->last_preclean_ns);
}

/* It may be made again: a module was loaded. Here none is. */
static void expect_decision(uint32_t *at, const struct gcuffd_stats *s, unsigned threads)
{
	const struct gcuffd_event *begin = expect_begin(at, GCUFFD_PHASE_SECOND_STOP);
	ck_assert_uint_eq(expect_stop(at, threads), s->last_stop2_ns);
	ck_assert_uint_ge(expect_end(at, GCUFFD_PHASE_SECOND_STOP, begin), s->last_stop2_ns);
	ck_assert_uint_eq(expect_phase(at, GCUFFD_PHASE_FINALIZE), s->last_finalize_ns);
}

/* Between precleaning and the second stop a handler would make that longer, by what is written meanwhile; then it is to be known first what is dead. */
static bool is_told_later(const struct gcuffd_event *e)
{
	bool first = e->kind == GCUFFD_EVENT_PHASE_BEGIN, last = e->kind == GCUFFD_EVENT_PHASE_END;
	return e->kind == GCUFFD_EVENT_ROUND || (last && e->phase == GCUFFD_PHASE_PRECLEAN) || ((first || last) && e->phase == GCUFFD_PHASE_SECOND_STOP) ||
	       (first && e->phase == GCUFFD_PHASE_FINALIZE);
}

static void expect_told_later(uint32_t from, uint32_t to)
{
	uint64_t decided = 0;
	for (uint32_t i = from; i < to; i++)
		if (told.events[i].kind == GCUFFD_EVENT_PHASE_END && told.events[i].phase == GCUFFD_PHASE_FINALIZE)
			decided = told.events[i].end_ns;
	ck_assert_uint_gt(decided, 0);
	for (uint32_t i = from; i < to; i++)
		ck_assert_msg(!is_told_later(&told.events[i]) || told.at_ns[i] >= decided, "event %u, kind %d, phase %d", i, told.events[i].kind, told.events[i].phase);
}

static void expect_cycle(uint32_t *at, bool in_stop, unsigned threads)
{
	struct gcuffd_stats s = stats_of(heap);
	uint32_t from = *at;
	const struct gcuffd_event *begin = expect(at, GCUFFD_EVENT_CYCLE_BEGIN);
	ck_assert_int_eq(begin->reason, (int)s.last_reason);
	ck_assert_uint_eq(expect_phase(at, GCUFFD_PHASE_ARM), s.last_arm_ns);
	if (!in_stop)
		expect_beside(at, &s, threads);
	expect_decision(at, &s, threads);
	ck_assert_uint_eq(expect_phase(at, GCUFFD_PHASE_SWEEP), s.last_sweep_ns);
	const struct gcuffd_event *end = expect(at, GCUFFD_EVENT_CYCLE_END);
	ck_assert_int_eq(end->error, 0);
	ck_assert_uint_eq(end->begin_ns, begin->begin_ns);
	ck_assert_uint_eq(end->freed_bytes, s.last_freed_bytes);
	ck_assert_uint_eq(end->live_bytes, s.live_bytes);
	expect_told_later(from, *at);
	uint64_t last = 0;
	for (uint32_t i = from; i < *at; i++) {
		if (told.events[i].kind == GCUFFD_EVENT_STALL)
			continue;
		ck_assert_uint_eq(told.events[i].cycle, s.cycles);
		ck_assert_uint_ge(told.events[i].end_ns, last);
		last = told.events[i].end_ns;
	}
}

static sem_t there, leave;

static void *be_there(void *unused)
{
	must_ok(gcuffd_thread_attach());
	sem_post(&there);
	must_ok(gcuffd_blocking_enter());
	while (sem_wait(&leave))
		;
	must_ok(gcuffd_blocking_leave());
	must_ok(gcuffd_thread_detach());
	return unused;
}

/* All of it is told when gcuffd_collect() is back. */
START_TEST(cycles)
{
	pthread_t threads[3];
	uint32_t at = 0;
	NEED_RUNG(_i);
	sem_init(&there, 0, 0);
	sem_init(&leave, 0, 0);
	start("pacing=0", _i);
	for (int i = 0; i < 3; i++)
		must_ok(pthread_create(&threads[i], NULL, be_there, NULL));
	for (int i = 0; i < 3; i++)
		while (sem_wait(&there))
			;
	for (int i = 0; i < 5; i++) {
		must(gcuffd_alloc(heap, 100000) != NULL, "errno %d", errno);
		ck_ok(gcuffd_collect(heap));
		expect_cycle(&at, _i == GCUFFD_RUNG_STOP, 4);
		ck_assert_ptr_null(next(&at));
	}
	for (int i = 0; i < 3; i++)
		sem_post(&leave);
	for (int i = 0; i < 3; i++)
		must_ok(pthread_join(threads[i], NULL));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- a cycle that is put off ---- */

static void *be_deaf(void *unused)
{
	sigset_t set;
	must_ok(gcuffd_thread_attach());
	sigemptyset(&set);
	sigaddset(&set, gcuffd_stop_signal());
	must_ok(pthread_sigmask(SIG_BLOCK, &set, NULL));
	sem_post(&there);
	while (sem_wait(&leave))
		;
	must_ok(pthread_sigmask(SIG_UNBLOCK, &set, NULL));
	must_ok(gcuffd_thread_detach());
	return unused;
}

static bool fails(const struct gcuffd_event *e) { return e->error == -ETIMEDOUT && !e->stopped_ns && !e->threads; }

START_TEST(put_off)
{
	pthread_t thread;
	uint32_t at = 0;
	enum gcuffd_phase phase = _i == GCUFFD_RUNG_STOP ? GCUFFD_PHASE_SECOND_STOP : GCUFFD_PHASE_FIRST_STOP;
	NEED_RUNG(_i);
	sem_init(&there, 0, 0);
	sem_init(&leave, 0, 0);
	start("pacing=0,stop_timeout_ms=50", _i);
	must_ok(pthread_create(&thread, NULL, be_deaf, NULL));
	while (sem_wait(&there))
		;
	ck_assert_int_eq(gcuffd_collect(heap), -ETIMEDOUT);
	ck_assert_uint_eq(expect(&at, GCUFFD_EVENT_CYCLE_BEGIN)->cycle, 1);
	expect_phase(&at, GCUFFD_PHASE_ARM);
	const struct gcuffd_event *begin = expect_begin(&at, phase);
	ck_assert(fails(expect(&at, GCUFFD_EVENT_STOP)));
	expect_end(&at, phase, begin);
	expect_phase(&at, GCUFFD_PHASE_SWEEP);
	const struct gcuffd_event *end = expect(&at, GCUFFD_EVENT_CYCLE_END);
	ck_assert(fails(end));
	ck_assert_uint_eq(end->freed_bytes | end->live_bytes, 0);
	ck_assert_ptr_null(next(&at));
	sem_post(&leave);
	must_ok(pthread_join(thread, NULL));
	ck_ok(gcuffd_collect(heap));
	ck_assert_uint_eq(expect(&at, GCUFFD_EVENT_CYCLE_BEGIN)->cycle, 1);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- other stops ---- */

static int pass(void *data, const struct gcuffd_walked *object)
{
	(void)data, (void)object;
	return 0;
}

START_TEST(walks)
{
	uint32_t at = 0;
	start("pacing=0", GCUFFD_RUNG_AUTO);
	ck_ok(gcuffd_heap_walk(heap, pass, NULL));
	expect_stop(&at, 1);
	ck_assert_uint_eq(told.events[0].cycle, 0);
	ck_assert_ptr_null(next(&at));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- stalls ---- */

static uint64_t stalled_ns(unsigned of[4])
{
	uint64_t sum = 0;
	memset(of, 0, 4 * sizeof(*of));
	for (uint32_t i = 0; i < count(); i++) {
		const struct gcuffd_event *e = &told.events[i];
		if (e->kind != GCUFFD_EVENT_STALL)
			continue;
		ck_assert_int_ge((int)e->stall, 0);
		ck_assert_int_lt((int)e->stall, 4);
		ck_assert_uint_eq(e->cycle, 0);
		ck_assert_uint_eq(e->lost, 0);
		of[e->stall]++;
		sum += e->end_ns - e->begin_ns;
	}
	return sum;
}

/* They are told by themselves, soon. */
static void await_stalls(unsigned of[4])
{
	uint64_t end = test_now_ns() + 20000000000ull * check_slow(), wanted = stats_of(heap).stall_ns;
	while (stalled_ns(of) != wanted && test_now_ns() < end)
		usleep(1000);
	ck_assert_uint_eq(stalled_ns(of), wanted);
}

/* The sum of them is that of the statistics, so none is told twice or not at all. */
START_TEST(stalls)
{
	unsigned of[4];
	NEED_RUNG(_i);
	start("hard_limit=16M,pacing=0", _i);
	for (int i = 0; i < 4000; i++)
		must(gcuffd_alloc_atomic(heap, 10000) != NULL, "errno %d", errno);
	await_stalls(of);
	ck_assert_uint_gt(of[GCUFFD_STALL_NO_MEMORY], 0);
	ck_assert_uint_eq(of[GCUFFD_STALL_ASKED], 0);
	ck_ok(gcuffd_collect(heap));
	await_stalls(of);
	ck_assert_uint_eq(of[GCUFFD_STALL_ASKED], 1);
	ck_assert_int_eq(told.events[count() - 1].thread, (int)gettid());
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

#define CROWD 300u

static uint32_t seen; /* atomic; of stalls, those that were lost included */
static uint32_t lost; /* atomic */
static uint64_t waited_ns; /* atomic; by all stalls, those that were lost included */
static uint32_t finished; /* atomic; of the crowd */
static sem_t ready;

/* In the first cycle: the next is all of the crowd's. */
static void let_crowd_ask(void)
{
	for (unsigned i = 0; i < CROWD; i++)
		sem_post(&ready);
	for (unsigned ms = 0; ms < 20000 * check_slow() && gu_load_seqcst(&heap->stalled) <= CROWD; ms++)
		usleep(1000);
}

/* At the first stall after that, until each of them had what it waited for. */
static void hold_up(void)
{
	for (unsigned ms = 0; ms < 20000 * check_slow() && __atomic_load_n(&finished, __ATOMIC_ACQUIRE) < CROWD; ms++)
		usleep(1000);
}

static void count_slowly(void *data, const struct gcuffd_event *event)
{
	(void)data;
	must(!event->lost_ns || event->lost, "time of none");
	__atomic_fetch_add(&lost, event->lost, __ATOMIC_RELAXED);
	__atomic_fetch_add(&waited_ns, event->lost_ns + (event->kind == GCUFFD_EVENT_STALL ? event->end_ns - event->begin_ns : 0), __ATOMIC_RELAXED);
	__atomic_fetch_add(&seen, event->lost + (event->kind == GCUFFD_EVENT_STALL), __ATOMIC_RELEASE);
	if (event->kind == GCUFFD_EVENT_CYCLE_BEGIN && count() == 0)
		let_crowd_ask();
	if (event->kind == GCUFFD_EVENT_STALL && count() == 2)
		hold_up();
	if (event->kind == GCUFFD_EVENT_CYCLE_END)
		__atomic_fetch_add(&told.n, 1, __ATOMIC_RELEASE);
}

static bool await_seen(uint32_t n)
{
	for (unsigned ms = 0; __atomic_load_n(&seen, __ATOMIC_RELAXED) < n && ms < 5000 * check_slow(); ms++)
		usleep(1000);
	return __atomic_load_n(&seen, __ATOMIC_ACQUIRE) == n;
}

static void *collect(void *unused)
{
	must_ok(gcuffd_thread_attach());
	while (sem_wait(&ready))
		;
	must_ok(gcuffd_collect(heap));
	__atomic_fetch_add(&finished, 1, __ATOMIC_RELEASE);
	must_ok(gcuffd_thread_detach());
	return unused;
}

/* Whoever waited does not wait for the handler. What there was no room for is counted; the collector's own events are all told. */
START_TEST(more_than_there_is_room_for)
{
	pthread_t threads[CROWD];
	start("pacing=0", GCUFFD_RUNG_AUTO);
	ck_ok(gcuffd_event_handler_set(heap, count_slowly, NULL));
	sem_init(&ready, 0, 0);
	for (unsigned i = 0; i < CROWD; i++)
		must_ok(pthread_create(&threads[i], NULL, collect, NULL));
	ck_ok(gcuffd_collect(heap));
	for (unsigned i = 0; i < CROWD; i++)
		must_ok(pthread_join(threads[i], NULL));
	ck_ok(gcuffd_collect(heap)); /* its first event tells how many were lost before it */
	ck_assert(await_seen(CROWD + 2));
	ck_assert_uint_gt(__atomic_load_n(&lost, __ATOMIC_RELAXED), 0);
	ck_assert_uint_eq(__atomic_load_n(&waited_ns, __ATOMIC_RELAXED), stats_of(heap).stall_ns);
	ck_assert_uint_eq(count(), stats_of(heap).cycles);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- changing the handler ---- */

struct slot {
	uint32_t calls, inside; /* atomic */
	uint32_t valid;         /* atomic */
};

static void use(void *data, const struct gcuffd_event *event)
{
	struct slot *s = data;
	(void)event;
	__atomic_store_n(&s->inside, 1, __ATOMIC_SEQ_CST);
	must(__atomic_load_n(&s->valid, __ATOMIC_SEQ_CST), "called after it was replaced");
	usleep(10);
	must(__atomic_load_n(&s->valid, __ATOMIC_SEQ_CST), "replaced while it was called");
	__atomic_fetch_add(&s->calls, 1, __ATOMIC_RELAXED);
	__atomic_store_n(&s->inside, 0, __ATOMIC_SEQ_CST);
}

static uint32_t quit;

static void *keep_collecting(void *unused)
{
	must_ok(gcuffd_thread_attach());
	while (!__atomic_load_n(&quit, __ATOMIC_RELAXED)) {
		must(gcuffd_alloc(heap, 1000) != NULL, "errno %d", errno);
		must_ok(gcuffd_collect(heap));
	}
	must_ok(gcuffd_thread_detach());
	return unused;
}

/* With what it had: nobody is inside of it when set returns, nor comes there again. */
static void *keep_setting(void *unused)
{
	struct slot *slots = calloc(2, sizeof(*slots));
	uint64_t end = test_now_ns() + check_span_ns(check_seconds() * 1000000000ull / 10), calls = 0;
	must_ok(gcuffd_thread_attach());
	for (unsigned i = 0; i < 20 || test_now_ns() < end; i++) {
		struct slot *s = &slots[i % 2];
		__atomic_store_n(&s->valid, 1, __ATOMIC_SEQ_CST);
		must_ok(gcuffd_event_handler_set(heap, use, s));
		usleep(i % 7 * 100);
		must_ok(gcuffd_event_handler_set(heap, NULL, NULL));
		must(!__atomic_load_n(&s->inside, __ATOMIC_SEQ_CST), "still in a call");
		__atomic_store_n(&s->valid, 0, __ATOMIC_SEQ_CST);
		calls += __atomic_exchange_n(&s->calls, 0, __ATOMIC_RELAXED);
	}
	must(calls > 0, "never called");
	must_ok(gcuffd_thread_detach());
	free(slots);
	return unused;
}

START_TEST(set_against_cycles)
{
	pthread_t collector, setter;
	NEED_RUNG(_i);
	quit = 0;
	start("start_size=1M", _i);
	must_ok(pthread_create(&collector, NULL, keep_collecting, NULL));
	must_ok(pthread_create(&setter, NULL, keep_setting, NULL));
	must_ok(gcuffd_blocking_enter());
	must_ok(pthread_join(setter, NULL));
	__atomic_store_n(&quit, 1, __ATOMIC_RELAXED);
	must_ok(pthread_join(collector, NULL));
	must_ok(gcuffd_blocking_leave());
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* It waits for a cycle's end, not for a time when there is none. */
START_TEST(set_between_cycles)
{
	pthread_t collectors[3];
	uint64_t ended = 0;
	void **head = NULL;
	NEED_RUNG(_i);
	quit = 0;
	start("pacing=0", _i);
	for (unsigned i = 0; i < 100000; i++) { /* so that a cycle takes some milliseconds */
		void **next = gcuffd_alloc(heap, 64);
		must(next != NULL, "errno %d", errno);
		*next = head;
		head = next;
	}
	for (unsigned i = 0; i < 3; i++)
		must_ok(pthread_create(&collectors[i], NULL, keep_collecting, NULL));
	for (unsigned i = 0; i < 20; i++) {
		usleep(5000);
		uint64_t before = stats_of(heap).cycles;
		ck_ok(gcuffd_event_handler_set(heap, i % 2 ? record : NULL, &told));
		ended += stats_of(heap).cycles - before;
	}
	ck_assert_uint_lt(ended, 20 * 3); /* a busy machine may be late for a turn */
	__atomic_store_n(&quit, 1, __ATOMIC_RELAXED);
	must_ok(gcuffd_blocking_enter());
	for (unsigned i = 0; i < 3; i++)
		must_ok(pthread_join(collectors[i], NULL));
	must_ok(gcuffd_blocking_leave());
	ck_assert_ptr_nonnull(head);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* Several at once: each takes away what it finds. */
static void *set_and_clear(void *unused)
{
	must_ok(gcuffd_thread_attach());
	for (unsigned i = 0; i < 200; i++)
		must_ok(gcuffd_event_handler_set(heap, i % 2 ? NULL : record, &told));
	must_ok(gcuffd_thread_detach());
	return unused;
}

START_TEST(several_setters)
{
	pthread_t threads[4];
	start("pacing=0", GCUFFD_RUNG_AUTO);
	for (int i = 0; i < 4; i++)
		must_ok(pthread_create(&threads[i], NULL, set_and_clear, NULL));
	for (int i = 0; i < 20; i++)
		ck_ok(gcuffd_collect(heap));
	for (int i = 0; i < 4; i++)
		must_ok(pthread_join(threads[i], NULL));
	ck_ok(gcuffd_event_handler_set(heap, NULL, NULL));
	uint32_t were = count();
	ck_ok(gcuffd_collect(heap));
	ck_assert_uint_eq(count(), were);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static void replace_at_mark(void *data, const struct gcuffd_event *event)
{
	uint32_t *calls = data;
	++*calls;
	if (event->kind == GCUFFD_EVENT_PHASE_BEGIN && event->phase == GCUFFD_PHASE_MARK)
		must_ok(gcuffd_event_handler_set(event->heap, record, &told));
}

static void leave_at_once(void *data, const struct gcuffd_event *event)
{
	++*(uint32_t *)data;
	must_ok(gcuffd_event_handler_set(event->heap, NULL, NULL));
}

/* It goes on with the next event, or not at all. */
START_TEST(set_by_the_handler)
{
	uint32_t calls = 0, at = 0;
	NEED_RUNG(_i);
	start("pacing=0", _i);
	ck_ok(gcuffd_event_handler_set(heap, replace_at_mark, &calls));
	ck_ok(gcuffd_collect(heap));
	ck_assert_uint_eq(calls, 7); /* the cycle, its first two phases with a stop, and the third one */
	ck_assert_int_eq(expect(&at, GCUFFD_EVENT_PHASE_END)->phase, GCUFFD_PHASE_MARK);
	calls = 0;
	ck_ok(gcuffd_event_handler_set(heap, leave_at_once, &calls));
	uint32_t were = count();
	ck_ok(gcuffd_collect(heap));
	ck_ok(gcuffd_collect(heap));
	ck_assert_uint_eq(calls, 1);
	ck_assert_uint_eq(count(), were);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static uint32_t refused; /* atomic */

static void disturb(void *other, const struct gcuffd_event *event)
{
	(void)event;
	must(gcuffd_event_handler_set(other, NULL, NULL) == -EDEADLK, "set in the handler of another heap");
	__atomic_fetch_add(&refused, 1, __ATOMIC_RELAXED);
}

/* Two that wait for each other's cycles would do so for ever. */
START_TEST(set_by_another_handler)
{
	struct gcuffd_heap *other;
	uint32_t at = 0;
	start("pacing=0", GCUFFD_RUNG_AUTO);
	ck_ok(heap_try(&other, "pacing=0"));
	ck_ok(gcuffd_event_handler_set(other, disturb, heap));
	ck_ok(gcuffd_collect(other));
	ck_assert_uint_gt(__atomic_load_n(&refused, __ATOMIC_RELAXED), 0);
	ck_ok(gcuffd_collect(heap)); /* has its handler still */
	expect(&at, GCUFFD_EVENT_CYCLE_BEGIN);
	ck_ok(gcuffd_heap_destroy(other));
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* What the handler takes is the program's time, not a stop's. */
static void be_slow(void *data, const struct gcuffd_event *event)
{
	(void)data;
	if (event->kind != GCUFFD_EVENT_STALL)
		usleep(20000);
}

START_TEST(slow_handler)
{
	start("pacing=0", GCUFFD_RUNG_AUTO);
	ck_ok(gcuffd_collect(heap));
	ck_ok(gcuffd_event_handler_set(heap, be_slow, NULL));
	for (int tries = 0; tries < 10; tries++) { /* a busy machine makes a stop long, too */
		ck_ok(gcuffd_collect(heap));
		struct gcuffd_stats s = stats_of(heap);
		if (s.last_stop1_ns < 20000000 && s.last_stop2_ns < 20000000)
			break;
		ck_assert_int_lt(tries, 9);
	}
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static __thread unsigned allocated;

static void use_malloc(void *data, const struct gcuffd_event *event)
{
	unsigned *sum = data;
	void *p = malloc(100 + event->kind * 100000);
	must(p != NULL, "no memory");
	errno = EXFULL;
	*sum = ++allocated;
	free(p);
}

static void *keep_mallocing(void *unused)
{
	must_ok(gcuffd_thread_attach());
	while (!__atomic_load_n(&quit, __ATOMIC_RELAXED))
		free(malloc(10000));
	must_ok(gcuffd_thread_detach());
	return unused;
}

/* Threads are stopped that have its lock: not while a handler is called. */
START_TEST(malloc_in_the_handler)
{
	pthread_t threads[2];
	unsigned sum = 0;
	NEED_RUNG(_i);
	start("pacing=0", _i);
	ck_ok(gcuffd_event_handler_set(heap, use_malloc, &sum));
	quit = 0;
	for (int i = 0; i < 2; i++)
		must_ok(pthread_create(&threads[i], NULL, keep_mallocing, NULL));
	for (int i = 0; i < 50; i++)
		ck_ok(gcuffd_collect(heap));
	__atomic_store_n(&quit, 1, __ATOMIC_RELAXED);
	for (int i = 0; i < 2; i++)
		must_ok(pthread_join(threads[i], NULL));
	ck_ok(gcuffd_event_handler_set(heap, NULL, NULL));
	ck_assert_uint_ge(sum, 50 * 9);
	ck_assert_uint_eq(allocated, 0);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

static uint32_t begun; /* atomic */

static void be_slow_to_begin(void *data, const struct gcuffd_event *event)
{
	(void)data;
	if (event->kind != GCUFFD_EVENT_CYCLE_BEGIN)
		return;
	__atomic_store_n(&begun, 1, __ATOMIC_RELEASE);
	usleep(300000);
}

static void *disable(void *unused)
{
	while (!__atomic_load_n(&begun, __ATOMIC_ACQUIRE))
		usleep(1000);
	must_ok(gcuffd_collection_disable(heap));
	return unused;
}

/* Its begin is a part of the cycle: who waits for memory waits on, though collection is disabled meanwhile. */
START_TEST(disabled_while_it_is_told)
{
	pthread_t thread;
	NEED_RUNG(_i);
	start("hard_limit=64M,pacing=0", _i);
	begun = 0;
	ck_ok(gcuffd_event_handler_set(heap, be_slow_to_begin, NULL));
	must_ok(pthread_create(&thread, NULL, disable, NULL));
	while (!__atomic_load_n(&begun, __ATOMIC_ACQUIRE))
		must(gcuffd_alloc_atomic(heap, 10000) != NULL, "errno %d", errno);
	must_ok(pthread_join(thread, NULL));
	ck_assert_uint_eq(stats_of(heap).cycles, 1);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- forks ---- */

/* The child is told of its own, and changes its own. */
START_TEST(forks)
{
	int status;
	NEED_RUNG(_i);
	start("pacing=0", _i);
	ck_ok(gcuffd_collect(heap));
	uint32_t were = count();
	pid_t child = fork();
	if (!child) {
		uint32_t at = were;
		must_ok(gcuffd_collect(heap));
		const struct gcuffd_event *e = next(&at);
		must(e && e->kind == GCUFFD_EVENT_CYCLE_BEGIN && e->cycle == 2, "%u events", count() - were);
		must_ok(gcuffd_event_handler_set(heap, NULL, NULL));
		_exit(0);
	}
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert_int_eq(status, 0);
	ck_ok(gcuffd_collect(heap));
	ck_assert_uint_gt(count(), were);
	ck_ok(gcuffd_heap_destroy(heap));
}
END_TEST

/* ---- errors ---- */

START_TEST(no_memory)
{
	fake_install();
	heap = heap_make("pacing=0");
	fake_fail(FAKE_MMAP, 1, -ENOMEM);
	fake.sticky = true;
	int err = gcuffd_event_handler_set(heap, record, &told);
	fake_clear();
	ck_assert_int_eq(err, -ENOMEM);
	ck_ok(gcuffd_event_handler_set(heap, NULL, NULL));
	ck_ok(gcuffd_event_handler_set(heap, record, &told));
	ck_ok(gcuffd_collect(heap));
	ck_assert_uint_gt(count(), 0);
	ck_ok(gcuffd_heap_destroy(heap));
	fake_remove();
}
END_TEST

static Suite *make_suite(void)
{
	Suite *suite = suite_create("events");
	tcase_add_loop_test(test_case(suite, "cycles"), cycles, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "put_off"), put_off, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_test(test_case(suite, "walks"), walks);
	tcase_add_loop_test(test_case(suite, "stalls"), stalls, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_test(test_case(suite, "more_than_there_is_room_for"), more_than_there_is_room_for);
	tcase_add_loop_test(test_case(suite, "set_against_cycles"), set_against_cycles, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "set_between_cycles"), set_between_cycles, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_test(test_case(suite, "several_setters"), several_setters);
	tcase_add_loop_test(test_case(suite, "set_by_the_handler"), set_by_the_handler, GCUFFD_RUNG_ASYNC, GCUFFD_RUNG_RWP + 1);
	tcase_add_test(test_case(suite, "set_by_another_handler"), set_by_another_handler);
	tcase_add_test(test_case(suite, "slow_handler"), slow_handler);
	tcase_add_loop_test(test_case(suite, "malloc_in_the_handler"), malloc_in_the_handler, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "disabled_while_it_is_told"), disabled_while_it_is_told, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_loop_test(test_case(suite, "forks"), forks, GCUFFD_RUNG_STOP, GCUFFD_RUNG_RWP + 1);
	tcase_add_test(test_case(suite, "no_memory"), no_memory);
	return suite;
}

TEST_MAIN(make_suite)
