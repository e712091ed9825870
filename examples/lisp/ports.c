/* SPDX-License-Identifier: MIT */
/*
 * ports.c - text in and out of files and strings. Buffers are objects, which read(2) and write(2) are given as they are: a page that the collector tracks is
 * noted by the kernel when the kernel writes to it, too.
 *
 * A port that is dropped without being closed has a finalizer, which does that.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "lisp.h"

#define FN(name) static obj name(struct vm *vm __attribute__((unused)), unsigned n __attribute__((unused)), obj *args __attribute__((unused)))

#define BUFFER 16384

static struct port *make_port(int fd, obj name, unsigned flags, obj buffer)
{
	struct port *p = mem_typed(SHAPE_PORT, sizeof(*p));

	*p = (struct port){.header = HEADER(T_PORT, 0), .buffer = string_of(buffer), .name = name, .fd = fd, .flags = flags | PORT_OPEN, .line = 1};
	return p;
}

static void finalize_port(void *object, void *unused)
{
	struct port *p = object;

	(void)unused;
	if (p->flags & PORT_OUTPUT)
		port_flush(p);
	p->flags &= ~(unsigned)PORT_OPEN;
	close(p->fd);
}

/* One that is open already, such as 0, is nobody's to close. */
struct port *port_open(int fd, const char *name, unsigned flags)
{
	struct port *p = make_port(fd, string_from(name), flags, make_string(NULL, BUFFER));

	if (fd > 2)
		mem_finalizer_set(p, finalize_port, NULL);
	return p;
}

struct port *port_of_string(obj string)
{
	struct port *p = make_port(-1, string_from("string"), PORT_INPUT, string);

	p->end = (uint32_t)length_of(string);
	return p;
}

static bool fill(struct port *p)
{
	ssize_t n;

	if (p->fd < 0)
		return false;
	do
		n = read(p->fd, p->buffer->at, BUFFER);
	while (n < 0 && errno == EINTR);
	p->at = 0;
	p->end = n > 0 ? (uint32_t)n : 0;
	return n > 0;
}

int port_peek(struct port *p) { return p->at < p->end || fill(p) ? (unsigned char)p->buffer->at[p->at] : -1; }

int port_get(struct port *p)
{
	int c = port_peek(p);

	if (c >= 0)
		p->at++;
	p->line += c == '\n';
	return c;
}

int port_flush(struct port *p)
{
	uint32_t done = 0;

	while (p->fd >= 0 && done < p->end) {
		ssize_t n = write(p->fd, p->buffer->at + done, p->end - done);

		if (n < 0 && errno != EINTR) {
			p->end = 0;
			return -errno;
		}
		done += n > 0 ? (uint32_t)n : 0;
	}
	if (p->fd >= 0)
		p->end = 0;
	return 0;
}

static void grow(struct port *p, size_t needed)
{
	size_t room = header_length(p->buffer->header) * 2;

	obj more = make_string(NULL, room > needed ? room : needed);
	memcpy(string_of(more)->at, p->buffer->at, p->end);
	p->buffer = string_of(more);
}

void port_put(struct port *p, const char *text, size_t length)
{
	if (p->fd < 0 && p->end + length > header_length(p->buffer->header))
		grow(p, p->end + length);
	while (length) {
		size_t room = header_length(p->buffer->header) - p->end, part = length < room ? length : room;

		memcpy(p->buffer->at + p->end, text, part);
		p->end += (uint32_t)part;
		text += part;
		length -= part;
		if (length)
			port_flush(p);
	}
}

void port_puts(struct port *p, const char *text) { port_put(p, text, strlen(text)); }

obj port_contents(struct port *p) { return make_string(p->buffer->at, p->end); }

/* ---- primitives ---- */

/* The optional argument, or the current one; NULL: it is no such port, and FAILED is due. */
static struct port *chosen(const char *who, unsigned n, obj *args, unsigned which, unsigned flags)
{
	obj x = n > which ? args[which] : flags == PORT_INPUT ? current->input : current->output;

