/*
 * kjump._core: declarations for all of its files.
 *
 * Decisions are made in Python; this module gets buffers, offsets and counts. Rules: only the calling thread uses
 * Python objects; data for a worker are copied or pinned before it starts; data that threads share are accessed under
 * the crew's lock.
 */
#ifndef KJUMP_CORE_H
#define KJUMP_CORE_H

#include "shared.h"

#include <pthread.h>
#include <zstd.h>

#define MAX_THREADS 256
#define MAX_FRAME_SIZE ((uint64_t)1 << 28)
#define page_down(value) ((value) & ~(PAGE - 1))
#define page_up(value) page_down((value) + PAGE - 1)

/* module.c */

extern PyObject *core_cancelled, *core_damaged;

/* crew.c: threads that work without the interpreter's lock, and the calling thread, which waits for them */

/* The first member of a job, so that a pointer to one is a pointer to the other. */
struct crew {
    pthread_mutex_t lock;
    pthread_cond_t change;   /* of anything a worker may wait for */
    pthread_cond_t finished; /* all workers have ended */
    pthread_t threads[MAX_THREADS + 2];
    int count, running;
    bool stop;   /* workers return as soon as they see it */
    bool failed; /* the first failure: its message is `text`, an OSError with `error`, or a Damaged when that is 0 */
    int error;
    char text[256];
    uint64_t done, total, moved; /* for the progress callback */
};

void crew_init(struct crew *crew);
void crew_destroy(struct crew *crew);
/* Start `n` threads that run(crew) and end with `return crew_leave(crew)`; if one cannot start the crew fails. */
void crew_start(struct crew *crew, uint64_t n, void *(*run)(void *crew));
void *crew_leave(struct crew *crew);
/* Wait for all threads, calling `progress`; 0, or -1 with a Python exception. All threads have ended in both cases. */
int crew_wait(struct crew *crew, PyObject *progress);
/* Record a failure, unless there is one, and stop the crew; returns false. The lock must not be held. */
bool crew_fail(struct crew *crew, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Set the Python exception for the crew's failure; returns -1. */
int crew_raise(const struct crew *crew);

/* spans.c: the places of the stream's bytes in a file or a memory device */

struct span {
    uint64_t stream, offset, length;
};

/* A file of which some spans are wanted. `extents`: what may be mapped, in pages, sorted. */
struct layout {
    int fd;
    uint64_t gap, page; /* `page`: maps begin and end at its multiples */
    bool writable, mappable;
    struct span *spans;
    struct extent {
        uint64_t start, end;
    } *extents;
    size_t count, extent_count;
};

/*
 * Take spans (packed native u64 triples) of a stream, valid from `first` to `end`; 0, or -1 with ValueError.
 * In a writable file no two of them may share a byte. Up to `gap` bytes between two may be mapped with them.
 */
int layout_init(struct layout *layout, int fd, bool writable, uint64_t gap, const Py_buffer *packed, uint64_t first,
                uint64_t end);
void layout_free(struct layout *layout);
/* Return the index of the first span that ends after `stream`. */
size_t layout_find(const struct layout *layout, uint64_t stream);

/*
 * Check the extents of a file that hold an image one after the other (packed native u64 pairs: offset, length); without
 * extents the image is the file's contents. 0, or -1 with ValueError.
 */
int extents_check(const Py_buffer *extents);
/* Return the file offset of byte `at`; `*size` is reduced to what is contiguous from there on, 0 beyond the end. */
uint64_t extents_find(const Py_buffer *extents, uint64_t at, size_t *size);

#define SLICE ((uint64_t)16 << 20)
#define SLICES (sizeof(void *) == 4 ? 16 : 64)

/* One worker's mapped slices of a layout's file; start zeroed but for `layout`. */
struct mapper {
    const struct layout *layout;
    uint64_t clock;
    struct slice {
        uint64_t start, end, used;
        uint8_t *data; /* NULL: cannot be mapped, use pread and pwrite */
    } slices[64];
};

void mapper_free(struct mapper *mapper);
/* Copy `data` to a writable file, or a readable one to `data`; on failure the crew fails, and false. */
bool mapper_copy(struct mapper *mapper, struct crew *crew, uint64_t offset, uint8_t *data, uint64_t length);

/* bytes.c */

/* Return a context that makes frames with content size and checksum, or NULL. */
ZSTD_CCtx *frame_compressor(int level);
/* Return 0, or -1 with ValueError. */
int frame_check_level(int level);
/* Decompress exactly one complete frame with a checksum; returns NULL, or a description of the error. */
const char *frame_open(ZSTD_DCtx *context, const uint8_t *data, size_t size, uint8_t *out, size_t out_size,
                       const uint32_t *checksum);

typedef PyObject *core_function(PyObject *module, PyObject *args, PyObject *kwargs);
core_function core_classify, core_bitmap_runs, core_zero_pages, core_compress, core_restore;
core_function core_compress_bytes, core_decompress_bytes, core_decompress_frame, core_shadow_runs, core_time_stamp;

#endif
