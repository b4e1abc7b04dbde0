/*
 * Compresses spans of memory to zstd frames.
 *
 * Workers take frames in order, gather them from the source and compress each into a slot of a ring; one
 * writer takes the slots in order and appends them to the output. Frame i uses slot i % slots, so a
 * worker waits when it is a whole ring ahead of the writer. Memory: 2 * threads + 2 slots of the largest compressed
 * size of a frame, one frame and one compressor for each worker, four megabytes for the writer.
 */
#include "core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WRITE_SIZE ((size_t)4 << 20)

struct slot {
    uint8_t *data;
    size_t size; /* 0: empty */
};

struct job {
    struct crew crew;
    struct layout source;
    const uint8_t *head;
    uint64_t head_length, stream_length, frame_size, frames;
    int level;
    size_t slot_count, slot_size;
    struct slot *slots;
    uint64_t next, written; /* the frame to be taken next, and to be written next */
    uint32_t *entries;

    /* The output. All writes are of whole buffers, page-aligned in memory, but for the last. */
    int fd;
    Py_buffer extents; /* of the output */
    int direct;        /* O_DIRECT: offsets and sizes must be aligned too */
    bool seekable;
    uint64_t offset;        /* where the buffer will go */
    uint64_t length, limit; /* bytes appended, and how many may be */
    uint8_t *buffer;
    size_t fill;
};

static uint64_t frame_length(const struct job *job, uint64_t frame)
{
    return MIN(job->frame_size, job->stream_length - frame * job->frame_size);
}

/* Write the first `size` bytes of the buffer; false when the crew has failed. */
static bool flush(struct job *job, size_t size)
{
    for (size_t done = 0; done < size;) {
        size_t part = size - done;
        uint64_t written = 0, at = extents_find(&job->extents, job->offset, &part);
        /* The output has no space beyond its last extent. */
        int error = part == 0 ? EIO : shared_write(job->fd, job->seekable, at, job->buffer + done, part, &written);
        done += written;
        job->offset += written;
        if (error != 0)
            return crew_fail(&job->crew, error, "cannot write %zu bytes at offset %llu of the output: %s", size - done,
                             (unsigned long long)job->offset, strerror(error));
    }
    job->fill = 0;
    return true;
}

static bool append(struct job *job, const uint8_t *data, size_t size)
{
    if (size > job->limit - job->length)
        return crew_fail(&job->crew, ENOSPC, "the output is too small: %llu bytes are needed so far, %llu are there",
                         (unsigned long long)(job->length + size), (unsigned long long)job->limit);
    job->length += size;
    while (size > 0) {
        size_t part = MIN(size, WRITE_SIZE - job->fill);
        memcpy(job->buffer + job->fill, data, part);
        job->fill += part;
        data += part;
        size -= part;
        if (job->fill == WRITE_SIZE && !flush(job, WRITE_SIZE))
            return false;
    }
    return true;
}

/* Append the trailer and write what is left, padded to a page with zeros when direct. */
static bool finish(struct job *job, const uint8_t *trailer, size_t size)
{
    if (!append(job, trailer, size))
        return false;
    size_t rest = job->direct ? (size_t)page_up(job->fill) : job->fill;
    memset(job->buffer + job->fill, 0, rest - job->fill);
    return flush(job, rest);
}

/* Fill `buffer` with a frame's part of the stream: head, spans, and zeros between; false when the crew has failed. */
static bool gather(struct job *job, struct mapper *mapper, uint64_t frame, uint8_t *buffer)
{
    const struct layout *source = &job->source;
    uint64_t start = frame * job->frame_size, at = start, end = start + frame_length(job, frame);
    if (at < job->head_length) {
        at = MIN(end, job->head_length);
        memcpy(buffer, job->head + start, at - start);
    }
    for (size_t i = layout_find(source, at); i < source->count && source->spans[i].stream < end; i++) {
        const struct span *span = &source->spans[i];
        uint64_t from = MAX(span->stream, at), to = MIN(end, span->stream + span->length);
        memset(buffer + (at - start), 0, from - at);
        if (!mapper_copy(mapper, &job->crew, span->offset + (from - span->stream), buffer + (from - start), to - from))
            return false;
        at = to;
    }
    memset(buffer + (at - start), 0, end - at);
    return true;
}

