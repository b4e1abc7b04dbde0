/*
 * Decompresses frames to spans of memory.
 *
 * Each worker takes the next frames that spans need, up to a megabyte, reads them in one request, checks and
 * decompresses each, and copies the spans' bytes. No byte of a frame is written before the whole frame has been
 * checked. There are two workers more than `threads`, so that all CPUs are busy while some workers wait for the medium.
 * Memory of a worker: a megabyte (or the largest compressed frame), a frame, a decompressor.
 */
#include "core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define READ_SIZE ((uint64_t)1 << 20)

struct frame {
    uint64_t offset, stream; /* in the file, and in the stream */
    uint32_t size, length;   /* compressed and not */
    uint32_t checksum;
    bool wanted;
};

struct job {
    struct crew crew;
    struct layout destination;
    int image, direct;
    Py_buffer extents; /* of the image */
    struct frame *frames;
    size_t count, next;        /* `next`: the first frame that no worker has taken */
    uint64_t longest, largest; /* of a wanted frame: bytes decompressed, and compressed */
    uint64_t written;
};

/* Take the next contiguous frames that spans need, [*first, *end); false when none is left. */
static bool take(struct job *job, size_t *first, size_t *end)
{
    pthread_mutex_lock(&job->crew.lock);
    size_t i = job->next;
    while (i < job->count && !job->frames[i].wanted)
        i++;
    bool taken = !job->crew.stop && i < job->count;
    uint64_t size = 0;
    for (*first = i; i < job->count && job->frames[i].wanted; i++) {
        if (i > *first && size + job->frames[i].size > READ_SIZE)
            break;
        size += job->frames[i].size;
    }
    *end = job->next = i;
    pthread_mutex_unlock(&job->crew.lock);
    return taken;
}

static bool fail_frame(struct job *job, size_t index, const char *why)
{
    return crew_fail(&job->crew, 0, "frame %zu of the image (bytes from %llu of the stream) is damaged: %s", index,
                     (unsigned long long)job->frames[index].stream, why);
}

