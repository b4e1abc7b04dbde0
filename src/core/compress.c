/*
 * Spans of memory to frames.
 *
 * Workers take frames in order, gather them from the source and compress each into a slot of a ring; one
 * writer takes the slots in order and appends them to the output. Frame i uses slot i % slots, so a
 * worker waits when it is a whole ring ahead of the writer. Memory: 2 * threads + 2 slots of the size zstd may
 * need for a frame at worst, one frame and one compressor a worker, one buffer of the writer.
 */
#include "core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WRITE_SIZE ((size_t)1 << 20)

/* Appends to the output in large writes; O_DIRECT ones are whole pages at page-aligned offsets. */
struct writer {
    int fd;
    bool direct, seekable;
    uint64_t offset;         /* where in the output the buffer will go */
    uint64_t length, limit;  /* bytes appended, and how many may be */
    uint8_t *buffer;
    size_t fill;
};

struct slot {
    uint8_t *data;
    size_t size;
    bool ready;
};

struct job {
    struct crew crew;
    struct layout source;
    const uint8_t *head;
    uint64_t head_length, stream_length, frame_size, frames;
    int level;
    struct writer out;
    uint32_t *entries;

    size_t slot_count, slot_size;
    struct slot *slots;
    uint64_t next, written; /* the frame to be taken next, and to be written next */
};

static uint64_t frame_length(const struct job *job, uint64_t frame)
{
    return MIN(job->frame_size, job->stream_length - frame * job->frame_size);
}

/* Write the first `size` bytes of the buffer; false when the crew has failed. */
static bool flush(struct job *job, size_t size)
{
    struct writer *out = &job->out;
    size_t done = 0;
    while (done < size) {
        ssize_t n = out->seekable ? pwrite(out->fd, out->buffer + done, size - done, (off_t)out->offset)
                                  : write(out->fd, out->buffer + done, size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            int error = n < 0 ? errno : EIO;
            crew_fail(&job->crew, error, "cannot write %zu bytes at offset %llu of the output: %s", size - done,
                      (unsigned long long)out->offset, strerror(error));
            return false;
        }
        done += (size_t)n;
        out->offset += (uint64_t)n;
    }
    out->fill = 0;
    return true;
}

static bool append(struct job *job, const uint8_t *data, size_t size)
{
    struct writer *out = &job->out;
    if (size > out->limit - out->length) {
        crew_fail(&job->crew, ENOSPC, "the output is too small: %llu bytes are needed so far, %llu are there",
                  (unsigned long long)(out->length + size), (unsigned long long)out->limit);
        return false;
    }
    out->length += size;
    while (size > 0) {
        size_t part = MIN(size, WRITE_SIZE - out->fill);
        memcpy(out->buffer + out->fill, data, part);
        out->fill += part;
        data += part;
        size -= part;
        if (out->fill == WRITE_SIZE && !flush(job, WRITE_SIZE))
            return false;
    }
    return true;
}

/* Append the trailer and write what is left, padded to a page with zeros when direct. */
static bool finish(struct job *job, const uint8_t *trailer, size_t size)
{
    struct writer *out = &job->out;
    if (!append(job, trailer, size))
        return false;
    size_t rest = out->direct ? (size_t)page_up(out->fill) : out->fill;
    memset(out->buffer + out->fill, 0, rest - out->fill);
    return flush(job, rest);
}

