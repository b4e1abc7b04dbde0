/*
 * Frames to spans of memory.
 *
 * Two readers fetch the wanted frames in order, up to a megabyte at a time, each into a free batch; workers take
 * full batches, check and decompress every frame of one, and copy what the spans want of it. Nothing of a
 * frame is written before all of it has been checked. Two readers keep the medium busy between requests.
 * Memory: threads + 3 batches of a megabyte (or the largest frame), one frame and one decompressor a worker.
 */
#include "core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define READERS 2
#define BATCH_SIZE ((uint64_t)1 << 20)

struct frame {
    uint64_t offset, stream; /* in the file, and in the stream */
    uint32_t size, length;   /* compressed and not */
    uint32_t checksum;
    bool wanted;
};

struct batch {
    uint8_t *data;
    uint64_t base; /* file offset of the first byte in `data` */
    size_t first, count;
    enum { EMPTY, READING, FULL, BUSY } state;
};

struct job {
    struct crew crew;
    struct layout destination;
    int image_fd;
    bool direct;
    struct frame *frames;
    size_t frame_count, next; /* `next`: the first frame that no reader has taken */
    uint64_t largest, largest_compressed;
    struct batch *batches;
    size_t batch_count, batch_size;
    uint64_t written;
};

static struct batch *find_batch(struct job *job, int state)
{
    for (size_t i = 0; i < job->batch_count; i++)
        if (job->batches[i].state == (unsigned)state)
            return &job->batches[i];
    return NULL;
}

static void set_state(struct job *job, struct batch *batch, int state)
{
    pthread_mutex_lock(&job->crew.lock);
    batch->state = (unsigned)state;
    pthread_cond_broadcast(&job->crew.change);
    pthread_mutex_unlock(&job->crew.lock);
}

static void skip_unwanted(struct job *job)
{
    while (job->next < job->frame_count && !job->frames[job->next].wanted)
        job->next++;
}

/* Give a reader an empty batch and the next frames to put there; NULL when no frame is left, or the crew stops. */
static struct batch *next_to_read(struct job *job)
{
    struct batch *batch = NULL;
    pthread_mutex_lock(&job->crew.lock);
    while (!job->crew.stop && job->next < job->frame_count && (batch = find_batch(job, EMPTY)) == NULL)
        pthread_cond_wait(&job->crew.change, &job->crew.lock);
    if (job->crew.stop || job->next == job->frame_count) {
        batch = NULL;
    } else {
        uint64_t size = 0;
        batch->first = job->next;
        while (job->next < job->frame_count && job->frames[job->next].wanted &&
               (size == 0 || size + job->frames[job->next].size <= BATCH_SIZE))
            size += job->frames[job->next++].size;
        batch->count = job->next - batch->first;
        batch->base = page_down(job->frames[batch->first].offset);
        batch->state = READING;
        skip_unwanted(job);
    }
    pthread_mutex_unlock(&job->crew.lock);
    return batch;
}

/* Give a worker a full batch; NULL when none will come. */
static struct batch *next_to_open(struct job *job)
{
    struct batch *batch = NULL;
    pthread_mutex_lock(&job->crew.lock);
    while (!job->crew.stop && (batch = find_batch(job, FULL)) == NULL &&
           (job->next < job->frame_count || find_batch(job, READING) != NULL))
        pthread_cond_wait(&job->crew.change, &job->crew.lock);
    if (job->crew.stop)
        batch = NULL;
    if (batch != NULL)
        batch->state = BUSY;
    pthread_mutex_unlock(&job->crew.lock);
    return batch;
}

static void fail_frame(struct job *job, size_t index, const char *why)
{
    crew_fail_damaged(&job->crew, "frame %zu of the image (bytes from %llu of the stream) is damaged: %s", index,
                      (unsigned long long)job->frames[index].stream, why);
}