/* Read frames into `data`, whose first byte is byte `base` of the file; false when the crew has failed. */
static bool read_frames(struct job *job, size_t first, size_t end, uint8_t *data, uint64_t base)
{
    uint64_t needed = job->frames[end - 1].offset + job->frames[end - 1].size - base, size = page_up(needed), got = 0;
    while (got < needed) {
        size_t part = (size_t)(size - got);
        uint64_t at = extents_find(&job->extents, base + got, &part);
        ssize_t n = pread(job->image, data + got, part, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return crew_fail(&job->crew, errno, "cannot read %llu bytes at offset %llu of the image's file: %s",
                             (unsigned long long)(size - got), (unsigned long long)(base + got), strerror(errno));
        got += (uint64_t)n;
        /* A direct read that ends within a sector has reached the end of the file; the next one would be refused. */
        if (n == 0 || (job->direct && got < needed && got % 512 != 0)) {
            while (job->frames[first].offset + job->frames[first].size <= base + got)
                first++;
            return fail_frame(job, first, "the file ends before it does");
        }
    }
    return true;
}

/* Copy the bytes of a frame that are in spans to their places; false when the crew has failed. */
static bool scatter(struct job *job, struct mapper *mapper, const struct frame *frame, uint8_t *content,
                    uint64_t *written)
{
    const struct layout *to = &job->destination;
    uint64_t end = frame->stream + frame->length;
    for (size_t i = layout_find(to, frame->stream); i < to->count && to->spans[i].stream < end; i++) {
        const struct span *span = &to->spans[i];
        uint64_t from = MAX(span->stream, frame->stream), length = MIN(span->stream + span->length, end) - from;
        if (!mapper_copy(mapper, &job->crew, span->offset + (from - span->stream), content + (from - frame->stream),
                         length))
            return false;
        *written += length;
    }
    return true;
}

static void account(struct job *job, const struct frame *frames, size_t count, uint64_t written)
{
    pthread_mutex_lock(&job->crew.lock);
    for (size_t i = 0; i < count; i++) {
        job->crew.done += frames[i].length;
        job->crew.moved += frames[i].size;
    }
    job->written += written;
    pthread_mutex_unlock(&job->crew.lock);
}

static void *restore_frames(void *argument)
{
    struct job *job = argument;
    struct mapper mapper = {.layout = &job->destination};
    size_t first, end;
    /* Frames need not begin or end on a page. */
    uint8_t *data, *content = malloc(job->longest + 1);
    ZSTD_DCtx *context = ZSTD_createDCtx();
    if (posix_memalign((void **)&data, PAGE, page_up(MAX(READ_SIZE, job->largest)) + 2 * PAGE) != 0)
        data = NULL;
    bool good = (data != NULL && content != NULL && context != NULL) ||
                crew_fail(&job->crew, ENOMEM, "no memory for a decompressor");
    while (good && take(job, &first, &end)) {
        const struct frame *frames = job->frames;
        uint64_t base = page_down(frames[first].offset), written = 0;
        good = read_frames(job, first, end, data, base);
        for (size_t i = first; good && i < end; i++) {
            const char *wrong = frame_open(context, data + (frames[i].offset - base), frames[i].size, content,
                                           frames[i].length, &frames[i].checksum);
            good = wrong == NULL ? scatter(job, &mapper, &frames[i], content, &written) : fail_frame(job, i, wrong);
        }
        if (good)
            account(job, frames + first, end - first, written);
    }
    mapper_free(&mapper);
    ZSTD_freeDCtx(context);
    free(content);
    free(data);
    return crew_leave(&job->crew);
}

/* Take the frames (packed native u32 triples) of an image that begins at `offset`; 0, or -1 with an exception. */
static int take_entries(struct job *job, const Py_buffer *entries, uint64_t offset, uint64_t *stream)
{
    size_t size = (size_t)entries->len;
    job->count = size / 12;
    if (size % 12 != 0 || job->count > SEEKABLE_MOST_FRAMES || offset > INT64_MAX / 2) {
        PyErr_Format(PyExc_ValueError, "%zu bytes at offset %llu: not a list of frames of 12 bytes each", size,
                     (unsigned long long)offset);
        return -1;
    }
    job->frames = calloc(job->count + 1, sizeof *job->frames);
    if (job->frames == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (size_t i = 0; i < job->count; i++) {
        uint32_t entry[3];
        memcpy(entry, (const uint8_t *)entries->buf + i * sizeof entry, sizeof entry);
        job->frames[i] = (struct frame){offset, *stream, entry[0], entry[1], entry[2], false};
        if (entry[1] > MAX_FRAME_SIZE || entry[0] > ZSTD_compressBound(entry[1]) + 64) {
            PyErr_Format(PyExc_ValueError, "frame %zu has impossible sizes: %zu bytes compressed, %zu decompressed", i,
                         (size_t)entry[0], (size_t)entry[1]);
            return -1;
        }
        offset += entry[0];
        *stream += entry[1];
    }
    return 0;
}

/* Mark the frames that hold bytes of a span. */
static void choose_frames(struct job *job)
{
    const struct layout *to = &job->destination;
    for (size_t i = 0; i < job->count; i++) {
        struct frame *frame = &job->frames[i];
        size_t span = layout_find(to, frame->stream);
        if (span == to->count || to->spans[span].stream >= frame->stream + frame->length)
            continue;
        frame->wanted = true;
        job->crew.total += frame->length;
        job->longest = MAX(job->longest, frame->length);
        job->largest = MAX(job->largest, frame->size);
    }
}

PyObject *core_restore(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"image_fd", "image_offset", "entries", "spans",   "dest_fd", "threads",
                            "direct",   "progress",     "map_gap", "extents", NULL};
    struct job *job = calloc(1, sizeof *job);
    PyObject *progress = Py_None, *result = NULL;
    Py_buffer entries, spans;
    int destination, threads;
    uint64_t offset, stream = 0, gap = 0;
    if (job == NULL)
        return PyErr_NoMemory();
    crew_init(&job->crew);
    if (PyArg_ParseTupleAndKeywords(args, kwargs, "iO&y*y*iip|OO&y*:restore", names, &job->image, shared_u64, &offset,
                                    &entries, &spans, &destination, &threads, &job->direct, &progress, shared_u64, &gap,
                                    &job->extents)) {
        if (threads < 1 || threads > MAX_THREADS) {
            PyErr_SetString(PyExc_ValueError, "the number of threads must be 1 to 256");
        } else if (extents_check(&job->extents) == 0 && take_entries(job, &entries, offset, &stream) == 0 &&
                   layout_init(&job->destination, destination, true, gap, &spans, 0, stream) == 0) {
            choose_frames(job);
            crew_start(&job->crew, (uint64_t)threads + 2, restore_frames);
            if (crew_wait(&job->crew, progress) == 0)
                result = PyLong_FromUnsignedLongLong(job->written);
        }
        PyBuffer_Release(&entries);
        PyBuffer_Release(&spans);
        PyBuffer_Release(&job->extents);
    }
    free(job->frames);
    layout_free(&job->destination);
    crew_destroy(&job->crew);
    free(job);
    return result;
}
