/* kjump._dump: declarations for all of its files. Functions take and fill plain buffers, without the interpreter's
 * lock. */
#ifndef KJUMP_DUMP_H
#define KJUMP_DUMP_H

#include "shared.h"

#include <stddef.h>

/* Page descriptor of the kdump-compressed format; `flags` say how the data are compressed. */
struct desc {
    uint64_t offset;
    uint32_t size, flags;
    uint64_t page_flags;
};

_Static_assert(sizeof(struct desc) == KDUMP_DESCRIPTOR_SIZE, "kjump.formats.kdump unpacks descriptors");

/* The flags of a descriptor that name a method; native.h has them. */
#define METHODS (METHOD_ZLIB | METHOD_LZO | METHOD_SNAPPY | METHOD_ZSTD)

/* codecs.c */

/* One thread's state for one method; zeroed before the first use. */
struct codec {
    void *zstd_in, *zstd_out, *work;
};

/* Open the library for `method`; NULL, or what is missing. The caller must hold the interpreter's lock. */
const char *codec_open(uint32_t method);
/* Prepare for compression; false when there is no memory. `level` is that of zlib or zstd. */
bool codec_prepare(struct codec *codec, uint32_t method, int level);
void codec_free(struct codec *codec);
/* Compress a page to `out`, which has `room` bytes; return the size, or 0 when it does not become smaller. */
size_t codec_compress(struct codec *codec, uint32_t method, int level, const uint8_t *page, uint8_t *out, size_t room);
/* Decompress `size` bytes to exactly one page; false when they are damaged. */
bool codec_decompress(struct codec *codec, uint32_t method, const uint8_t *data, size_t size, uint8_t *page);
/* The largest size in bytes of a compressed page, before it is compared with a plain one. */
#define CODEC_ROOM (PAGE + PAGE / 8 + 256)

/* pages.c */

typedef PyObject *dump_function(PyObject *module, PyObject *args, PyObject *kwargs);
dump_function dump_advance, dump_compress_pages, dump_drop, dump_missing, dump_place, dump_read_pages, dump_read_kdump;

extern PyObject *dump_format_error;

#endif