/* Take the next frame once its slot is free; false when there is none left, or the crew stops. */
static bool take(struct job *job, uint64_t *frame)
{
    pthread_mutex_lock(&job->crew.lock);
    while (!job->crew.stop && job->next < job->frames && job->next >= job->written + job->slot_count)
        pthread_cond_wait(&job->crew.change, &job->crew.lock);
    bool taken = !job->crew.stop && job->next < job->frames;
    if (taken)
        *frame = job->next++;
    pthread_mutex_unlock(&job->crew.lock);
    return taken;
}

static void *compress_frames(void *argument)
{
    struct job *job = argument;
    struct mapper mapper = {.layout = &job->source};
    uint64_t frame;
    uint8_t *buffer = malloc(job->frame_size);
    ZSTD_CCtx *context = frame_compressor(job->level);
    if (buffer == NULL || context == NULL)
        crew_fail(&job->crew, ENOMEM, "no memory for a compressor");
    while (take(job, &frame) && gather(job, &mapper, frame, buffer)) {
        struct slot *slot = &job->slots[frame % job->slot_count];
        size_t size = ZSTD_compress2(context, slot->data, job->slot_size, buffer, frame_length(job, frame));
        if (ZSTD_isError(size)) {
            crew_fail(&job->crew, ENOMEM, "zstd cannot compress: %s", ZSTD_getErrorName(size));
            break;
        }
        pthread_mutex_lock(&job->crew.lock);
        slot->size = size;
        pthread_cond_broadcast(&job->crew.change);
        pthread_mutex_unlock(&job->crew.lock);
    }
    mapper_free(&mapper);
    ZSTD_freeCCtx(context);
    free(buffer);
    return crew_leave(&job->crew);
}

static void *write_frames(void *argument)
{
    struct job *job = argument;
    for (uint64_t frame = 0; frame < job->frames; frame++) {
        struct slot *slot = &job->slots[frame % job->slot_count];
        pthread_mutex_lock(&job->crew.lock);
        while (!job->crew.stop && slot->size == 0)
            pthread_cond_wait(&job->crew.change, &job->crew.lock);
        bool stopped = job->crew.stop;
        pthread_mutex_unlock(&job->crew.lock);
        if (stopped || !append(job, slot->data, slot->size))
            break;
        uint32_t *entry = &job->entries[frame * 3];
        entry[0] = (uint32_t)slot->size;
        entry[1] = (uint32_t)frame_length(job, frame);
        /* A frame ends with the low half of its content's XXH64, which is the seek table's checksum too. */
        memcpy(&entry[2], slot->data + slot->size - 4, 4);
        pthread_mutex_lock(&job->crew.lock);
        slot->size = 0;
        job->written++;
        job->crew.done += entry[1];
        job->crew.moved = job->length;
        pthread_cond_broadcast(&job->crew.change);
        pthread_mutex_unlock(&job->crew.lock);
    }
    return crew_leave(&job->crew);
}

static int check_arguments(const struct job *job, int threads)
{
    const char *wrong = NULL;
    if (threads < 1 || threads > MAX_THREADS)
        wrong = "the number of threads must be 1 to 256";
    else if (job->frame_size == 0 || job->frame_size > MAX_FRAME_SIZE)
        wrong = "the frame size must be 1 to 268435456 bytes";
    else if (job->stream_length / job->frame_size >= SEEKABLE_MOST_FRAMES)
        wrong = "the stream has too many frames: choose a larger frame size";
    else if (job->head_length > job->stream_length)
        wrong = "the head is longer than the stream";
    else if (job->offset > INT64_MAX || job->limit > INT64_MAX - job->offset)
        wrong = "the output ends at an impossible offset";
    else if (job->direct && job->offset % PAGE != 0)
        wrong = "direct output must begin at a multiple of 4096";
    if (wrong != NULL)
        PyErr_SetString(PyExc_ValueError, wrong);
    return wrong != NULL ? -1 : frame_check_level(job->level);
}

