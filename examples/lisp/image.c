/* SPDX-License-Identifier: MIT */
/*
 * image.c - the whole world to a file, and back. Nothing in it points out of the heap: primitives are numbers, of which the world has the names; what belongs to
 * the process (descriptors, threads' stacks, ephemerons) is in atomic objects or not described, and is made anew.
 */
#include <errno.h>

#include "lisp.h"
#include "ops.h"

#define FN(name) static obj name(struct vm *vm __attribute__((unused)), unsigned n __attribute__((unused)), obj *args __attribute__((unused)))

/* Instructions are numbers in code: an image is for who has the same. */
static obj operations(void)
{
	uint64_t h = 0;

	for (int op = 1; op < OPS; op++)
		h = h * 31 + hash_bytes(op_table[op].name, strlen(op_table[op].name));
	return fixnum((int64_t)(h >> 20));
}

FN(save_image) /* file, what to do first for who loads it */
{
	if (!is_string(args[0]))
		return fail("save-image", "not a string", args[0]);
	port_flush((struct port *)world->output);
	mem_collect(); /* weak tables get rid of what is dead */
	tables_save(true);
	world->start = n > 1 ? args[1] : FALSE;
	world->operations = operations();
	int err = mem_save(string_of(args[0])->at, world);
	tables_save(false);
	world->start = FALSE;
	return err ? fail("save-image", strerror(-err), args[0]) : TRUE;
}

static void reset_port(obj x)
{
	struct port *p = (struct port *)x;

	p->at = p->end = 0;
}

int image_load(const char *path, size_t limit, const char *options)
{
	void *root;
	int err = mem_load(path, limit, options, &root);

	if (err)
		return err;
	world = root;
	if (world->operations != operations())
		return -EINVAL;
	err = primitives_bind();
	world->epoch += 2;
	world->threads = NIL;
	reset_port(world->input);
	reset_port(world->output);
	reset_port(world->errors);
	return err;
}

const struct primitive_entry image_primitives[] = {
	{"save-image", save_image, 1, 2}, {NULL, NULL, 0, 0},
};
