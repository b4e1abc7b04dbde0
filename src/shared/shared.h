/* What kjump._core and kjump._dump have in common: complete reads and writes, bitmaps, pages of zeros. */
#ifndef KJUMP_SHARED_H
#define KJUMP_SHARED_H

#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030b0000
#endif
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

#include "native.h"

#define PAGE ((uint64_t)PAGE_SIZE)
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* An entry for a function in a module's method table. */
#define FUNCTION(prefix, name, doc)                                                                                    \
    {#name, (PyCFunction)(void (*)(void))prefix##_##name, METH_VARARGS | METH_KEYWORDS, doc}

/* An "O&" converter: an unsigned integer, else TypeError or ValueError. */
int shared_u64(PyObject *object, void *u64);

/* Read all of `length` bytes; 0, ENODATA when the file ends before, or another errno. */
int shared_read(int fd, uint64_t offset, uint8_t *data, uint64_t length);
/* Write all of `length` bytes (a pipe has no offset: in order); 0 or an errno. `*written` counts the bytes. */
int shared_write(int fd, bool seekable, uint64_t offset, const uint8_t *data, uint64_t length, uint64_t *written);

/* Bitmaps have one bit a page frame, lowest bit of the lowest byte first (little endian hosts). */

static inline bool shared_bit(const uint8_t *bits, uint64_t at)
{
    return bits[at / 8] >> (at % 8) & 1;
}

/* Return the first bit in [at, end) that is `value`, or `end`. */
uint64_t shared_next_bit(const uint8_t *bits, uint64_t at, uint64_t end, bool value);
/* Return the number of the bits [at, end) that are set. */
uint64_t shared_count_bits(const uint8_t *bits, uint64_t at, uint64_t end);
/* Clear the bits [start, end); return the number that were set. */
uint64_t shared_clear_bits(uint8_t *bits, uint64_t start, uint64_t end);

bool shared_is_zero_page(const uint8_t *page);

#endif
