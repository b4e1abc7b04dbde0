/*
 * Spans: the places of the stream's bytes in a file or a memory device, and the access to them.
 *
 * Memory devices are mapped in slices. A slice is a 16 MiB aligned part of the file, cut to an extent: the pages of
 * spans, joined across gaps no larger than the caller allows. Nothing outside extents is mapped, because /dev/mem
 * refuses a map that contains a page to which it gives no access. Pages that are scattered in the stream but close in
 * the file share a slice. Files that cannot be mapped are read and written by pread and pwrite. Maps of a file of huge
 * pages begin and end at the borders of huge pages.
 */
#include "core.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#define HUGETLBFS 0x958458f6 /* statfs(2) */

/* Return a description of what is wrong with a span of a stream valid from `first` to `end`, or NULL. */
static const char *check_span(const struct span *span, uint64_t first, uint64_t end, uint64_t file_size)
{
    if (span->length == 0)
        return "is empty";
    if (span->stream > end || span->length > end - span->stream)
        return "ends beyond the stream";
    if (span->stream < first)
        return "begins before the end of what precedes it in the stream";
    if (span->offset > file_size || span->length > file_size - span->offset)
        return "ends beyond the file";
    return NULL;
}

static int by_start(const void *a, const void *b)
{
    const struct extent *x = a, *y = b;
    return (x->start > y->start) - (x->start < y->start);
}

/* Fill in the extents: first exact and sorted, to find overlaps, then widened to pages and joined. */
static int find_extents(struct layout *layout)
{
    struct extent *extents = layout->extents;
    for (size_t i = 0; i < layout->count; i++)
        extents[i] = (struct extent){layout->spans[i].offset, layout->spans[i].offset + layout->spans[i].length};
    qsort(extents, layout->count, sizeof *extents, by_start);
    for (size_t i = 1; layout->writable && i < layout->count; i++) {
        if (extents[i].start < extents[i - 1].end) {
            PyErr_Format(PyExc_ValueError, "two spans share the bytes at offset %llu of the destination",
                         (unsigned long long)extents[i].start);
            return -1;
        }
    }
    size_t kept = 0;
    for (size_t i = 0; i < layout->count; i++) {
        struct extent wide = {extents[i].start & ~(layout->page - 1),
                              (extents[i].end + layout->page - 1) & ~(layout->page - 1)};
        if (kept > 0 && wide.start - MIN(layout->gap, wide.start) <= extents[kept - 1].end)
            extents[kept - 1].end = MAX(extents[kept - 1].end, wide.end);
        else
            extents[kept++] = wide;
    }
    layout->extent_count = kept;
    return 0;
}