static int allocate(struct job *job, int threads)
{
    job->frames = job->stream_length / job->frame_size + (job->stream_length % job->frame_size != 0);
    job->slot_count = (size_t)MIN((uint64_t)threads * 2 + 2, MAX(job->frames, 1));
    job->slot_size = ZSTD_compressBound(job->frame_size);
    job->slots = calloc(job->slot_count, sizeof *job->slots);
    job->entries = malloc(job->frames * 12 + 1);
    bool good =
        job->slots != NULL && job->entries != NULL && posix_memalign((void **)&job->buffer, PAGE, WRITE_SIZE) == 0;
    for (size_t i = 0; good && i < job->slot_count; i++)
        good = (job->slots[i].data = malloc(job->slot_size)) != NULL;
    if (!good)
        PyErr_NoMemory();
    return good ? 0 : -1;
}

static void release(struct job *job)
{
    for (size_t i = 0; job->slots != NULL && i < job->slot_count; i++)
        free(job->slots[i].data);
    free(job->slots);
    free(job->entries);
    free(job->buffer);
    layout_free(&job->source);
    crew_destroy(&job->crew);
    free(job);
}

/* Call the Python function for the trailer, write it, and make the result. */
static PyObject *conclude(struct job *job, PyObject *trailer)
{
    PyObject *entries = PyBytes_FromStringAndSize((const char *)job->entries, (Py_ssize_t)(job->frames * 12));
    PyObject *answer = entries == NULL ? NULL : PyObject_CallFunctionObjArgs(trailer, entries, NULL);
    PyObject *result = NULL;
    Py_ssize_t size;
    char *bytes;
    if (answer != NULL && PyBytes_AsStringAndSize(answer, &bytes, &size) == 0) {
        bool good;
        Py_BEGIN_ALLOW_THREADS;
        good = finish(job, (const uint8_t *)bytes, (size_t)size);
        Py_END_ALLOW_THREADS;
        if (good)
            result = Py_BuildValue("(KO)", (unsigned long long)job->length, entries);
        else
            crew_raise(&job->crew);
    }
    Py_XDECREF(answer);
    Py_XDECREF(entries);
    return result;
}

PyObject *core_compress(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"source_fd", "spans",      "head",   "stream_length", "frame_size", "level",    "threads",
                            "out_fd",    "out_offset", "direct", "limit",         "trailer",    "progress", "map_gap",
                            "extents",   NULL};
    struct job *job = calloc(1, sizeof *job);
    PyObject *trailer, *progress = Py_None, *result = NULL;
    Py_buffer spans = {0}, head = {0};
    int source, threads;
    uint64_t gap = 0;
    if (job == NULL)
        return PyErr_NoMemory();
    crew_init(&job->crew);
    if (PyArg_ParseTupleAndKeywords(args, kwargs, "iy*y*O&O&iiiO&pO&O|OO&y*:compress", names, &source, &spans, &head,
                                    shared_u64, &job->stream_length, shared_u64, &job->frame_size, &job->level,
                                    &threads, &job->fd, shared_u64, &job->offset, &job->direct, shared_u64, &job->limit,
                                    &trailer, &progress, shared_u64, &gap, &job->extents)) {
        job->head = head.buf;
        job->head_length = (uint64_t)head.len;
        job->crew.total = job->stream_length;
        job->seekable = lseek(job->fd, 0, SEEK_CUR) >= 0 || errno != ESPIPE;
        if (job->direct)
            job->limit = page_down(job->limit);
        if (check_arguments(job, threads) == 0 && extents_check(&job->extents) == 0 &&
            layout_init(&job->source, source, false, gap, &spans, job->head_length, job->stream_length) == 0 &&
            allocate(job, threads) == 0) {
            crew_start(&job->crew, 1, write_frames);
            crew_start(&job->crew, MIN((uint64_t)threads, job->frames), compress_frames);
            if (crew_wait(&job->crew, progress) == 0)
                result = conclude(job, trailer);
        }
        PyBuffer_Release(&spans);
        PyBuffer_Release(&head);
        PyBuffer_Release(&job->extents);
    }
    release(job);
    return result;
}