/* Fill `buffer` with `length` bytes of the stream from `start`: head, spans, and zeros between; 0 or an errno. */
static int gather(const struct job *job, struct mapper *mapper, uint64_t start, uint64_t length, uint8_t *buffer,
                  uint64_t *failed_at)
{
    uint64_t at = start, end = start + length;
    if (at < job->head_length) {
        at = MIN(end, job->head_length);
        memcpy(buffer, job->head + start, at - start);
    }
    for (size_t i = layout_find(&job->source, at); at < end; i++) {
        const struct span *span = i < job->source.count ? &job->source.spans[i] : NULL;
        uint64_t from = span != NULL && span->stream < end ? MAX(span->stream, at) : end;
        memset(buffer + (at - start), 0, from - at);
        at = from;
        if (at == end)
            break;
        uint64_t to = MIN(end, span->stream + span->length);
        int error = mapper_copy(mapper, span->offset + (at - span->stream), buffer + (at - start), to - at, failed_at);
        if (error != 0)
            return error;
        at = to;
    }
    return 0;
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

static void compress_frames(void *argument)
{
    struct job *job = argument;
    struct mapper mapper;
    uint64_t frame, failed_at = 0;
    uint8_t *buffer = malloc(job->frame_size);
    ZSTD_CCtx *context = new_compressor(job->level);
    mapper_init(&mapper, &job->source, false);
    if (buffer == NULL || context == NULL)
        crew_fail(&job->crew, ENOMEM, "no memory for a compressor: %s", strerror(ENOMEM));
    while (take(job, &frame)) {
        struct slot *slot = &job->slots[frame % job->slot_count];
        uint64_t length = frame_length(job, frame);
        int error = gather(job, &mapper, frame * job->frame_size, length, buffer, &failed_at);
        if (error != 0) {
            crew_fail(&job->crew, error, "cannot read the source at offset %llu: %s", (unsigned long long)failed_at,
                      strerror(error));
            break;
        }
        size_t size = ZSTD_compress2(context, slot->data, job->slot_size, buffer, length);
        if (ZSTD_isError(size)) {
            crew_fail(&job->crew, ENOMEM, "zstd cannot compress frame %llu: %s", (unsigned long long)frame,
                      ZSTD_getErrorName(size));
            break;
        }
        pthread_mutex_lock(&job->crew.lock);
        slot->size = size;
        slot->ready = true;
        pthread_cond_broadcast(&job->crew.change);
        pthread_mutex_unlock(&job->crew.lock);
    }
    mapper_destroy(&mapper);
    ZSTD_freeCCtx(context);
    free(buffer);
}

static void write_frames(void *argument)
{
    struct job *job = argument;
    for (uint64_t frame = 0; frame < job->frames; frame++) {
        struct slot *slot = &job->slots[frame % job->slot_count];
        pthread_mutex_lock(&job->crew.lock);
        while (!job->crew.stop && !slot->ready)
            pthread_cond_wait(&job->crew.change, &job->crew.lock);
        bool stopped = job->crew.stop;
        pthread_mutex_unlock(&job->crew.lock);
        if (stopped || !append(job, slot->data, slot->size))
            return;
        uint32_t *entry = &job->entries[frame * 3];
        entry[0] = (uint32_t)slot->size;
        entry[1] = (uint32_t)frame_length(job, frame);
        /* A frame ends with the low half of its content's XXH64: just what the seek table wants. */
        memcpy(&entry[2], slot->data + slot->size - 4, 4);
        pthread_mutex_lock(&job->crew.lock);
        slot->ready = false;
        job->written++;
        job->crew.done += entry[1];
        job->crew.moved = job->out.length;
        pthread_cond_broadcast(&job->crew.change);
        pthread_mutex_unlock(&job->crew.lock);
    }
}

static int check_arguments(const struct job *job, int threads)
{
    const char *what = NULL;
    if (check_level(job->level) != 0)
        return -1;
    if (threads < 1 || threads > MAX_THREADS)
        what = "the number of threads must be 1 to 256";
    else if (job->frame_size == 0 || job->frame_size > MAX_FRAME_SIZE)
        what = "the frame size must be 1 to 268435456 bytes";
    else if (job->stream_length / job->frame_size >= MAX_FRAMES)
        what = "the stream has too many frames: choose a larger frame size";
    else if (job->head_length > job->stream_length)
        what = "the head is longer than the stream";
    else if (job->out.offset > INT64_MAX || job->out.limit > INT64_MAX - job->out.offset)
        what = "the output ends at an impossible offset";
    else if (job->out.direct && job->out.offset % PAGE != 0)
        what = "direct output must begin at a multiple of 4096";
    if (what != NULL)
        PyErr_SetString(PyExc_ValueError, what);
    return what == NULL ? 0 : -1;
}

static int allocate(struct job *job, int threads)
{
    job->frames = job->stream_length / job->frame_size + (job->stream_length % job->frame_size != 0);
    job->slot_count = (size_t)MIN((uint64_t)threads * 2 + 2, MAX(job->frames, 1));
    job->slot_size = ZSTD_compressBound(job->frame_size);
    job->slots = calloc(job->slot_count, sizeof *job->slots);
    job->entries = malloc(job->frames * 12 + 1);
    bool good = job->slots != NULL && job->entries != NULL &&
                posix_memalign((void **)&job->out.buffer, PAGE, WRITE_SIZE) == 0;
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
    free(job->out.buffer);
    layout_free(&job->source);
    crew_destroy(&job->crew);
    free(job);
}

/* Ask for the trailer, write it, and make the result. */
static PyObject *conclude(struct job *job, PyObject *trailer, const struct core_state *state)
{
    PyObject *entries = PyBytes_FromStringAndSize((const char *)job->entries, (Py_ssize_t)(job->frames * 12));
    PyObject *answer = NULL, *result = NULL;
    Py_ssize_t size = 0;
    char *bytes = NULL;
    bool good;
    if (entries == NULL)
        return NULL;
    if (trailer != Py_None) {
        answer = PyObject_CallFunctionObjArgs(trailer, entries, NULL);
        if (answer == NULL || PyBytes_AsStringAndSize(answer, &bytes, &size) != 0)
            goto done;
    }
    Py_BEGIN_ALLOW_THREADS;
    good = finish(job, (const uint8_t *)(bytes == NULL ? "" : bytes), (size_t)size);
    Py_END_ALLOW_THREADS;
    if (good)
        result = Py_BuildValue("(KO)", (unsigned long long)job->out.length, entries);
    else
        crew_raise(&job->crew, state);
done:
    Py_XDECREF(answer);
    Py_DECREF(entries);
    return result;
}

PyObject *core_compress(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"source_fd", "spans", "head", "stream_length", "frame_size", "level", "threads",
                            "out_fd", "out_offset", "direct", "limit", "trailer", "progress", NULL};
    const struct core_state *state = PyModule_GetState(module);
    struct job *job = calloc(1, sizeof *job);
    PyObject *trailer = Py_None, *progress = Py_None, *result = NULL;
    Py_buffer spans, head;
    int source_fd, threads, direct;
    if (job == NULL)
        return PyErr_NoMemory();
    crew_init(&job->crew);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iy*y*O&O&iiiO&pO&|OO:compress", names, &source_fd, &spans, &head,
                                     to_u64, &job->stream_length, to_u64, &job->frame_size, &job->level, &threads,
                                     &job->out.fd, to_u64, &job->out.offset, &direct, to_u64, &job->out.limit, &trailer,
                                     &progress)) {
        release(job);
        return NULL;
    }
    job->head = head.buf;
    job->head_length = (uint64_t)head.len;
    job->crew.total = job->stream_length;
    job->out.direct = direct;
    job->out.seekable = lseek(job->out.fd, 0, SEEK_CUR) >= 0 || errno != ESPIPE;
    if (direct)
        job->out.limit = page_down(job->out.limit);
    if (check_arguments(job, threads) == 0 &&
        layout_init(&job->source, source_fd, &spans, job->head_length, job->stream_length, false) == 0 &&
        allocate(job, threads) == 0) {
        crew_start(&job->crew, 1, write_frames, job);
        crew_start(&job->crew, (int)MIN((uint64_t)threads, MAX(job->frames, 1)), compress_frames, job);
        if (crew_wait(&job->crew, progress, state) == 0)
            result = conclude(job, trailer, state);
    }
    release(job);
    PyBuffer_Release(&spans);
    PyBuffer_Release(&head);
    return result;
}