int layout_init(struct layout *layout, int fd, bool writable, uint64_t gap, const Py_buffer *packed, uint64_t first,
                uint64_t end)
{
    size_t size = (size_t)packed->len;
    *layout = (struct layout){.fd = fd, .gap = gap, .writable = writable, .mappable = true, .page = PAGE};
    layout->count = size / sizeof(struct span);
    if (size % sizeof(struct span) != 0) {
        PyErr_Format(PyExc_ValueError, "spans are %zu bytes, not a multiple of %zu", size, sizeof(struct span));
        return -1;
    }
    struct stat status;
    if (fstat(fd, &status) != 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    struct statfs file_system;
    if (fstatfs(fd, &file_system) == 0 && (uint32_t)file_system.f_type == HUGETLBFS)
        layout->page = MIN((uint64_t)file_system.f_bsize, SLICE);
    /* Access to a map beyond the end of the file raises SIGBUS. Some files in /proc have contents but no size. */
    uint64_t file_size = INT64_MAX - PAGE;
    if (S_ISREG(status.st_mode) && status.st_size > 0)
        file_size = (uint64_t)status.st_size;
    else if (S_ISREG(status.st_mode))
        layout->mappable = false;
    layout->spans = malloc(size + 1);
    layout->extents = malloc(layout->count * sizeof(struct extent) + 1);
    if (layout->spans == NULL || layout->extents == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(layout->spans, packed->buf, size);
    for (size_t i = 0; i < layout->count; i++) {
        const struct span *span = &layout->spans[i];
        const char *wrong = check_span(span, first, end, file_size);
        if (wrong != NULL) {
            PyErr_Format(PyExc_ValueError, "span %zu (stream %llu, offset %llu, length %llu) %s", i,
                         (unsigned long long)span->stream, (unsigned long long)span->offset,
                         (unsigned long long)span->length, wrong);
            return -1;
        }
        first = span->stream + span->length;
    }
    return find_extents(layout);
}

void layout_free(struct layout *layout)
{
    free(layout->spans);
    free(layout->extents);
}

size_t layout_find(const struct layout *layout, uint64_t stream)
{
    size_t low = 0, high = layout->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (layout->spans[middle].stream + layout->spans[middle].length <= stream)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Return the extent that a span's byte at `offset` lies in. */
static const struct extent *find_extent(const struct layout *layout, uint64_t offset)
{
    size_t low = 0, high = layout->extent_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (layout->extents[middle].end <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return &layout->extents[low];
}

void mapper_free(struct mapper *mapper)
{
    for (size_t i = 0; i < SLICES; i++)
        if (mapper->slices[i].data != NULL)
            munmap(mapper->slices[i].data, mapper->slices[i].end - mapper->slices[i].start);
}

/* Return the slice that holds `offset`: an existing one, or a new one in place of the least recently used. */
static const struct slice *find_slice(struct mapper *mapper, uint64_t offset)
{
    const struct layout *layout = mapper->layout;
    struct slice *oldest = &mapper->slices[0];
    mapper->clock++;
    for (size_t i = 0; i < SLICES; i++) {
        struct slice *slice = &mapper->slices[i];
        if (slice->start <= offset && offset < slice->end) {
            slice->used = mapper->clock;
            return slice;
        }
        if (slice->used < oldest->used)
            oldest = slice;
    }
    const struct extent *extent = find_extent(layout, offset);
    uint64_t aligned = offset & ~(SLICE - 1);
    if (oldest->data != NULL)
        munmap(oldest->data, oldest->end - oldest->start);
    *oldest = (struct slice){MAX(aligned, extent->start), MIN(aligned + SLICE, extent->end), mapper->clock, NULL};
    if (layout->mappable) {
        void *data = mmap(NULL, oldest->end - oldest->start, layout->writable ? PROT_READ | PROT_WRITE : PROT_READ,
                          MAP_SHARED, layout->fd, (off_t)oldest->start);
        oldest->data = data == MAP_FAILED ? NULL : data;
    }
    return oldest;
}

bool mapper_copy(struct mapper *mapper, struct crew *crew, uint64_t offset, uint8_t *data, uint64_t length)
{
    bool writable = mapper->layout->writable;
    while (length > 0) {
        const struct slice *slice = find_slice(mapper, offset);
        uint64_t size = MIN(length, slice->end - offset);
        uint8_t *there = slice->data + (offset - slice->start);
        uint64_t done;
        int error = slice->data != NULL ? 0
                    : writable          ? shared_write(mapper->layout->fd, true, offset, data, size, &done)
                                        : shared_read(mapper->layout->fd, offset, data, size);
        if (error != 0)
            return crew_fail(crew, error, "cannot %s %llu bytes at offset %llu: %s",
                             writable ? "write to the destination" : "read from the source", (unsigned long long)size,
                             (unsigned long long)offset, strerror(error));
        if (slice->data != NULL)
            memcpy(writable ? there : data, writable ? data : there, size);
        offset += size;
        data += size;
        length -= size;
    }
    return true;
}

int extents_check(const Py_buffer *extents)
{
    uint64_t pair[2], left = INT64_MAX;
    bool good = extents->len % (Py_ssize_t)sizeof pair == 0;
    for (Py_ssize_t i = 0; good && i < extents->len; i += sizeof pair) {
        memcpy(pair, (const uint8_t *)extents->buf + i, sizeof pair);
        good = pair[1] <= left && pair[0] <= INT64_MAX - pair[1];
        left -= pair[1];
    }
    if (!good)
        PyErr_SetString(PyExc_ValueError, "these are not extents of a file");
    return good ? 0 : -1;
}

uint64_t extents_find(const Py_buffer *extents, uint64_t at, size_t *size)
{
    uint64_t pair[2];
    if (extents->len == 0)
        return at;
    for (Py_ssize_t i = 0; i < extents->len; i += sizeof pair, at -= pair[1]) {
        memcpy(pair, (const uint8_t *)extents->buf + i, sizeof pair);
        if (at < pair[1]) {
            *size = (size_t)MIN(*size, pair[1] - at);
            return pair[0] + at;
        }
    }
    *size = 0;
    return 0;
}