	if (!is_type(x, T_PORT) || !(((struct port *)x)->flags & flags)) {
		fail(who, flags == PORT_INPUT ? "not an input port" : "not an output port", x);
		return NULL;
	}
	if (!(((struct port *)x)->flags & PORT_OPEN)) {
		fail(who, "the port is closed", x);
		return NULL;
	}
	return (struct port *)x;
}

static obj open_file(const char *who, obj name, int flags, unsigned port_flags)
{
	if (!is_string(name))
		return fail(who, "not a string", name);
	mem_finalizers_run(); /* of ports that were dropped */
	int fd = open(string_of(name)->at, flags | O_CLOEXEC, 0666);
	if (fd < 0)
		return fail(who, strerror(errno), name);
	return (obj)port_open(fd, string_of(name)->at, port_flags);
}
FN(open_input_file) { return open_file("open-input-file", args[0], O_RDONLY, PORT_INPUT); }
FN(open_output_file) { return open_file("open-output-file", args[0], O_WRONLY | O_CREAT | O_TRUNC, PORT_OUTPUT); }

FN(open_input_string) { return is_string(args[0]) ? (obj)port_of_string(args[0]) : fail("open-input-string", "not a string", args[0]); }
FN(open_output_string) { return (obj)make_port(-1, string_from("string"), PORT_OUTPUT, make_string(NULL, 48)); }

FN(get_output_string)
{
	struct port *p = chosen("get-output-string", n, args, 0, PORT_OUTPUT);

	if (!p)
		return FAILED;
	return p->fd < 0 ? port_contents(p) : fail("get-output-string", "not a string port", args[0]);
}

FN(close_port)
{
	if (!is_type(args[0], T_PORT))
		return fail("close-port", "not a port", args[0]);
	struct port *p = (struct port *)args[0];
	if (!(p->flags & PORT_OPEN))
		return UNSPECIFIED;
	int err = p->flags & PORT_OUTPUT ? port_flush(p) : 0;
	p->flags &= ~(unsigned)PORT_OPEN;
	if (p->fd > 2) {
		mem_finalizer_clear(p);
		close(p->fd);
	}
	return err ? fail("close-port", strerror(-err), args[0]) : UNSPECIFIED;
}

FN(flush)
{
	struct port *p = chosen("flush-output-port", n, args, 0, PORT_OUTPUT);
	int err = p ? port_flush(p) : 0;

	return !p ? FAILED : err ? fail("flush-output-port", strerror(-err), (obj)p) : UNSPECIFIED;
}

FN(read_char)
{
	struct port *p = chosen("read-char", n, args, 0, PORT_INPUT);
	int c = p ? port_get(p) : 0;

	return !p ? FAILED : c < 0 ? END_OF_FILE : character((uint32_t)c);
}

FN(peek_char)
{
	struct port *p = chosen("peek-char", n, args, 0, PORT_INPUT);
	int c = p ? port_peek(p) : 0;

	return !p ? FAILED : c < 0 ? END_OF_FILE : character((uint32_t)c);
}

FN(read_line)
{
	struct port *p = chosen("read-line", n, args, 0, PORT_INPUT);
	obj whole = FALSE;

	if (!p || port_peek(p) < 0)
		return p ? END_OF_FILE : FAILED;
	for (;;) { /* what the buffer has of it, and again where it goes on behind that */
		const char *from = p->buffer->at + p->at, *end = memchr(from, '\n', p->end - p->at);
		size_t length = end ? (size_t)(end - from) : p->end - p->at;
		obj part = make_string(NULL, (whole == FALSE ? 0 : length_of(whole)) + length);

		if (whole != FALSE)
			memcpy(string_of(part)->at, string_of(whole)->at, length_of(whole));
		memcpy(string_of(part)->at + length_of(part) - length, from, length);
		whole = part;
		p->at += (uint32_t)length + (end != NULL);
		if (end || port_peek(p) < 0)
			break;
	}
	p->line++;
	return whole;
}

