/* SPDX-License-Identifier: MIT */
/*
 * main.c - lisp, a Scheme whose whole heap is a garbage-collected one.
 *
 *   lisp [--heap BYTES] [--options TEXT] [--image FILE] [--stats] [-e EXPRESSION]... [FILE [ARGUMENT...]]
 *
 * Without an expression or a file it reads from its input, with a prompt if that is a terminal.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "lisp.h"

#define VM_WORDS ((size_t)64 << 10)
#define C_SLACK ((size_t)64 << 10)
#define C_STACK_LEAST ((size_t)1 << 20)

extern const char prelude[], prelude_end[];
__asm__(".section .rodata\n.globl prelude, prelude_end\nprelude:\n.incbin \"prelude.scm\"\nprelude_end:\n.byte 0\n.previous\n");

static struct vm *volatile main_vm; /* a root, for a collector that does not look into TLS, too */

struct arguments {
	size_t heap;   /* limit of the heap; 0: none */
	size_t limit;  /* of the process, of which the heap has what the rest does not take; for bench/run */
	const char *options, *image;
	bool stats, measure_live;
	int first; /* that is no option */
};

static struct port *output(void) { return (struct port *)world->output; }

static void tell(void)
{
	struct port *p = (struct port *)world->errors;

	port_flush(output());
	port_puts(p, "error: ");
	print_condition(p, current->condition);
	port_puts(p, "\n");
	print_backtrace(p, current);
	port_flush(p);
}

static obj run_form(obj form)
{
	obj closure = compile_toplevel(form);

	mem_finalizers_run();
	current->trace = NIL;
	current->winders = current->handlers = NIL;
	return closure == FAILED ? FAILED : vm_run(current, closure, UNBOUND);
}

int run_port(struct port *port, bool echo)
{
	bool terminal = echo && isatty(port->fd), failed = false;

	for (;;) {
		if (terminal) {
			port_puts(output(), "> ");
			port_flush(output());
		}
		obj form = read_datum(port), value = form;
		if (form == END_OF_FILE)
			break;
		if (form != FAILED)
			value = run_form(form);
		if (value == FAILED) {
			tell();
			failed = true;
			if (!terminal)
				break;
		} else if (echo && value != UNSPECIFIED) {
			print(output(), value, true);
			port_puts(output(), "\n");
		}
	}
	if (terminal)
		port_puts(output(), "\n");
	port_flush(output());
	return failed ? -1 : 0;
}

static int run_text(const char *text) { return run_port(port_of_string(string_from(text)), true); }

static int run_file(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0) {
		fprintf(stderr, "lisp: %s: %s\n", path, strerror(errno));
		return -1;
	}
	int err = run_port(port_open(fd, path, PORT_INPUT), false);
	close(fd);
	return err;
}

static void make_world(void)
{
	world_create();
	world->input = (obj)port_open(0, "input", PORT_INPUT);
	world->output = (obj)port_open(1, "output", PORT_OUTPUT);
	world->errors = (obj)port_open(2, "errors", PORT_OUTPUT);
	primitives_define();
	specials_define();
}

static void make_vm(void)
{
	struct rlimit limit;
	size_t stack = C_STACK_LEAST;

	if (!getrlimit(RLIMIT_STACK, &limit) && limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur > stack)
		stack = limit.rlim_cur;
	current = vm_create(VM_WORDS);
	main_vm = current;
	current->c_limit = fixnum((int64_t)((uintptr_t)__builtin_frame_address(0) - stack + C_SLACK));
	current->input = world->input;
	current->output = world->output;
}

static int begin(const struct arguments *a)
{
	if (a->image) {
		int err = image_load(a->image, a->heap, a->options);

		if (err) {
			fprintf(stderr, "lisp: %s: %s\n", a->image, strerror(-err));
			return -1;
		}
		vm_init();
		make_vm();
		return 0;
	}
	mem_init(a->heap, a->options);
	make_world();
	vm_init();
	make_vm();
	return run_port(port_of_string(make_string(prelude, (size_t)(prelude_end - prelude))), false);
}

/* A number of /proc/self/status: of the process as it is, where getrusage() counts what it was before exec, too. */
static size_t status_kib(const char *key)
{
	char line[128];
	size_t kib = 0;
	FILE *file = fopen("/proc/self/status", "r");

	while (file && fgets(line, sizeof(line), file))
		if (!strncmp(line, key, strlen(key)))
			kib = strtoul(line + strlen(key), NULL, 10);
	if (file)
		fclose(file);
	return kib;
}