/* Read a batch's frames in page-aligned requests; false when the crew has failed. */
static bool read_batch(struct job *job, struct batch *batch)
{
    const struct frame *last = &job->frames[batch->first + batch->count - 1];
    uint64_t needed = last->offset + last->size - batch->base, size = page_up(needed), got = 0;
    while (got < needed) {
        ssize_t n = pread(job->image_fd, batch->data + got, size - got, (off_t)(batch->base + got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            crew_fail(&job->crew, errno, "cannot read %llu bytes at offset %llu of the image's file: %s",
                      (unsigned long long)(size - got), (unsigned long long)(batch->base + got), strerror(errno));
            return false;
        }
        got += (uint64_t)n;
        /* A direct read that ends within a sector has met the end of the file; one more would be refused. */
        if (n == 0 || (job->direct && got < needed && got % 512 != 0)) {
            size_t index = batch->first;
            while (job->frames[index].offset + job->frames[index].size <= batch->base + got)
                index++;
            fail_frame(job, index, "the file ends before it does");
            return false;
        }
    }
    return true;
}

static void read_frames(void *argument)
{
    struct job *job = argument;
    struct batch *batch;
    while ((batch = next_to_read(job)) != NULL)
        if (read_batch(job, batch))
            set_state(job, batch, FULL);
}

/* Copy what the spans want of a frame's content to its place; false when the crew has failed. */
static bool scatter(struct job *job, struct mapper *mapper, const struct frame *frame, uint8_t *content,
                    uint64_t *written)
{
    const struct layout *to = &job->destination;
    uint64_t end = frame->stream + frame->length, failed_at = 0;
    for (size_t i = layout_find(to, frame->stream); i < to->count && to->spans[i].stream < end; i++) {
        const struct span *span = &to->spans[i];
        uint64_t from = MAX(span->stream, frame->stream), length = MIN(span->stream + span->length, end) - from;
        int error = mapper_copy(mapper, span->offset + (from - span->stream), content + (from - frame->stream), length,
                                &failed_at);
        if (error != 0) {
            crew_fail(&job->crew, error, "cannot write the destination at offset %llu: %s",
                      (unsigned long long)failed_at, strerror(error));
            return false;
        }
        *written += length;
    }
    return true;
}

static void open_frames(void *argument)
{
    struct job *job = argument;
    struct mapper mapper;
    struct batch *batch;
    uint8_t *content = malloc(job->largest + 1);
    ZSTD_DCtx *context = ZSTD_createDCtx();
    mapper_init(&mapper, &job->destination, true);
    if (content == NULL || context == NULL)
        crew_fail(&job->crew, ENOMEM, "no memory for a decompressor: %s", strerror(ENOMEM));
    while ((batch = next_to_open(job)) != NULL) {
        uint64_t done = 0, moved = 0, written = 0;
        bool good = true;
        for (size_t i = 0; good && i < batch->count; i++) {
            const struct frame *frame = &job->frames[batch->first + i];
            const uint8_t *data = batch->data + (frame->offset - batch->base);
            const char *wrong = open_frame(context, data, frame->size, content, frame->length, &frame->checksum);
            if (wrong != NULL)
                fail_frame(job, batch->first + i, wrong);
            good = wrong == NULL && scatter(job, &mapper, frame, content, &written);
            done += frame->length;
            moved += frame->size;
        }
        if (!good)
            break;
        pthread_mutex_lock(&job->crew.lock);
        job->crew.done += done;
        job->crew.moved += moved;
        job->written += written;
        pthread_mutex_unlock(&job->crew.lock);
        set_state(job, batch, EMPTY);
    }
    mapper_destroy(&mapper);
    ZSTD_freeDCtx(context);
    free(content);
}

/* Take the frames (packed native u32 triples) of an image that begins at `offset`; 0, or -1 with an exception. */
static int take_entries(struct job *job, const Py_buffer *entries, uint64_t offset, uint64_t *stream)
{
    size_t size = (size_t)entries->len;
    if (size % 12 != 0 || size / 12 > MAX_FRAMES) {
        PyErr_Format(PyExc_ValueError, "%zu bytes are not a list of frames of 12 bytes each", size);
        return -1;
    }
    job->frame_count = size / 12;
    job->frames = calloc(job->frame_count + 1, sizeof *job->frames);
    if (job->frames == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (size_t i = 0; i < job->frame_count; i++) {
        struct frame *frame = &job->frames[i];
        uint32_t entry[3];
        memcpy(entry, (const uint8_t *)entries->buf + i * 12, sizeof entry);
        *frame = (struct frame){offset, *stream, entry[0], entry[1], entry[2], false};
        if (frame->length > MAX_FRAME_SIZE || frame->size > ZSTD_compressBound(frame->length) + 64) {
            PyErr_Format(PyExc_ValueError, "frame %zu has impossible sizes: %zu bytes compressed, %zu decompressed", i,
                         (size_t)frame->size, (size_t)frame->length);
            return -1;
        }
        offset += frame->size;
        *stream += frame->length;
        if (offset > INT64_MAX - PAGE) {
            PyErr_Format(PyExc_ValueError, "frame %zu lies at an impossible file offset", i);
            return -1;
        }
    }
    return 0;
}

/* Find out which frames hold bytes of a span. */
static void choose_frames(struct job *job)
{
    for (size_t i = 0; i < job->frame_count; i++) {
        struct frame *frame = &job->frames[i];
        size_t span = layout_find(&job->destination, frame->stream);
        frame->wanted =
            span < job->destination.count && job->destination.spans[span].stream < frame->stream + frame->length;
        if (!frame->wanted)
            continue;
        job->crew.total += frame->length;
        job->largest = MAX(job->largest, frame->length);
        job->largest_compressed = MAX(job->largest_compressed, frame->size);
    }
    skip_unwanted(job);
}

static int allocate(struct job *job, int threads)
{
    job->batch_count = (size_t)threads + 3;
    /* Frames need not begin or end on a page. */
    job->batch_size = (size_t)(page_up(MAX(BATCH_SIZE, job->largest_compressed)) + 2 * PAGE);
    job->batches = calloc(job->batch_count, sizeof *job->batches);
    bool good = job->batches != NULL;
    for (size_t i = 0; good && i < job->batch_count; i++)
        good = posix_memalign((void **)&job->batches[i].data, PAGE, job->batch_size) == 0;
    if (!good)
        PyErr_NoMemory();
    return good ? 0 : -1;
}

static void release(struct job *job)
{
    for (size_t i = 0; job->batches != NULL && i < job->batch_count; i++)
        free(job->batches[i].data);
    free(job->batches);
    free(job->frames);
    layout_free(&job->destination);
    crew_destroy(&job->crew);
    free(job);
}

PyObject *core_restore(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"image_fd", "image_offset", "entries", "spans", "dest_fd",
                            "threads", "direct", "progress", NULL};
    const struct core_state *state = PyModule_GetState(module);
    struct job *job = calloc(1, sizeof *job);
    PyObject *progress = Py_None, *result = NULL;
    Py_buffer entries, spans;
    int destination, threads, direct;
    uint64_t offset, stream = 0;
    if (job == NULL)
        return PyErr_NoMemory();
    crew_init(&job->crew);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iO&y*y*iip|O:restore", names, &job->image_fd, to_u64, &offset,
                                     &entries, &spans, &destination, &threads, &direct, &progress)) {
        release(job);
        return NULL;
    }
    job->direct = direct;
    if (threads < 1 || threads > MAX_THREADS) {
        PyErr_SetString(PyExc_ValueError, "the number of threads must be 1 to 256");
    } else if (offset > INT64_MAX / 2) {
        PyErr_SetString(PyExc_ValueError, "the image begins at an impossible offset");
    } else if (take_entries(job, &entries, offset, &stream) == 0 &&
               layout_init(&job->destination, destination, &spans, 0, stream, true) == 0) {
        choose_frames(job);
        if (allocate(job, threads) == 0) {
            crew_start(&job->crew, READERS, read_frames, job);
            crew_start(&job->crew, threads, open_frames, job);
            if (crew_wait(&job->crew, progress, state) == 0)
                result = PyLong_FromUnsignedLongLong(job->written);
        }
    }
    release(job);
    PyBuffer_Release(&entries);
    PyBuffer_Release(&spans);
    return result;
}