/* All that is left. */
FN(read_string)
{
	struct port *p = chosen("read-all", n, args, 0, PORT_INPUT);

	if (!p)
		return FAILED;
	struct port *all = (struct port *)open_output_string(vm, 0, NULL);
	while (port_peek(p) >= 0) {
		port_put(all, p->buffer->at + p->at, p->end - p->at);
		p->at = p->end;
	}
	return port_contents(all);
}

FN(read_)
{
	struct port *p = chosen("read", n, args, 0, PORT_INPUT);

	return p ? read_datum(p) : FAILED;
}

static obj put(const char *who, unsigned n, obj *args, bool write)
{
	struct port *p = chosen(who, n, args, 1, PORT_OUTPUT);

	if (!p)
		return FAILED;
	print(p, args[0], write);
	return UNSPECIFIED;
}
FN(display) { return put("display", n, args, false); }
FN(write_) { return put("write", n, args, true); }

FN(write_char)
{
	return is_char(args[0]) ? put("write-char", n, args, false) : fail("write-char", "not a character", args[0]);
}

FN(write_string)
{
	return is_string(args[0]) ? put("write-string", n, args, false) : fail("write-string", "not a string", args[0]);
}

FN(newline)
{
	struct port *p = chosen("newline", n, args, 0, PORT_OUTPUT);

	if (!p)
		return FAILED;
	port_puts(p, "\n");
	return UNSPECIFIED;
}

FN(print_condition_)
{
	struct port *p = chosen("%print-condition", n, args, 1, PORT_OUTPUT);

	if (p)
		print_condition(p, args[0]);
	return p ? UNSPECIFIED : FAILED;
}

FN(current_output) { return vm->output; }
FN(current_input) { return vm->input; }
FN(current_error) { return world->errors; }
FN(set_output)
{
	vm->output = args[0];
	return UNSPECIFIED;
}
FN(set_input)
{
	vm->input = args[0];
	return UNSPECIFIED;
}
FN(port_p) { return boolean(is_type(args[0], T_PORT)); }
FN(end_of_file) { return END_OF_FILE; }

FN(file_exists) { return is_string(args[0]) ? boolean(!access(string_of(args[0])->at, F_OK)) : fail("file-exists?", "not a string", args[0]); }
FN(delete_file)
{
	if (!is_string(args[0]))
		return fail("delete-file", "not a string", args[0]);
	return unlink(string_of(args[0])->at) ? fail("delete-file", strerror(errno), args[0]) : UNSPECIFIED;
}

const struct primitive_entry port_primitives[] = {
	{"open-input-file", open_input_file, 1, 1}, {"open-output-file", open_output_file, 1, 1}, {"open-input-string", open_input_string, 1, 1},
	{"open-output-string", open_output_string, 0, 0}, {"get-output-string", get_output_string, 1, 1}, {"close-port", close_port, 1, 1},
	{"flush-output-port", flush, 0, 1}, {"read-char", read_char, 0, 1}, {"peek-char", peek_char, 0, 1}, {"read-line", read_line, 0, 1},
	{"read-all", read_string, 0, 1}, {"read", read_, 0, 1}, {"display", display, 1, 2}, {"write", write_, 1, 2}, {"write-char", write_char, 1, 2},
	{"write-string", write_string, 1, 2}, {"newline", newline, 0, 1}, {"%print-condition", print_condition_, 1, 2},
	{"current-output-port", current_output, 0, 0}, {"current-input-port", current_input, 0, 0}, {"current-error-port", current_error, 0, 0},
	{"%set-output!", set_output, 1, 1}, {"%set-input!", set_input, 1, 1}, {"port?", port_p, 1, 1}, {"eof-object", end_of_file, 0, 0},
	{"file-exists?", file_exists, 1, 1}, {"delete-file", delete_file, 1, 1}, {NULL, NULL, 0, 0},
};