static uint64_t live_most; /* atomic */

/* Looks now and then how much lived at the last collection; no thread of the heap's. */
static void *watch_live(void *unused)
{
	for (;;) {
		struct mem_stats s;

		mem_stats(&s);
		if (s.live > __atomic_load_n(&live_most, __ATOMIC_RELAXED))
			__atomic_store_n(&live_most, s.live, __ATOMIC_RELAXED);
		usleep(1000);
	}
	return unused;
}

/* "key: value", as bench/run reads them. */
static void show_stats(const struct timespec *begun)
{
	struct timespec now;
	struct rusage use;
	struct mem_stats s;

	clock_gettime(CLOCK_MONOTONIC, &now);
	getrusage(RUSAGE_SELF, &use);
	mem_stats(&s);
	printf("wall_s: %.6f\n", (double)(now.tv_sec - begun->tv_sec) + (double)(now.tv_nsec - begun->tv_nsec) * 1e-9);
	printf("cpu_s: %.6f\n", (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) + (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1e-6);
	printf("rss_peak_kib: %zu\ncycles: %llu\n", status_kib("VmHWM:"), (unsigned long long)s.cycles);
	printf("live_bytes: %llu\n", (unsigned long long)(live_most ? live_most : s.live));
	printf("gc_cpu_s: %.6f\nstop_max_us: %.1f\n", (double)s.gc_cpu_ns / 1e9, (double)s.stop_max_ns / 1e3);
}

static int usage(void)
{
	fprintf(stderr, "usage: lisp [--heap BYTES] [--options TEXT] [--image FILE] [--stats] [-e EXPRESSION]... [FILE [ARGUMENT...]]\n");
	return 2;
}

static bool parse(struct arguments *a, int argc, char **argv)
{
	int i = 1;

	for (; i < argc && argv[i][0] == '-' && argv[i][1] && strcmp(argv[i], "-e"); i++) {
		bool more = i + 1 < argc;

		if (!strcmp(argv[i], "--stats"))
			a->stats = true;
		else if (!strcmp(argv[i], "--measure-live"))
			a->measure_live = true;
		else if (!strcmp(argv[i], "--heap") && more)
			a->heap = strtoull(argv[++i], NULL, 0);
		else if (!strcmp(argv[i], "--limit") && more)
			a->limit = strtoull(argv[++i], NULL, 0);
		else if (!strcmp(argv[i], "--options") && more)
			a->options = argv[++i];
		else if (!strcmp(argv[i], "--image") && more)
			a->image = argv[++i];
		else
			return false;
	}
	a->first = i;
	return true;
}

static obj argument_list(int argc, char **argv, int from)
{
	obj x = NIL;

	for (int i = argc; i-- > from;)
		x = cons(string_from(argv[i]), x);
	return x;
}

static int run(const struct arguments *a, int argc, char **argv)
{
	int i = a->first, err = 0;

	if (world->start != FALSE)
		err = vm_run(current, world->start, UNBOUND) == FAILED ? (tell(), -1) : 0;
	for (; i + 1 < argc && !strcmp(argv[i], "-e") && !err; i += 2)
		err = run_text(argv[i + 1]);
	symbol_of(symbol("command-line-arguments"))->value = argument_list(argc, argv, i + 1);
	if (i < argc && !err)
		return run_file(argv[i]);
	if (i == 1 || (i == a->first && i >= argc && world->start == FALSE))
		return run_port((struct port *)world->input, true);
	return err;
}

int main(int argc, char **argv)
{
	struct arguments a = {0};
	struct timespec begun;

	clock_gettime(CLOCK_MONOTONIC, &begun);
	if (!parse(&a, argc, argv))
		return usage();
	size_t taken = a.limit && !a.heap ? status_kib("VmRSS:") << 10 : 0;
	if (taken)
		a.heap = a.limit > taken ? a.limit - taken : 1;
	if (begin(&a))
		return 1;
	if (a.stats)
		printf("heap_kib: %zu\n", a.heap >> 10);
	fflush(stdout);
	pthread_t watcher;
	if (a.measure_live && pthread_create(&watcher, NULL, watch_live, NULL))
		return 1;
	int err = run(&a, argc, argv);
	port_flush(output());
	if (a.stats)
		show_stats(&begun);
	return err ? 1 : 0;
}
